//! The system calls that rustix lacks; the only `unsafe` of these programs.

use std::ffi::CString;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr::null;

use libc::{c_int, c_long, c_ulong};

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_ATTACH: c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

fn check(returned: c_long) -> io::Result<c_long> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(returned)
}

/// Makes a process in `cgroup` and in new namespaces that runs `child` and exits with its result;
/// the caller sleeps until that process has executed a program or is gone, and gets its pid.
pub fn clone_into(
    cgroup: BorrowedFd<'_>,
    namespaces: u64,
    child: impl FnOnce() -> i32,
) -> io::Result<i32> {
    // SAFETY: clone_args is plain integers, for which zero means "not given".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | CLONE_INTO_CGROUP | libc::CLONE_VFORK as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM the child has its own copy of all memory; `args` outlives the call.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if pid == 0 {
        let status = child();
        // SAFETY: _exit has no preconditions.
        unsafe { libc::_exit(status) };
    }
    Ok(pid as i32)
}

/// Waits for a child; its wait status, and what it and its own children used.
pub fn wait(pid: i32) -> io::Result<(c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is plain integers.
    let mut usage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right types.
    check(unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) }.into())?;
    Ok((status, usage))
}

/// Loads a device program and attaches it to a cgroup that has none.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    let license = c"Apache-2.0";
    // union bpf_attr for BPF_PROG_LOAD: type and count, instructions, license.
    let load = [
        u64::from(BPF_PROG_TYPE_CGROUP_DEVICE) | (program.len() as u64 / 8) << 32,
        program.as_ptr() as u64,
        license.as_ptr() as u64,
    ];
    // SAFETY: the kernel reads `load` and what it points to, all of which is alive.
    let loaded = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            load.as_ptr(),
            size_of_val(&load),
        )
    })?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded as c_int) };
    let attach = [
        cgroup.as_raw_fd() as u32,
        loaded.as_raw_fd() as u32,
        BPF_CGROUP_DEVICE,
        0,
    ];
    // SAFETY: the kernel reads `attach`, which is alive.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            attach.as_ptr(),
            size_of_val(&attach),
        )
    })
    .map(drop)
}

/// Sets attributes (`MOUNT_ATTR_*`) and propagation of a tree.
pub fn set_mount(tree: BorrowedFd<'_>, attributes: u64, propagation: u64) -> io::Result<()> {
    let attr = [attributes, 0, propagation, 0];
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: `attr` has the layout of struct mount_attr, and its size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    })
    .map(drop)
}

/// Installs a filter, given as an array of `struct sock_filter`.
pub fn install_filter(filter: &[u8]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: (filter.len() / 8) as u16,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel reads `program` and copies the instructions byte by byte.
    check(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) }).map(drop)
}

/// Sets the loopback device up.
pub fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: ifreq is a name and a union of integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let set_flags = libc::SIOCSIFFLAGS;
    // SAFETY: the request reads one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), set_flags, &raw const request) }.into())
        .map(drop)
}

/// Joins a new session keyring without a name.
pub fn new_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_ulong = 1;
    let name = null::<u8>();
    // SAFETY: a null name is allowed.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) }).map(drop)
}

/// Becomes another program; comes back only with an error.
pub fn execute(argv: &[CString]) -> io::Error {
    let mut pointers: Vec<_> = argv.iter().map(|word| word.as_ptr()).collect();
    pointers.push(null());
    let environment = [null()];
    // SAFETY: both arrays end with a null pointer, and their strings are alive.
    unsafe { libc::execve(pointers[0], pointers.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// The first `length` bytes of a file, read by way of a map of `length` bytes, shared or private;
/// a private one is written to afterwards, which nobody else may see.
pub fn read_mapped(file: BorrowedFd<'_>, length: usize, shared: bool) -> io::Result<Vec<u8>> {
    let (protection, flags) = if shared {
        (libc::PROT_READ, libc::MAP_SHARED)
    } else {
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
    };
    // SAFETY: the kernel chooses a place where nothing is; the descriptor is open.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            flags,
            file.as_raw_fd(),
            0,
        )
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `length` bytes are mapped and readable, and nobody writes to them; what lies in a page
    // after the file's last byte reads as zero, and whole pages after that are what a caller asks for.
    let bytes = unsafe { std::slice::from_raw_parts(map.cast::<u8>(), length) }.to_vec();
    if !shared {
        // SAFETY: the map is private and writable, and the slice above is gone.
        unsafe { std::ptr::write_bytes(map.cast::<u8>(), 0xa5, length) };
    }
    // SAFETY: this is the map made above, and no reference into it is left.
    check(unsafe { libc::munmap(map, length) }.into())?;
    Ok(bytes)
}

/// Opens the file at a path again by its handle (`open_by_handle_at(2)`), by way of `mount`, a
/// descriptor of any file of the same file system.
pub fn open_by_handle(mount: BorrowedFd<'_>, path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    const ROOM: usize = 128;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; ROOM],
    }
    let mut handle = Handle {
        bytes: ROOM as u32,
        kind: 0,
        data: [0; ROOM],
    };
    let mut mount_id: c_int = 0;
    // SAFETY: `handle` has the layout of struct file_handle with room for what `bytes` says.
    check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount_id,
            0,
        )
    })?;
    // SAFETY: the kernel only reads `handle`, which it has just filled.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw const handle,
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Has this process trace a command: it stops when it begins with its program.
pub fn spawn_traced(command: &mut Command) -> io::Result<i32> {
    // SAFETY: the request takes no arguments.
    let be_traced = || check(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }).map(drop);
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(be_traced) };
    Ok(command.spawn()?.id() as i32)
}

/// Has the kernel trace what a stopped tracee makes of itself: its children, and other programs.
pub fn trace_children(pid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC;
    let none = null::<u8>();
    // SAFETY: the options are passed by value.
    check(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, none, options as usize) }).map(drop)
}

/// Lets a stopped tracee carry out one instruction, after a signal if it is to get one.
pub fn step(pid: i32, signal: c_int) -> io::Result<()> {
    let none = null::<u8>();
    // SAFETY: the signal is passed by value.
    check(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, pid, none, signal as usize) }).map(drop)
}

/// Lets a stopped tracee go.
pub fn let_go(pid: i32) -> io::Result<()> {
    let none = null::<u8>();
    // SAFETY: neither argument points to anything.
    check(unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, none, none) }).map(drop)
}

/// Where a stopped tracee goes on.
#[cfg(target_arch = "x86_64")]
pub fn next_instruction(pid: i32) -> io::Result<u64> {
    // SAFETY: the registers are plain integers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let (none, room) = (null::<u8>(), &raw mut registers);
    // SAFETY: the kernel writes one set of registers into what has room for it.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGS, pid, none, room) })?;
    Ok(registers.rip)
}

/// Waits for any child or tracee; its pid and wait status.
pub fn wait_any() -> io::Result<(i32, c_int)> {
    let mut status = 0;
    // SAFETY: the status is a live integer.
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) }.into())?;
    Ok((pid as i32, status))
}
