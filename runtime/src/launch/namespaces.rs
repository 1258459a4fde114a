//! Entering the namespaces of a container that exist already, and making those that belong inside
//! a user namespace among them.
//!
//! A process cannot enter a pid or time namespace itself, only its children can: so the parent
//! points its "namespace for children" there for the moment of the clone, and back. That saves
//! the second fork that other runtimes need. A parent without privileges on the host cannot point
//! anywhere: then a process goes ahead into the user namespace and does all of it there.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::finish::in_sight;
use super::joins::OpenNamespace;
use crate::error::{At as _, Error, Failure, Result, Step};

const NEWPID: u64 = libc::CLONE_NEWPID as u64;
const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
const NEWTIME: u64 = 0x80;

const TIME_OFFSETS: &str = "/proc/self/timens_offsets";

/// The namespaces of a container to be: open ones to enter, and bits of those to make.
#[derive(Debug)]
pub(crate) struct Joined {
    /// For the child to enter, the user namespace first.
    own: Vec<(LinkNameSpaceType, OwnedFd)>,
    /// For the children of whoever makes init.
    pid: Option<OwnedFd>,
    /// `CLONE_NEW*` bits of namespaces to be made.
    create: u64,
    /// They belong to a user namespace that has to be entered first.
    inside: bool,
    /// Text for `timens_offsets` of the new time namespace.
    time_offsets: Option<String>,
    /// The caller has privileges outside.
    privileged: bool,
}

impl Joined {
    /// Sorts open namespaces by who has to enter them.
    pub(crate) fn new(
        opened: Vec<OpenNamespace>,
        create: u64,
        time_offsets: Option<String>,
        privileged: bool,
    ) -> Self {
        let mut joined = Self {
            own: Vec::with_capacity(opened.len() + 1),
            pid: None,
            create,
            inside: false,
            time_offsets,
            privileged,
        };
        for OpenNamespace { flag, fd } in opened {
            match flag {
                NEWPID => joined.pid = Some(fd),
                NEWUSER => joined.enter_first(fd),
                flag => joined.own.push((link_type(flag), fd)),
            }
        }
        joined
    }

    /// Makes `user` the user namespace of the container: everything else happens inside it.
    pub(crate) fn enter_first(&mut self, user: OwnedFd) {
        self.own.insert(0, (LinkNameSpaceType::User, user));
        self.inside = true;
        self.create &= !NEWUSER;
    }

    /// The mount namespace is there already and is entered by whoever has it.
    pub(crate) fn leave_mounts_out(&mut self) {
        self.create &= !(libc::CLONE_NEWNS as u64);
    }

    /// Whether the caller has privileges outside.
    pub(super) fn privileged(&self) -> bool {
        self.privileged
    }

    /// The user namespace that is entered before all else.
    pub(crate) fn user(&self) -> Option<&OwnedFd> {
        self.own.first().filter(|_| self.inside).map(|(_, fd)| fd)
    }

    /// Flags for the clone that makes init.
    ///
    /// Namespaces inside a joined user namespace must be made after joining it; a new pid
    /// namespace then needs a process that goes ahead ([`Joined::needs_vanguard`]).
    pub(super) fn clone_flags(&self) -> u64 {
        if self.inside && !self.needs_vanguard() {
            0
        } else if self.time_offsets.is_some() {
            self.create & !NEWTIME
        } else {
            self.create
        }
    }

    /// Whether another process has to enter namespaces and make init there: into a user namespace
    /// that is joined, or before one is made, because what is outside cannot be entered from it.
    pub(super) fn needs_vanguard(&self) -> bool {
        if self.inside {
            !self.privileged || self.create & NEWPID != 0 || self.time_offsets.is_some()
        } else {
            self.create & NEWUSER != 0 && !self.own.is_empty()
        }
    }

