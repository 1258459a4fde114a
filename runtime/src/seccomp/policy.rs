//! A profile with names resolved: for each architecture, what happens to which number.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::arch::{ARM_PRIVATE, Architecture};
use super::error::{Result, SeccompError};

/// Filter return values of `linux/seccomp.h`.
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_NOTIFY: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

/// The answer to system calls that are newer than the profile.
pub(super) const RET_ENOSYS: u32 = RET_ERRNO | libc::ENOSYS as u32;

/// The answer to system calls of architectures that the profile does not name.
pub(super) const RET_BAD_ARCH: u32 = RET_KILL_THREAD;

/// `SECCOMP_FILTER_FLAG_*` of `linux/seccomp.h`.
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_NEW_LISTENER: u32 = 1 << 3;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u8,
    pub(super) op: LinuxSeccompOperator,
    pub(super) value: u64,
    /// What the masked argument must be, for the masked comparison.
    pub(super) value_two: u64,
}

/// Conditions that all have to hold, and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conditional {
    pub(super) conditions: Vec<Condition>,
    pub(super) ret: u32,
}

/// What happens to one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Always(u32),
    FirstOf(Vec<Conditional>),
}

/// What happens to the system calls of one architecture.
#[derive(Clone, Debug)]
pub(super) struct ArchPolicy {
    pub(super) arch: Architecture,
    pub(super) calls: BTreeMap<u32, Verdict>,
    /// The highest number the profile names; above it the answer is ENOSYS.
    pub(super) newest: Option<u32>,
}

/// A resolved profile.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) default: u32,
    /// The native architecture first.
    pub(super) archs: Vec<ArchPolicy>,
    pub(super) flags: u32,
    pub(super) notify: bool,
}

impl Policy {
    pub(super) fn from_spec(native: Architecture, profile: &LinuxSeccomp) -> Result<Self> {
        let default = ret(
            profile.default_action(),
            profile.default_errno_ret(),
            "defaultErrnoRet",
        )?;
        if default == RET_NOTIFY {
            let reason = "SCMP_ACT_NOTIFY cannot be used as default action";
            return Err(invalid("defaultAction", reason));
        }
        let notify = check_notify(profile)?;
        let rules = profile
            .syscalls()
            .iter()
            .flatten()
            .enumerate()
            .map(|(index, call)| Rule::from_spec(index, call))
            .collect::<Result<Vec<_>>>()?;
        // A permissive default is for watching, which ENOSYS would disturb.
        let enosys = !matches!(
            profile.default_action(),
            LinuxSeccompAction::ScmpActAllow
                | LinuxSeccompAction::ScmpActLog
                | LinuxSeccompAction::ScmpActTrace
        );
        let archs = architectures(native, profile)
            .into_iter()
            .map(|arch| ArchPolicy::new(arch, default, enosys, &rules))
            .collect();
        Ok(Self {
            default,
            archs,
            flags: flags(profile, notify),
            notify,
        })
    }
}

/// The native architecture and those the profile names, each once.
fn architectures(native: Architecture, profile: &LinuxSeccomp) -> Vec<Architecture> {
    let mut archs = vec![native];
    for arch in profile.architectures().iter().flatten() {
        if let Some(arch) = Architecture::from_spec(*arch, native).filter(|a| !archs.contains(a)) {
            archs.push(arch);
        }
    }
    archs
}

/// Flags for seccomp(2). Without a list the default is SPEC_ALLOW, as in runc. TSYNC is left
/// out: the process that loads the filter has one thread.
fn flags(profile: &LinuxSeccomp, notify: bool) -> u32 {
    let mut flags = match profile.flags() {
        None => FLAG_SPEC_ALLOW,
        Some(list) => list.iter().fold(0, |flags, flag| {
            flags
                | match flag {
                    LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
                    LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                    LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                    LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                        FLAG_WAIT_KILLABLE_RECV
                    }
                }
        }),
    };
    if notify {
        flags |= FLAG_NEW_LISTENER;
    } else {
        // The kernel takes it only together with a listener.
        flags &= !FLAG_WAIT_KILLABLE_RECV;
    }
    flags
}

/// Whether the profile wants a listener. write(2) cannot be handed to it, because the loading
/// process needs it to pass the listener's descriptor on.
pub(super) fn check_notify(profile: &LinuxSeccomp) -> Result<bool> {
    let mut notify = false;
    for call in profile.syscalls().iter().flatten() {
        if call.action() != LinuxSeccompAction::ScmpActNotify {
            continue;
        }
        notify = true;
        if call.names().iter().any(|name| name == "write") {
            let reason = "SCMP_ACT_NOTIFY cannot be used for the write syscall";
            return Err(invalid("syscalls", reason));
        }
    }
    let has_listener = profile
        .listener_path()
        .as_ref()
        .is_some_and(|path| !path.as_os_str().is_empty());
    if notify && !has_listener {
        return Err(invalid("listenerPath", "seccomp listenerPath is not set"));
    }
    let metadata = profile.listener_metadata().as_deref().unwrap_or_default();
    if !metadata.is_empty() && !has_listener {
        let reason = "must not be set without listenerPath";
        return Err(invalid("listenerMetadata", reason));
    }
    Ok(notify)
}

