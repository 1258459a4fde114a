//! User namespaces apart from a container's start: for id-mapped mounts, for callers without
//! privileges, and to learn the maps of one that exists.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, WaitId, WaitIdOptions, getegid, set_dumpable_behavior, waitid,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::channel::{self, Message, Report};
use super::placeholder::wait_with;
use crate::error::{At as _, Error, Result, Step};
use crate::plan::IdMaps;
use crate::sys::{CloneRequest, clone3, pidfd_send_signal};

/// Makes a user namespace with these maps and returns a descriptor that keeps it alive.
///
/// It takes a short-lived process: the kernel has no call for a namespace without one.
pub(crate) fn user_namespace(maps: &IdMaps) -> Result<OwnedFd> {
    beside_resident(None, |pid| {
        write_maps(pid, maps)?;
        let path = format!("/proc/{pid}/ns/user");
        open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::file("open", path))
    })
}

/// As [`user_namespace`], for a caller without privileges: its child has to be seen in `/proc`.
pub(crate) fn own_user_namespace(maps: &IdMaps) -> Result<OwnedFd> {
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(Error::os("prctl"))?;
    user_namespace(maps)
}

/// The maps of a user namespace that exists, as the caller's namespace sees them.
pub(super) fn maps_of(user: BorrowedFd<'_>) -> Result<IdMaps> {
    beside_resident(Some(user), |pid| {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).map_err(Error::file("read", path))
        };
        Ok(IdMaps {
            uid: read("uid_map")?,
            gid: read("gid_map")?,
        })
    })
}

/// Looks at a process that does nothing but live in a user namespace, a new one or `existing`.
fn beside_resident<T>(
    existing: Option<BorrowedFd<'_>>,
    look: impl FnOnce(i32) -> Result<T>,
) -> Result<T> {
    let (parent, child) = channel::pair()?;
    let request = CloneRequest {
        flags: existing.map_or(libc::CLONE_NEWUSER as u64, |_| 0),
        cgroup: None,
    };
    let creator = rustix::process::getpid();
    let (pid, pidfd) = clone3(&request, || {
        child.settle_in();
        let entered = existing.map_or(Ok(()), |fd| {
            move_into_link_name_space(fd, Some(LinkNameSpaceType::User))
        });
        let sent = match entered.at(Step::JoinNamespace, b"user") {
            Ok(()) => child.send(Report::Ready),
            Err(failure) => child.send(Report::Failed(failure)),
        };
        // It belongs to no container: nobody else would end it if this process were killed.
        if sent.is_ok() { wait_with(creator) } else { 1 }
    })
    .map_err(Error::os("create user namespace"))?;
    drop(child);
    let looked = match parent.receive() {
        Ok(Message::Ready) => look(pid),
        Ok(Message::Failed(failure)) => Err(Error::Init(failure)),
        Ok(_) => Err(Error::InitDied("in its user namespace".to_owned())),
        Err(error) => Err(error),
    };
    pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).map_err(Error::os("kill helper process"))?;
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .map_err(Error::os("wait for helper process"))?;
    looked
}

/// Writes the maps of a new user namespace through its first process.
pub(super) fn write_maps(pid: i32, maps: &IdMaps) -> Result<()> {
    let refused = |path: &str, text: &str| match fs::write(path, text) {
        Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(true),
        Err(e) => Err(Error::file("write", path)(e)),
        Ok(()) => Ok(false),
    };
    if refused(&format!("/proc/{pid}/uid_map"), &maps.uid)? {
        map_by_tool("newuidmap", pid, &maps.uid)?;
    }
    let path = format!("/proc/{pid}/gid_map");
    if refused(&path, &maps.gid)? {
        if is_single(&maps.gid, getegid().as_raw()) {
            // Who maps one's own group alone has to forgo others (`user_namespaces(7)`).
            let setgroups = format!("/proc/{pid}/setgroups");
            fs::write(&setgroups, "deny").map_err(Error::file("write", setgroups))?;
            fs::write(&path, &maps.gid).map_err(Error::file("write", path))?;
        } else {
            map_by_tool("newgidmap", pid, &maps.gid)?;
        }
    }
    Ok(())
}

/// Whether a map is of this one id of the outside and no other.
fn is_single(map: &str, outside: u32) -> bool {
    let mut words = map.split_whitespace().skip(1);
    words.next() == Some(&outside.to_string()) && words.eq(["1"])
}

/// Lets a program that may do so map the ids that an administrator has given to the user.
fn map_by_tool(tool: &str, pid: i32, map: &str) -> Result<()> {
    let ran = Command::new(tool)
        .arg(pid.to_string())
        .args(map.split_whitespace())
        .stdin(Stdio::null())
        .output();
    match ran {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said
                .trim()
                .trim_start_matches(tool)
                .trim_start_matches(": ");
            Err(Error::Unsupported(format!(
                "failed to use {tool} for the map {:?}: {said}",
                map.trim_end()
            )))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::Unsupported(format!(
            "mapping other ids than one's own needs {tool}, which is not installed"
        ))),
        Err(e) => Err(Error::os(format!("execute {tool}"))(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_group_can_be_mapped_without_help() {
        assert!(is_single("0 1000 1\n", 1000));
        assert!(is_single("5 1000 1\n", 1000));
        for other in ["0 1001 1\n", "0 1000 2\n", "0 1000 1\n1 100000 65536\n"] {
            assert!(!is_single(other, 1000), "{other}");
        }
    }
}