    /// The child's part: enters each namespace, makes those that belong inside.
    pub(super) fn enter(&self) -> std::result::Result<(), Failure<'static>> {
        if self.needs_vanguard() {
            // Whoever made this process was there already.
            return Ok(());
        }
        self.enter_own()?;
        if self.inside && self.create != 0 {
            crate::sys::unshare(self.create).at(Step::Unshare, b"")?;
        }
        Ok(())
    }

    /// The vanguard's part: enters everything, for itself and for the child it is about to make.
    pub(super) fn go_ahead(&self) -> std::result::Result<(), Failure<'static>> {
        let enter_pid = || match &self.pid {
            Some(fd) => move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::ProcessID))
                .at(Step::JoinNamespace, b"pid"),
            None => Ok(()),
        };
        if self.privileged {
            enter_pid()?;
        }
        self.enter_own()?;
        if !self.privileged {
            enter_pid()?;
        }
        if let Some(offsets) = self.time_offsets.as_ref().filter(|_| self.inside) {
            crate::sys::unshare(NEWTIME).at(Step::Unshare, b"time")?;
            in_sight(self.privileged, || {
                write_offsets(offsets).at(Step::Unshare, TIME_OFFSETS.as_bytes())
            })?;
        }
        Ok(())
    }

    /// Enters each namespace by its descriptor: with privileges those of the host first, because
    /// a user namespace takes them away; what only its root may enter comes after it.
    fn enter_own(&self) -> std::result::Result<(), Failure<'static>> {
        let enter = |kind: LinkNameSpaceType, fd: &OwnedFd| {
            move_into_link_name_space(fd.as_fd(), Some(kind))
        };
        let (user, others) = self.own.split_at(usize::from(self.inside));
        let mut left = 0u32;
        for (place, (kind, fd)) in others.iter().enumerate() {
            let entered = if self.privileged || user.is_empty() {
                enter(*kind, fd)
            } else {
                Err(Errno::PERM)
            };
            match entered {
                Err(Errno::PERM) if !user.is_empty() => left |= 1 << place,
                result => result.at(Step::JoinNamespace, kind_name(*kind))?,
            }
        }
        for (kind, fd) in user {
            enter(*kind, fd).at(Step::JoinNamespace, kind_name(*kind))?;
        }
        for (place, (kind, fd)) in others.iter().enumerate() {
            if left & (1 << place) != 0 {
                enter(*kind, fd).at(Step::JoinNamespace, kind_name(*kind))?;
            }
        }
        Ok(())
    }

    /// The parent's part: points its children elsewhere until the guard is dropped.
    pub(super) fn point_children(&self) -> Result<ChildrenPointed> {
        let mut pointed = ChildrenPointed::default();
        if let Some(fd) = self.pid.as_ref().filter(|_| !self.needs_vanguard()) {
            pointed.pid(fd)?;
        }
        if let Some(offsets) = self.time_offsets.as_ref().filter(|_| !self.inside) {
            pointed.time(offsets)?;
        }
        Ok(pointed)
    }
}

/// Sets the clocks of the time namespace that the next child is born in.
fn write_offsets(offsets: &str) -> std::result::Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(CWD, TIME_OFFSETS, flags, Mode::empty())?;
    rustix::io::write(&file, offsets.as_bytes()).map(drop)
}

fn link_type(flag: u64) -> LinkNameSpaceType {
    match flag as i32 {
        libc::CLONE_NEWNS => LinkNameSpaceType::Mount,
        libc::CLONE_NEWCGROUP => LinkNameSpaceType::ControlGroup,
        libc::CLONE_NEWUTS => LinkNameSpaceType::HostNameAndNISDomainName,
        libc::CLONE_NEWIPC => LinkNameSpaceType::InterProcessCommunication,
        libc::CLONE_NEWUSER => LinkNameSpaceType::User,
        libc::CLONE_NEWPID => LinkNameSpaceType::ProcessID,
        libc::CLONE_NEWNET => LinkNameSpaceType::Network,
        _ => LinkNameSpaceType::Time,
    }
}

fn kind_name(kind: LinkNameSpaceType) -> &'static [u8] {
    match kind {
        LinkNameSpaceType::Mount => b"mount",
        LinkNameSpaceType::ControlGroup => b"cgroup",
        LinkNameSpaceType::HostNameAndNISDomainName => b"uts",
        LinkNameSpaceType::InterProcessCommunication => b"ipc",
        LinkNameSpaceType::User => b"user",
        LinkNameSpaceType::ProcessID => b"pid",
        LinkNameSpaceType::Network => b"network",
        LinkNameSpaceType::Time => b"time",
    }
}

/// The caller's children go to other namespaces; dropping it brings them back home.
#[derive(Debug, Default)]
pub(super) struct ChildrenPointed {
    homes: Vec<(LinkNameSpaceType, OwnedFd)>,
}

impl ChildrenPointed {
    /// Children are born in the pid namespace of `fd`: a namespace file or a pidfd.
    pub(super) fn pid(&mut self, fd: &OwnedFd) -> Result<()> {
        self.remember(LinkNameSpaceType::ProcessID, "/proc/self/ns/pid")?;
        move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .map_err(Error::os("join pid namespace"))
    }

    fn time(&mut self, offsets: &str) -> Result<()> {
        self.remember(LinkNameSpaceType::Time, "/proc/self/ns/time")?;
        crate::sys::unshare(NEWTIME).map_err(Error::os("create time namespace"))?;
        write_offsets(offsets).map_err(Error::file("write", TIME_OFFSETS))
    }

    fn remember(&mut self, kind: LinkNameSpaceType, path: &'static str) -> Result<()> {
        let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::file("open", path))?;
        self.homes.push((kind, fd));
        Ok(())
    }
}

impl Drop for ChildrenPointed {
    fn drop(&mut self) {
        for (kind, fd) in &self.homes {
            // Going home is always allowed to whom leaving was; nothing could be done otherwise.
            let _ = move_into_link_name_space(fd.as_fd(), Some(*kind));
        }
    }
}
