//! What security modules are told, in the child, through a proc that can be trusted.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::{At as _, Failure, Step};
use crate::plan::{KeyringPlan, LabelPlan};
use crate::rootfs::open_in_proc;
use crate::sys;

/// Where SELinux shows itself when it is enabled (`selinuxfs`).
const SELINUX_FS: &str = "/sys/fs/selinux/enforce";

/// Whether this host labels processes with SELinux contexts.
pub(crate) fn selinux_is_enabled() -> bool {
    std::path::Path::new(SELINUX_FS).exists()
}

/// Sets what applies from the next `execve` on.
pub(super) fn label_next_program<'p>(
    labels: &'p LabelPlan,
    proc: BorrowedFd<'_>,
) -> Result<(), Failure<'p>> {
    if let Some(profile) = &labels.apparmor {
        // Before kernel 5.8 all modules share one file.
        let own = c"attr/apparmor/exec";
        let (file, detail) = if has_attribute(proc, own) {
            (own, &b"write proc/thread-self/attr/apparmor/exec"[..])
        } else {
            (c"attr/exec", &b"write proc/thread-self/attr/exec"[..])
        };
        write_attribute(proc, file, profile).at(Step::AppArmor, detail)?;
    }
    if let Some(context) = &labels.selinux {
        write_attribute(proc, c"attr/exec", context).at(Step::SeLinux, context)?;
    }
    Ok(())
}

/// Joins a session keyring of the container's own, so that the host's keys stay out of sight; with
/// the context of the process, if it has one.
pub(super) fn join_keyring<'p>(
    keyring: Option<&'p KeyringPlan>,
    labels: &'p LabelPlan,
    proc: Option<BorrowedFd<'_>>,
) -> Result<(), Failure<'p>> {
    let Some(keyring) = keyring else {
        return Ok(());
    };
    let context = labels.selinux.as_deref().zip(proc);
    if let Some((context, proc)) = context {
        write_attribute(proc, c"attr/keycreate", context).at(Step::SeLinux, context)?;
    }
    let name = keyring.name.to_bytes();
    match sys::join_session_keyring(&keyring.name) {
        Ok(serial) if keyring.rights != 0 => {
            sys::grant_key_rights(serial, keyring.rights).at(Step::Keyring, name)?;
        }
        // A kernel without keyrings, or a seccomp filter around the runtime itself.
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => {}
        Err(errno) => return Err(errno).at(Step::Keyring, name),
    }
    if let Some((context, proc)) = context {
        write_attribute(proc, c"attr/keycreate", b"").at(Step::SeLinux, context)?;
    }
    Ok(())
}

fn has_attribute(proc: BorrowedFd<'_>, file: &CStr) -> bool {
    open_attribute(proc, file, OFlags::PATH).is_ok()
}

fn write_attribute(proc: BorrowedFd<'_>, file: &CStr, value: &[u8]) -> Result<(), Errno> {
    let attribute = open_attribute(proc, file, OFlags::WRONLY)?;
    rustix::io::write(&attribute, value).map(drop)
}

fn open_attribute(proc: BorrowedFd<'_>, file: &CStr, how: OFlags) -> Result<OwnedFd, Errno> {
    let this = open_in_proc(proc, c"thread-self", OFlags::PATH)?;
    open_in_proc(this.as_fd(), file, how)
}

/// The host's proc, for as long as the child is still in the host's tree.
pub(super) fn host_proc() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, c"/proc", flags, Mode::empty())
}