fn invalid(field: &str, reason: impl Into<String>) -> SeccompError {
    SeccompError::Invalid {
        field: field.to_owned(),
        reason: reason.into(),
    }
}

/// The filter return value of an action; errno and trace data default to EPERM.
fn ret(action: LinuxSeccompAction, errno: Option<u32>, field: &str) -> Result<u32> {
    let data = || {
        let data = errno.unwrap_or(libc::EPERM as u32);
        if data > 0xffff {
            return Err(invalid(field, format!("{data} does not fit into 16 bits")));
        }
        Ok(data)
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => RET_ERRNO | data()?,
        LinuxSeccompAction::ScmpActNotify => RET_NOTIFY,
        LinuxSeccompAction::ScmpActTrace => RET_TRACE | data()?,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
    })
}

/// One entry of the profile, checked.
struct Rule<'a> {
    names: &'a [String],
    ret: u32,
    /// Alternatives; none means unconditional.
    alternatives: Vec<Vec<Condition>>,
}

impl<'a> Rule<'a> {
    fn from_spec(index: usize, call: &'a LinuxSyscall) -> Result<Self> {
        let field = |name: &str| format!("syscalls[{index}].{name}");
        if call.names().iter().any(String::is_empty) {
            return Err(invalid(
                &field("names"),
                "empty string is not a valid syscall",
            ));
        }
        let conditions = call
            .args()
            .iter()
            .flatten()
            .map(|arg| condition(arg, &field("args")))
            .collect::<Result<Vec<_>>>()?;
        let mut seen = [0_u8; 6];
        for condition in &conditions {
            seen[usize::from(condition.index)] += 1;
        }
        // runc's rule since its first days: conditions on the same argument are alternatives.
        let alternatives = if conditions.is_empty() {
            Vec::new()
        } else if seen.iter().any(|count| *count > 1) {
            conditions
                .into_iter()
                .map(|condition| vec![condition])
                .collect()
        } else {
            vec![conditions]
        };
        let ret = ret(call.action(), call.errno_ret(), &field("errnoRet"))?;
        Ok(Self {
            names: call.names(),
            ret,
            alternatives,
        })
    }
}

fn condition(arg: &LinuxSeccompArg, field: &str) -> Result<Condition> {
    let index = u8::try_from(arg.index())
        .ok()
        .filter(|index| *index < 6)
        .ok_or_else(|| {
            invalid(
                field,
                format!("index {}: system calls have arguments 0 to 5", arg.index()),
            )
        })?;
    let (value, value_two) = (arg.value(), arg.value_two().unwrap_or(0));
    Ok(Condition {
        index,
        op: arg.op(),
        value,
        value_two,
    })
}

impl ArchPolicy {
    fn new(arch: Architecture, default: u32, enosys: bool, rules: &[Rule<'_>]) -> Self {
        let mut policy = Self {
            arch,
            calls: BTreeMap::new(),
            newest: None,
        };
        for rule in rules {
            for name in rule.names {
                let number = arch.number(name);
                if let Some(number) = number.filter(|n| enosys && *n != 0 && !is_private(arch, *n))
                {
                    policy.newest = policy.newest.max(Some(number));
                }
                // A rule that repeats the default is no rule (runc's matchCall).
                if rule.ret == default {
                    continue;
                }
                if let Some(number) = number {
                    policy.add(number, &rule.alternatives, rule.ret);
                }
                if let Some((multiplexer, call)) = arch.multiplexed(name) {
                    policy.add_multiplexed(multiplexer, call, rule);
                }
            }
        }
        policy
    }

    fn add(&mut self, number: u32, alternatives: &[Vec<Condition>], ret: u32) {
        let verdict = self
            .calls
            .entry(number)
            .or_insert_with(|| Verdict::FirstOf(Vec::new()));
        let Verdict::FirstOf(conditionals) = verdict else {
            return;
        };
        if alternatives.is_empty() {
            *verdict = Verdict::Always(ret);
            return;
        }
        conditionals.extend(alternatives.iter().map(|conditions| Conditional {
            conditions: conditions.clone(),
            ret,
        }));
    }

    /// The call made through socketcall(2) or ipc(2): its number is argument 0 there. As in
    /// libseccomp, that comparison takes the place of any condition on argument 0.
    fn add_multiplexed(&mut self, multiplexer: u32, call: u32, rule: &Rule<'_>) {
        let number = Condition {
            index: 0,
            op: LinuxSeccompOperator::ScmpCmpEq,
            value: call.into(),
            value_two: 0,
        };
        let with_number = |conditions: &Vec<Condition>| {
            let others = conditions
                .iter()
                .filter(|condition| condition.index != 0)
                .copied();
            std::iter::once(number).chain(others).collect::<Vec<_>>()
        };
        let alternatives = if rule.alternatives.is_empty() {
            vec![vec![number]]
        } else {
            rule.alternatives.iter().map(with_number).collect()
        };
        self.add(multiplexer, &alternatives, rule.ret);
    }
}

/// ARM's own calls say nothing about how new the profile is.
fn is_private(arch: Architecture, number: u32) -> bool {
    arch == Architecture::Arm && number >= ARM_PRIVATE
}
