//! System calls that rustix lacks, and the only `unsafe` of the runtime's launch path.
//!
//! Every function takes borrowed descriptors and C strings and allocates nothing, so that all of
//! them may be called between `clone3` and `execve`.

mod attributes;
pub(crate) mod bpf;
mod clone;
mod exec;
mod lsm;
mod mount;
mod namespace;
mod net;
mod regex;
pub(crate) mod seccomp;
mod signal;
pub(crate) mod userfault;

pub(crate) use attributes::{
    SchedAttr, adopt, affinity, close_all_but, close_on_exec_from, close_one, duplicate_to,
    grant_key_rights, grow_heap_by, install_seccomp, join_session_keyring, set_affinity,
    set_io_priority, set_memory_policy, set_personality, set_scheduler, unshare, working_directory,
};
pub(crate) use clone::{CloneRequest, clone3};
pub(crate) use exec::{CStrArray, execve, execve_file};
pub(crate) use lsm::is_confined_by_apparmor;
pub(crate) use mount::{MountAttr, clone_tree_with, mount_set_attr, open_tree_with};
pub(crate) use namespace::namespace_kind;
pub(crate) use net::loopback_up;
pub(crate) use regex::Regex;
pub(crate) use signal::{
    SIGNAL_RECORD, block_all, default_dispositions, end_on_request, ignore_broken_pipes,
    pidfd_send_signal, signal_fd, unblock_all, wait_to_be_killed,
};

use rustix::io::Errno;

/// Turns the return value of a raw `syscall` into a result.
fn check(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    if returned < 0 {
        Err(last_errno())
    } else {
        Ok(returned)
    }
}

fn last_errno() -> Errno {
    // SAFETY: errno is thread-local, and its address is valid for the life of the thread.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
