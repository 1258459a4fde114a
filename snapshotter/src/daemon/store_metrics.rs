//! The store's part of the metrics.

use super::metrics::{family, sample};
use crate::error::Result;
use crate::mount::Lazy;
use crate::store::{Evictions, Limits, Sealing};

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
    /// Files that were sealed, and that were refused, where the file system can seal.
    pub(super) seals: Option<(u64, u64)>,
}

impl StoreFacts {
    pub(super) fn gather(lazy: &Lazy, limits: &Limits) -> Result<Self> {
        let levels = lazy.levels()?;
        let sealer = lazy.sealer();
        Ok(Self {
            bytes: levels.used,
            quota: limits.quota_of(levels.whole),
            free: levels.free,
            evictions: lazy.space().evictions(),
            seals: (sealer.sealing() != Sealing::Absent)
                .then(|| (sealer.sealed(), sealer.refused())),
        })
    }

    pub(super) fn render(&self, out: &mut String) {
        let (sealed, refused) = self.seals.unzip();
        let (evicted, evicted_bytes) = (self.evictions.count, self.evictions.bytes);
        let mut tell = |name, kind, help, value| {
            if let Some(value) = value {
                family(out, name, kind, help);
                sample(out, name, &[], value);
            }
        };
        let help = "Bytes that lazy layers take on disk";
        tell("store_bytes", "gauge", help, Some(self.bytes));
        let help = "Bytes that they may take";
        tell("store_quota_bytes", "gauge", help, self.quota);
        let help = "Bytes free on their file system";
        tell("store_free_bytes", "gauge", help, Some(self.free));
        let help = "Layers whose data was deleted, and indexes";
        tell("evictions_total", "counter", help, Some(evicted));
        let help = "Bytes that they took on disk";
        tell("evicted_bytes_total", "counter", help, Some(evicted_bytes));
        let help = "Files that were sealed by fs-verity";
        tell("sealed_files_total", "counter", help, sealed);
        let help = "Sealed files that were damaged or replaced";
        tell("refused_files_total", "counter", help, refused);
    }
}
