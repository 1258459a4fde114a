//! A container stands still while CRIU looks at it.

use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::state::{ProcessFacts, Status};

/// How often a container is let go on for a moment, because CRIU could not stop one of its threads.
const MOMENTS: u32 = 100;
/// How long such a moment is.
const MOMENT: Duration = Duration::from_millis(1);

/// A container that was running and stands still.
pub(super) struct Frozen<'a>(&'a Cgroup);

impl Frozen<'_> {
    pub(super) fn thaw(self) -> Result<()> {
        Ok(self.0.thaw()?)
    }
}

/// Freezes a container that runs. In one that its owner has frozen nothing moves either, but for
/// what [`find_moment`] says.
pub(super) fn freeze(cgroup: Option<&Cgroup>, status: Status) -> Result<Option<Frozen<'_>>> {
    let Some(cgroup) = cgroup else {
        return Ok(None);
    };
    let frozen = (status == Status::Running).then_some(Frozen(cgroup));
    if frozen.is_some() {
        cgroup.freeze()?;
    }
    match find_moment(cgroup) {
        Ok(()) => Ok(frozen),
        Err(error) => {
            if let Some(frozen) = frozen {
                frozen.thaw()?;
            }
            Err(error)
        }
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
