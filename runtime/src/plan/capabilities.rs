//! Capability sets as bit masks.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};

/// The five sets of a process (`capabilities(7)`); a set that is not given is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CapabilityPlan {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

impl CapabilityPlan {
    /// From `process.capabilities`.
    pub(crate) fn from_spec(sets: &LinuxCapabilities) -> Self {
        Self {
            bounding: mask(sets.bounding().as_ref()),
            effective: mask(sets.effective().as_ref()),
            permitted: mask(sets.permitted().as_ref()),
            inheritable: mask(sets.inheritable().as_ref()),
            ambient: mask(sets.ambient().as_ref()),
        }
    }

    /// Warns of ambient capabilities that the kernel will not accept, in runc's words.
    pub(crate) fn warnings(process: &Process) -> Vec<String> {
        let Some(sets) = process.capabilities() else {
            return Vec::new();
        };
        let possible = Self::from_spec(sets).possible_ambient();
        let mut refused: Vec<_> = sets.ambient().iter().flatten().copied().collect();
        refused.retain(|capability| possible & 1 << number(*capability) == 0);
        refused.sort_by_key(|capability| number(*capability));
        let words = refused.iter().map(|capability| {
            format!("can't raise ambient capability CAP_{capability}: operation not permitted")
        });
        words.collect()
    }

    /// The ambient capabilities that the kernel will accept: permitted and inheritable ones.
    pub(crate) fn possible_ambient(&self) -> u64 {
        self.ambient & self.permitted & self.inheritable
    }
}

fn mask(set: Option<&Capabilities>) -> u64 {
    set.into_iter()
        .flatten()
        .fold(0, |mask, capability| mask | 1 << number(*capability))
}

/// The kernel's number (`linux/capability.h`).
fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_become_masks() {
        let sets: LinuxCapabilities = serde_json::from_str(
            r#"{"bounding":["CAP_CHOWN","CAP_CHECKPOINT_RESTORE"],"permitted":["CAP_KILL"],
                "inheritable":["CAP_KILL"],"ambient":["CAP_KILL","CAP_CHOWN"]}"#,
        )
        .expect("valid");
        let plan = CapabilityPlan::from_spec(&sets);
        assert_eq!(plan.bounding, 1 | 1 << 40);
        assert_eq!(plan.possible_ambient(), 1 << 5);
        assert_eq!(plan.effective, 0);
        let mut process = Process::default();
        process.set_capabilities(Some(sets));
        assert_eq!(
            CapabilityPlan::warnings(&process),
            ["can't raise ambient capability CAP_CHOWN: operation not permitted"]
        );
    }
}
