//! Which processors the runtime and the processes it makes run on.

use crate::error::{At as _, Error, Failure, Result, Step};
use crate::plan::{AffinityPlan, BitSet};
use crate::sys;

/// Confines the caller to some processors until it is dropped; its children inherit that.
pub(super) struct Confined(Option<Vec<u64>>);

impl Confined {
    pub(super) fn to(cpus: Option<&BitSet>) -> Result<Self> {
        let Some(cpus) = cpus else {
            return Ok(Self(None));
        };
        let home = sys::affinity().map_err(Error::os("sched_getaffinity"))?;
        sys::set_affinity(cpus.words()).map_err(Error::os("error setting initial CPU affinity"))?;
        Ok(Self(Some(home)))
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        if let Some(home) = &self.0 {
            // Where it was allowed to be before it is allowed to be again.
            let _ = sys::set_affinity(home);
        }
    }
}

/// In the child: gives up the processors that the runtime was confined to; the container's cgroup
/// says where its processes run.
pub(super) fn run_anywhere() {
    // Where it is refused, by a filter around the runtime, what was inherited stays.
    let _ = sys::set_affinity(&[u64::MAX; 128]);
}

/// In a further process: what its document says once it is in the container's cgroup.
pub(super) fn choose_processors(plan: &AffinityPlan) -> std::result::Result<(), Failure<'static>> {
    match plan {
        AffinityPlan {
            last: Some(cpus), ..
        } => sys::set_affinity(cpus.words()).at(Step::Scheduling, b"process CPU affinity"),
        AffinityPlan { initial: None, .. } => {
            run_anywhere();
            Ok(())
        }
        // The first choice stays, as far as the cgroup permits.
        AffinityPlan { .. } => Ok(()),
    }
}
