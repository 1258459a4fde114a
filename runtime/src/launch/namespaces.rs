//! Joining namespaces that exist already.
//!
//! A process cannot enter a pid or time namespace itself, only its children can: so the parent
//! points its "namespace for children" there for the moment of the clone, and back. That saves
//! the second fork that other runtimes need.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{At as _, Error, Failure, Result, Step};
use crate::spec::Namespaces;

const NEWPID: u64 = libc::CLONE_NEWPID as u64;
const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
const NEWTIME: u64 = 0x80;

/// Open namespaces of a container to be.
#[derive(Debug)]
pub(crate) struct Joined {
    /// For the child to enter, the user namespace first.
    own: Vec<(LinkNameSpaceType, OwnedFd)>,
    /// For the parent to point at.
    pid: Option<OwnedFd>,
    /// `CLONE_NEW*` bits that the child makes itself, inside a user namespace it has joined.
    unshare: u64,
    /// Text for `timens_offsets`; the parent makes the time namespace then.
    time_offsets: Option<String>,
}

/// Opens the namespaces that the container joins.
pub(crate) fn open_joins(namespaces: &Namespaces, time_offsets: Option<&str>) -> Result<Joined> {
    let mut joined = Joined {
        own: Vec::with_capacity(namespaces.join.len()),
        pid: None,
        unshare: 0,
        time_offsets: time_offsets.map(str::to_owned),
    };
    for join in &namespaces.join {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = open(&join.path, flags, Mode::empty())
            .map_err(Error::file("open namespace", &join.path))?;
        match join.flag {
            NEWPID => joined.pid = Some(fd),
            NEWUSER => joined.own.insert(0, (LinkNameSpaceType::User, fd)),
            flag => joined.own.push((link_type(flag), fd)),
        }
    }
    if namespaces.joined(NEWUSER).is_some() {
        joined.unshare = namespaces.create;
    }
    Ok(joined)
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

impl Joined {
    /// Flags for the clone that makes init, given what is to be made new.
    ///
    /// Namespaces inside a joined user namespace must be made after joining it; a new pid
    /// namespace then needs an intermediate process ([`Joined::needs_intermediate`]).
    pub(super) fn clone_flags(&self, create: u64) -> u64 {
        if self.unshare != 0 {
            return 0;
        }
        if self.time_offsets.is_some() {
            create & !NEWTIME
        } else {
            create
        }
    }

    /// Whether init has to be cloned from inside the joined user namespace.
    pub(super) fn needs_intermediate(&self) -> bool {
        self.unshare & NEWPID != 0
    }

    /// What that clone makes.
    pub(super) fn inner_flags(&self) -> u64 {
        self.unshare
    }

    /// The child's part: enters each namespace, makes those that belong inside.
    pub(super) fn enter(&self) -> std::result::Result<(), Failure<'static>> {
        if self.needs_intermediate() {
            // The intermediate process was inside already when it made this one.
            return Ok(());
        }
        self.enter_existing()?;
        if self.unshare != 0 {
            crate::sys::unshare(self.unshare).at(Step::Unshare, b"")?;
        }
        Ok(())
    }

    /// Enters each namespace by its descriptor.
    pub(super) fn enter_existing(&self) -> std::result::Result<(), Failure<'static>> {
        for (kind, fd) in &self.own {
            move_into_link_name_space(fd.as_fd(), Some(*kind))
                .at(Step::JoinNamespace, kind_name(*kind))?;
        }
        Ok(())
    }

    /// The parent's part: points its children elsewhere until the guard is dropped.
    pub(super) fn point_children(&self) -> Result<ChildrenPointed> {
        let mut pointed = ChildrenPointed::default();
        if let Some(fd) = &self.pid {
            pointed.pid(fd)?;
        }
        if let Some(offsets) = &self.time_offsets {
            pointed.time(offsets)?;
        }
        Ok(pointed)
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
        let file = "/proc/self/timens_offsets";
        std::fs::write(file, offsets).map_err(Error::file("write", file))
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
