//! Architectures, and the numbers that system call names have on them.

use std::collections::HashMap;
use std::sync::LazyLock;

use oci_spec::runtime::Arch;

/// System call numbers of x32 have this bit (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// From here on ARM has calls of its own (`__ARM_NR_BASE`), far above the common table.
pub(super) const ARM_PRIVATE: u32 = 0x0f_0000;

/// An architecture a filter can be compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 32-bit pointers on 64-bit x86; shares the audit architecture of [`Self::X86_64`].
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
}

impl Architecture {
    /// The machine this was built for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// The machine this was built for.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;
    /// The machine this was built for.
    #[cfg(target_arch = "riscv64")]
    pub const NATIVE: Self = Self::Riscv64;

    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::X86_64,
        Self::X86,
        Self::X32,
        Self::Aarch64,
        Self::Arm,
        Self::Riscv64,
    ];

    /// The architecture the spec names, on a machine of `native`. `None` for those that no
    /// kernel of a supported machine ever runs: leaving them out changes nothing.
    pub(super) fn from_spec(arch: Arch, native: Self) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Some(native),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            Arch::ScmpArchRiscv64 => Some(Self::Riscv64),
            _ => None,
        }
    }

    /// The spec's name.
    pub fn spec_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::Riscv64 => "SCMP_ARCH_RISCV64",
        }
    }

    /// What the kernel puts into `seccomp_data.arch` (`AUDIT_ARCH_*` of `linux/audit.h`).
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// Whether arguments are compared in all 64 bits; libseccomp compares 32 on x32, too.
    pub(super) fn is_64_bit(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64 | Self::Riscv64)
    }

    /// The number of a system call, if the architecture has it as a call of its own.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        match self {
            Self::X86_64 => X86_64.get(name).copied(),
            Self::X86 => X86.get(name).copied(),
            Self::X32 => x32_number(name),
            Self::Aarch64 => AARCH64.get(name).copied(),
            Self::Arm => ARM.get(name).copied(),
            Self::Riscv64 => RISCV64.get(name).copied(),
        }
    }

    /// The multiplexer and its call number, for a call that can be made through one.
    pub(super) fn multiplexed(self, name: &str) -> Option<(u32, u32)> {
        if self != Self::X86 {
            return None;
        }
        let call = |table: &[(&str, u32)]| table.iter().find(|(n, _)| *n == name).map(|(_, c)| *c);
        call(&X86_SOCKETCALLS)
            .map(|call| (X86_SOCKETCALL, call))
            .or_else(|| call(&X86_IPC_CALLS).map(|call| (X86_IPC, call)))
    }
}

type Table = HashMap<&'static str, u32>;

macro_rules! table {
    ($module:ident, $extra:expr) => {
        LazyLock::new(|| {
            use syscalls::$module::Sysno;
            let last = Sysno::last().id() as usize;
            let mut table = Table::with_capacity(512);
            // By number, because Sysno::iter() leaves the last one out.
            table.extend(
                (0..=last)
                    .filter_map(Sysno::new)
                    .map(|s| (s.name(), s.id() as u32)),
            );
            table.extend(<Vec<(&'static str, u32)>>::from($extra));
            table
        })
    };
}

static X86_64: LazyLock<Table> = table!(x86_64, []);
static X86: LazyLock<Table> = table!(x86, []);
static AARCH64: LazyLock<Table> = table!(aarch64, []);
static RISCV64: LazyLock<Table> = table!(riscv64, []);
static ARM: LazyLock<Table> = table!(
    arm,
    [
        ("sync_file_range2", 341),
        ("breakpoint", ARM_PRIVATE + 1),
        ("cacheflush", ARM_PRIVATE + 2),
        ("usr26", ARM_PRIVATE + 3),
        ("usr32", ARM_PRIVATE + 4),
        ("set_tls", ARM_PRIVATE + 5),
        ("get_tls", ARM_PRIVATE + 6),
    ]
);

/// Calls that x32 numbers anew because their structures have other layouts; in order from 512.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// Calls of x86_64 that x32 does not have at all.
const X32_ABSENT: [&str; 11] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
];

fn x32_number(name: &str) -> Option<u32> {
    if let Some(index) = X32_OWN.iter().position(|own| *own == name) {
        return Some(X32_BIT | (512 + index as u32));
    }
    if X32_ABSENT.contains(&name) {
        return None;
    }
    X86_64.get(name).map(|number| X32_BIT | number)
}

const X86_SOCKETCALL: u32 = 102;
const X86_IPC: u32 = 117;

/// `SYS_*` of `linux/net.h`.
const X86_SOCKETCALLS: [(&str, u32); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// Call numbers of `linux/ipc.h`.
const X86_IPC_CALLS: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_their_architecture() {
        let table = [
            (Architecture::X86_64, "read", Some(0)),
            (Architecture::X86_64, "file_setattr", Some(469)),
            (Architecture::X86_64, "socketcall", None),
            (Architecture::X86, "socket", Some(359)),
            (Architecture::X86, "accept", None),
            (Architecture::X32, "read", Some(X32_BIT)),
            (Architecture::X32, "execve", Some(X32_BIT + 520)),
            (Architecture::X32, "pwritev2", Some(X32_BIT + 547)),
            (Architecture::X32, "uselib", None),
            (Architecture::Aarch64, "open", None),
            (Architecture::Aarch64, "openat", Some(56)),
            (Architecture::Arm, "set_tls", Some(0x0f_0005)),
            (Architecture::Riscv64, "riscv_flush_icache", Some(259)),
            (Architecture::Riscv64, "no_such_call", None),
        ];
        for (arch, name, number) in table {
            assert_eq!(arch.number(name), number, "{arch:?} {name}");
        }
        assert_eq!(Architecture::X86.multiplexed("shmat"), Some((117, 21)));
        assert_eq!(Architecture::X86_64.multiplexed("shmat"), None);
    }
}
