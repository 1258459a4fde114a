//! What the process that launches containers may do itself.

use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, statat};
use rustix::thread::{CapabilitySet, capabilities};

use crate::error::{Error, Result};

/// Inode number of the user namespace that the machine started with (`linux/nsfs.h`).
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// The caller's standing, probed once a process: it does not change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// May mount and make namespaces. Who may not gets there through a user namespace.
    pub(crate) privileged: bool,
    /// May enter a new mount namespace and mount everything there: a user namespace may mount proc
    /// only beside one that it sees already.
    pub(crate) enters_mounts: bool,
    /// Lives in a user namespace itself, where root can neither make devices nor filter them.
    pub(crate) in_user_namespace: bool,
}

impl Caller {
    pub(crate) fn probe() -> Result<Self> {
        static KNOWN: OnceLock<Caller> = OnceLock::new();
        if let Some(known) = KNOWN.get() {
            return Ok(*known);
        }
        let found = Self::look()?;
        Ok(*KNOWN.get_or_init(|| found))
    }

    fn look() -> Result<Self> {
        let own = capabilities(None).map_err(Error::os("read own capabilities"))?;
        let path = "/proc/self/ns/user";
        let namespace =
            statat(CWD, path, AtFlags::empty()).map_err(Error::file("examine", path))?;
        let may = |capability| own.effective.contains(capability);
        let in_user_namespace = namespace.st_ino != FIRST_USER_NAMESPACE;
        Ok(Self {
            privileged: may(CapabilitySet::SYS_ADMIN),
            enters_mounts: may(CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_CHROOT)
                && !in_user_namespace,
            in_user_namespace,
        })
    }
}
