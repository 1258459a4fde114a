//! What this runtime supports, in the format of the runtime-spec's features document.
//!
//! It says what the code does, not what the host offers: callers decide by it which
//! configurations they may hand over.

use serde_json::{Value, json};

use crate::seccomp::Architecture;
use crate::spec::SPEC_VERSION;
use crate::sys::seccomp::knows_filter_flags;

/// Capabilities the runtime has a number for, in the order of `linux/capability.h`.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Modes and flags of `linux.memoryPolicy`.
const MEMORY_MODES: &[&str] = &[
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];
const MEMORY_FLAGS: &[&str] = &[
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];

/// Mount options that are understood as flags; everything else goes to the file system.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "copy-symlink",
    "defaults",
    "dest-nofollow",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "src-nofollow",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// Seccomp filter flags the runtime understands, with what the kernel is asked for each.
const SECCOMP_FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_LOG", 1 << 1),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 1 << 2),
    // The kernel takes it only together with NEW_LISTENER.
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 1 << 5 | 1 << 3),
];

/// The features document (runtime-spec 1.3, features.md and features-linux.md).
pub fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": CAPABILITIES,
            "cgroup": {
                "v1": false, "v2": true, "systemd": true, "systemdUser": true, "rdma": true,
            },
            "seccomp": seccomp(),
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {
                "modes": MEMORY_MODES.to_vec(),
                "flags": MEMORY_FLAGS.to_vec(),
            },
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": {
            "xebec.version": env!("CARGO_PKG_VERSION"),
            "xebec.checkpoint.enabled": "true",
        },
        // Become properties of the container's unit.
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
    })
}

fn seccomp() -> Value {
    let mut archs = Architecture::ALL.map(Architecture::spec_name);
    archs.sort_unstable();
    let known = SECCOMP_FLAGS.map(|(name, _)| name);
    let supported: Vec<_> = SECCOMP_FLAGS
        .iter()
        .filter(|(_, flags)| knows_filter_flags(*flags))
        .map(|(name, _)| *name)
        .collect();
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE",
            "SCMP_ACT_TRAP",
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
        ],
        "archs": archs,
        "knownFlags": known,
        "supportedFlags": supported,
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Capability, Features};

    use super::*;

    #[test]
    fn the_document_has_the_type_of_the_runtime_spec() {
        let features: Features = serde_json::from_value(features()).expect("a features document");
        let linux = features.linux().as_ref().expect("linux");
        assert_eq!(
            linux.cgroup().as_ref().and_then(|cgroup| *cgroup.v1()),
            Some(false)
        );
        let seccomp = linux.seccomp().as_ref().expect("seccomp");
        assert_eq!(
            seccomp.archs().as_ref().map(Vec::len),
            Some(Architecture::ALL.len())
        );
    }

    #[test]
    fn every_mount_option_is_understood() {
        for word in MOUNT_OPTIONS {
            let options = crate::plan::options::parse(&[(*word).to_owned()]);
            assert!(options.data.is_empty(), "{word} goes to the file system");
        }
    }

    #[test]
    fn every_capability_has_a_name_that_the_configuration_may_use() {
        for name in CAPABILITIES {
            serde_json::from_value::<Capability>(json!(name)).expect(name);
        }
    }

    #[test]
    fn this_kernel_knows_the_oldest_flags_and_no_invented_one() {
        let features = features();
        let supported = features
            .pointer("/linux/seccomp/supportedFlags")
            .and_then(Value::as_array);
        assert!(
            supported
                .expect("a list")
                .contains(&json!("SECCOMP_FILTER_FLAG_TSYNC"))
        );
        assert!(!knows_filter_flags(1 << 30));
    }
}
