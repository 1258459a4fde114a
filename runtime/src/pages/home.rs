//! Where the server and its guard are charged: in a cgroup of their own, which is no clone's, and not
//! that of whoever happened to start the first one.

use std::fs;
use std::io::{self, ErrorKind};

use crate::cgroup::{Cgroup, CgroupPath};

/// Beside the host's slices, for all servers.
const CGROUP: &str = "/xebec-pages";
/// Who leaves at the same time takes the directory away.
const ATTEMPTS: usize = 8;

/// The cgroup that this process has entered.
#[derive(Debug)]
pub(super) struct Home {
    own: CgroupPath,
    /// Where it came from; none if that is the root.
    origin: Option<CgroupPath>,
}

impl Home {
    /// Moves this process there. One that must not stays with its caller.
    pub(super) fn enter() -> Option<Self> {
        let own = CgroupPath::resolve(Some(CGROUP), "").ok()?;
        let origin = CgroupPath::of_process(std::process::id() as i32).ok();
        for _ in 0..ATTEMPTS {
            let made = fs::create_dir(own.full());
            if made.is_err_and(|error| error.kind() != ErrorKind::AlreadyExists) {
                return None;
            }
            match move_to(&own.full()) {
                Ok(()) => return Some(Self { own, origin }),
                Err(error) if is_gone(&error) => {}
                Err(_) => {
                    Cgroup::remove_unused(&own.full());
                    return None;
                }
            }
        }
        None
    }

    /// Goes back up, for nobody can remove where he is, and removes it unless others are there.
    pub(super) fn leave(self) {
        // In a container the root may have to be without processes, and a service may have ended.
        let others = [self.origin, CgroupPath::of_process(1).ok()];
        let others = others.into_iter().flatten().map(|cgroup| cgroup.full());
        let mut ways_out = std::iter::once(self.own.mount().to_owned()).chain(others);
        if ways_out.any(|way| move_to(&way).is_ok()) {
            Cgroup::remove_unused(&self.own.full());
        }
    }
}

/// Moves this process into a cgroup, for which `0` stands.
fn move_to(cgroup: &std::path::Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

/// Whether the directory was removed meanwhile.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
