//! The floor: only the system calls that the container of the benchmark's bundle needs, with
//! nothing read, planned, checked or recorded. No runtime can be faster than this on the same
//! kernel, so the distance to it is what a runtime costs.
//!
//! `bench-floor ROOTFS FILTER DEVICES CGROUP PROGRAM [ARGUMENT…]`: FILTER and DEVICES hold the
//! compiled seccomp and device programs, CGROUP is made and removed.

use std::ffi::CString;
use std::io::{self, Error};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use bench_programs::sys;
use rustix::fs::{
    CWD, FileType, Mode, OFlags, makedev, mkdir, mkdirat, mknodat, open, rmdir, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Resource, Rlimit, chdir, fchdir, pivot_root, setrlimit, setsid, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;
const HIDDEN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV);
const OWN: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_STRICTATIME);
type Mount = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    MountAttrFlags,
);
const MOUNTS: [Mount; 7] = [
    ("proc", "proc", &[("source", "proc")], HIDDEN),
    (
        "tmpfs",
        "dev",
        &[("source", "tmpfs"), ("mode", "755"), ("size", "65536k")],
        OWN,
    ),
    (
        "devpts",
        "dev/pts",
        &[
            ("source", "devpts"),
            ("ptmxmode", "0666"),
            ("mode", "0620"),
            ("gid", "5"),
        ],
        MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ),
    (
        "tmpfs",
        "dev/shm",
        &[("source", "shm"), ("mode", "1777"), ("size", "65536k")],
        HIDDEN,
    ),
    ("mqueue", "dev/mqueue", &[("source", "mqueue")], HIDDEN),
    (
        "sysfs",
        "sys",
        &[("source", "sysfs")],
        HIDDEN.union(MountAttrFlags::MOUNT_ATTR_RDONLY),
    ),
    (
        "tmpfs",
        "run",
        &[("source", "tmpfs"), ("mode", "755"), ("size", "65536k")],
        OWN,
    ),
];
const NODES: [(&str, u32, u32); 6] = [
    ("dev/null", 1, 3),
    ("dev/zero", 1, 5),
    ("dev/full", 1, 7),
    ("dev/random", 1, 8),
    ("dev/urandom", 1, 9),
    ("dev/tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("pts/ptmx", "dev/ptmx"),
];
const MASKED_FILES: [&str; 6] = [
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
];
const MASKED_DIRECTORIES: [&str; 5] = [
    "proc/acpi",
    "proc/asound",
    "sys/firmware",
    "sys/devices/virtual/powercap",
    "proc/scsi",
];
const READ_ONLY: [&str; 5] = [
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/sys",
    "proc/sysrq-trigger",
];
/// Numbers of the capabilities of containerd's default spec.
const KEPT: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
const LAST_CAPABILITY: u32 = 40;

fn main() -> ExitCode {
    let mut words = std::env::args_os()
        .skip(1)
        .map(|word| CString::new(word.into_vec()));
    let mut next = || words.next().and_then(Result::ok);
    let (Some(rootfs), Some(filter), Some(devices), Some(cgroup)) =
        (next(), next(), next(), next())
    else {
        eprintln!("bench-floor ROOTFS FILTER DEVICES CGROUP PROGRAM [ARGUMENT…]");
        return ExitCode::from(2);
    };
    let argv: Vec<_> = words.map_while(Result::ok).collect();
    match run(&rootfs, [&filter, &devices], &cgroup, &argv) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("bench-floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(
    rootfs: &CString,
    programs: [&CString; 2],
    cgroup: &CString,
    argv: &[CString],
) -> io::Result<u8> {
    let [filter, devices] = programs.map(|path| std::fs::read(path.to_string_lossy().as_ref()));
    let (filter, devices) = (filter?, devices?);
    mkdir(cgroup, Mode::from_raw_mode(0o755))?;
    let group = open(cgroup, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    sys::attach_device_program(group.as_fd(), &devices)?;
    let tree = clone_of(CWD, rootfs, OpenTreeFlags::AT_RECURSIVE)?;
    let pid = sys::clone_into(group.as_fd(), NAMESPACES as u64, || {
        let failure = match contain(rootfs, &tree, &filter) {
            Ok(()) => sys::execute(argv),
            Err(error) => error,
        };
        eprintln!("bench-floor: {failure}");
        1
    })?;
    let (status, _) = sys::wait(pid)?;
    rmdir(cgroup)?;
    Ok(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
}

/// Everything between the clone and the program.
fn contain(rootfs: &CString, root: &OwnedFd, filter: &[u8]) -> io::Result<()> {
    let old = open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    sys::set_mount(old.as_fd(), 0, libc::MS_PRIVATE)?;
    let null = open(c"/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    move_mount(
        root,
        c"",
        CWD,
        rootfs,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    let root = root.as_fd();
    umask(Mode::empty());
    setsid()?;
    sys::new_keyring()?;
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sys::loopback_up(socket.as_fd())?;
    fill(root)?;
    mask(root, &null)?;
    fchdir(root)?;
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    chdir(c"/")?;
    umask(Mode::from_raw_mode(0o022));
    let files = Some(1024);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files,
            maximum: files,
        },
    )?;
    restrict(filter)
}

fn fill(root: BorrowedFd<'_>) -> io::Result<()> {
    for (kind, target, options, attributes) in MOUNTS {
        if target.starts_with("dev/") {
            mkdirat(root, target, Mode::from_raw_mode(0o755))?;
        }
        put(&filesystem(kind, options, attributes)?, root, target)?;
    }
    for (name, major, minor) in NODES {
        let (mode, number) = (Mode::from_raw_mode(0o666), makedev(major, minor));
        mknodat(root, name, FileType::CharacterDevice, mode, number)?;
    }
    for (target, name) in LINKS {
        symlinkat(target, root, name)?;
    }
    Ok(())
}

fn mask(root: BorrowedFd<'_>, null: &OwnedFd) -> io::Result<()> {
    for path in READ_ONLY {
        if let Some(tree) = existing(clone_of(root, path, OpenTreeFlags::AT_RECURSIVE))? {
            sys::set_mount(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0)?;
            put(&tree, root, path)?;
        }
    }
    for path in MASKED_FILES {
        existing(put(
            &clone_of(null, "", OpenTreeFlags::AT_EMPTY_PATH)?,
            root,
            path,
        ))?;
    }
    let empty = filesystem(
        "tmpfs",
        &[("nr_inodes", "1")],
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    let mut covered = false;
    for path in MASKED_DIRECTORIES {
        let cover = if covered {
            &clone_of(&empty, "", OpenTreeFlags::AT_EMPTY_PATH)?
        } else {
            &empty
        };
        covered |= existing(put(cover, root, path))?.is_some();
    }
    Ok(())
}

/// Capabilities, no new privileges, descriptors, filter.
fn restrict(filter: &[u8]) -> io::Result<()> {
    let kept = KEPT.iter().fold(0, |set, number| set | 1 << number);
    for number in (0..=LAST_CAPABILITY).filter(|number| kept & 1 << number == 0) {
        remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number))?;
    }
    let kept = CapabilitySet::from_bits_retain(kept);
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: none,
        },
    )?;
    set_no_new_privs(true)?;
    sys::install_filter(filter)
}

fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn put(tree: &OwnedFd, root: BorrowedFd<'_>, target: &str) -> io::Result<()> {
    Ok(move_mount(
        tree,
        c"",
        root,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

fn clone_of(
    at: impl AsFd,
    path: impl rustix::path::Arg,
    flags: OpenTreeFlags,
) -> io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(at, path, clone | flags)?)
}

/// What a kernel does not have needs no mask.
fn existing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn missing(error: &Error) -> bool {
    error.raw_os_error() == Some(Errno::NOENT.raw_os_error())
}
