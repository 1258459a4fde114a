//! Capabilities: their numbers, and those that a container may have that nobody vouches for.

const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What engines give a container that asks for nothing.
const ORDINARY: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bits of the ordinary ones.
pub(super) fn ordinary() -> u64 {
    ORDINARY.iter().filter_map(|name| bit(name)).sum()
}

/// The bit of a capability, with or without `CAP_`.
pub(super) fn bit(name: &str) -> Option<u64> {
    let own = name.strip_prefix("CAP_").unwrap_or(name);
    let number = NAMES.iter().position(|known| *known == own)?;
    Some(1 << number)
}

/// The name of the first capability in a set.
pub(super) fn first(set: u64) -> String {
    let number = set.trailing_zeros() as usize;
    match NAMES.get(number) {
        Some(name) => format!("CAP_{name}"),
        None => format!("capability {number}"),
    }
}
