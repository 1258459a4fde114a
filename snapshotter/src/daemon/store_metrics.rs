//! The store's part of the metrics.

use super::metrics::{family, sample};
use crate::error::Result;
use crate::mount::Lazy;
use crate::store::{Evictions, Limits};

/// What the metrics show of the store.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StoreFacts {
    /// Bytes that it takes on disk.
    pub(super) bytes: u64,
    /// Bytes that it may take, if there is a limit.
    pub(super) quota: Option<u64>,
    /// Bytes that are free on its file system.
    pub(super) free: u64,
    pub(super) evictions: Evictions,
}

impl StoreFacts {
    pub(super) fn gather(lazy: &Lazy, limits: &Limits) -> Result<Self> {
        let levels = lazy.levels()?;
        Ok(Self {
            bytes: levels.used,
            quota: limits.quota_of(levels.whole),
            free: levels.free,
            evictions: lazy.space().evictions(),
        })
    }

    pub(super) fn render(&self, out: &mut String) {
        let gauges = [
            (
                "store_bytes",
                "Bytes that lazy layers take on disk",
                Some(self.bytes),
            ),
            ("store_quota_bytes", "Bytes that they may take", self.quota),
            (
                "store_free_bytes",
                "Bytes free on their file system",
                Some(self.free),
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                family(out, name, "gauge", help);
                sample(out, name, &[], value);
            }
        }
        let counters = [
            (
                "evictions_total",
                "Layers whose data was deleted, and indexes",
                self.evictions.count,
            ),
            (
                "evicted_bytes_total",
                "Bytes that they took on disk",
                self.evictions.bytes,
            ),
        ];
        for (name, help, value) in counters {
            family(out, name, "counter", help);
            sample(out, name, &[], value);
        }
    }
}
