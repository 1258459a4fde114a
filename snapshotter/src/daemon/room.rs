//! The thread that keeps the store within its limits.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::service::Snapshotter;
use crate::store::{Limits, Space};

/// How often is looked at the levels at least: others write to the disk, too.
const INTERVAL: Duration = Duration::from_secs(10);
/// After how long is tried again when all was in use: some of it may have been just then only.
/// Then twice as long, and so on.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_mins(1);

/// Keeps the store within its limits until it is dropped.
pub(super) struct Warden {
    space: Arc<Space>,
    thread: Option<JoinHandle<()>>,
}

impl Warden {
    /// Begins; also makes room from now on when a write finds the disk full.
    pub(super) fn start(
        snapshotter: &Arc<Snapshotter>,
        space: Arc<Space>,
        limits: Limits,
    ) -> Result<Self> {
        // Weak: the space belongs to the store, and that to the snapshotter.
        let weak = Arc::downgrade(snapshotter);
        space.when_full(move || {
            let Some(snapshotter) = weak.upgrade() else {
                return false;
            };
            snapshotter.make_room(&limits).unwrap_or_else(|error| {
                tracing::error!(%error, "make room on a full disk");
                false
            })
        });
        let watched = Arc::clone(&space);
        let weak = Arc::downgrade(snapshotter);
        let work = move || {
            let mut pause = FIRST_PAUSE;
            while let Some(snapshotter) = weak.upgrade() {
                let began = watched.now();
                let is_within = match snapshotter.keep_within(&limits) {
                    Ok(Some(levels)) => {
                        let allowance = limits.allowance(levels);
                        watched.allow(began, allowance);
                        !allowance.is_short
                    }
                    Ok(None) => true,
                    Err(error) => {
                        tracing::error!(%error, "keep the store within its limits");
                        false
                    }
                };
                drop(snapshotter);
                let most = if is_within { INTERVAL } else { pause };
                pause = if is_within {
                    FIRST_PAUSE
                } else {
                    LAST_PAUSE.min(2 * pause)
                };
                let begun = Instant::now();
                if !watched.wait(most) {
                    return;
                }
                if begun.elapsed() < most {
                    // Something has changed, and may be still on its way.
                    pause = FIRST_PAUSE;
                }
            }
        };
        let thread = std::thread::Builder::new().name("xebec-warden".to_owned());
        let thread = thread
            .spawn(work)
            .map_err(|error| Error::Internal(format!("start a thread: {error}")))?;
        Ok(Self {
            space,
            thread: Some(thread),
        })
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.space.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that keeps the store within its limits has died");
        }
    }
}
