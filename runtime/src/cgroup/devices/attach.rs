//! Putting a device program on a cgroup.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::DeviceProgram;
use crate::cgroup::Cgroup;
use crate::cgroup::error::{CgroupError, Result};
use crate::sys::bpf;

impl Cgroup {
    /// Loads the program and attaches it in the place of whatever device programs the cgroup
    /// has: a single one is replaced without a moment in between, several are detached after the
    /// new one is in force. The cgroup keeps the program alive; no descriptor stays open.
    pub fn attach_devices(&self, program: &DeviceProgram) -> Result<()> {
        let fail = |action| {
            move |errno: Errno| CgroupError::DeviceProgram {
                action,
                path: self.full_path().to_owned(),
                source: errno.into(),
            }
        };
        let new = bpf::load_device_program(&program.encode()).map_err(fail("load"))?;
        let old = self.attached_programs().map_err(fail("query"))?;
        let replace = match old.as_slice() {
            [one] => Some(one.as_fd()),
            _ => None,
        };
        bpf::attach_device_program(self.fd(), new.as_fd(), replace).map_err(fail("attach"))?;
        if replace.is_none() {
            for program in &old {
                bpf::detach_device_program(self.fd(), program.as_fd()).map_err(fail("detach"))?;
            }
        }
        Ok(())
    }

    fn attached_programs(&self) -> rustix::io::Result<Vec<OwnedFd>> {
        let mut programs = Vec::new();
        for id in bpf::device_program_ids(self.fd())? {
            match bpf::program_by_id(id) {
                Ok(program) => programs.push(program),
                // Another manager's program that a security module guards, or one that is going
                // away: it can only restrict further.
                Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(programs)
    }
}
