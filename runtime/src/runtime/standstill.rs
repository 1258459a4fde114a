//! A container stands still while CRIU looks at it.

use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::state::{ProcessFacts, Status};

/// How often a container is let go on for a moment, because CRIU could not stop one of its threads.
const MOMENTS: u32 = 100;
/// How long such a moment is.
const MOMENT: Duration = Duration::from_millis(1);

/// The time for which a container stands still. One that is frozen before CRIU looks at it costs CRIU
/// no wait: it looks again only every 100 ms.
pub(super) struct Pause<'a> {
    cgroup: Option<&'a Cgroup>,
    /// What it was before; one that its owner has frozen stays so.
    status: Status,
    frozen: bool,
}

impl<'a> Pause<'a> {
    pub(super) fn of(cgroup: Option<&'a Cgroup>, status: Status) -> Self {
        Self {
            cgroup,
            status,
            frozen: false,
        }
    }

    /// Freezes a container that runs, or leaves it as it was.
    pub(super) fn begin(&mut self) -> Result<()> {
        let Some(cgroup) = self.cgroup else {
            return Ok(());
        };
        if self.status == Status::Running {
            cgroup.freeze()?;
            self.frozen = true;
        }
        match find_moment(cgroup) {
            Ok(()) => Ok(()),
            Err(error) => self.end().and(Err(error)),
        }
    }

    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(cgroup) = self.cgroup.filter(|_| self.frozen) {
            cgroup.thaw()?;
            self.frozen = false;
        }
        Ok(())
    }
}

/// Who waits for the child of its vfork(2), as each posix_spawn(3) does, cannot be stopped as long as
/// that child is frozen, and CRIU gives up after ten seconds: a moment is looked for in which nobody
/// does.
fn find_moment(cgroup: &Cgroup) -> Result<()> {
    for _ in 0..MOMENTS {
        if !has_uninterruptible(cgroup)? {
            break;
        }
        cgroup.thaw()?;
        std::thread::sleep(MOMENT);
        cgroup.freeze()?;
    }
    Ok(())
}

fn has_uninterruptible(cgroup: &Cgroup) -> Result<bool> {
    let pids = cgroup.pids(true)?;
    let mut threads = pids.into_iter().flat_map(ProcessFacts::of_threads);
    Ok(threads.any(|thread| thread.uninterruptible))
}
