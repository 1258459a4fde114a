//! Keeping the store within its limits: what no snapshot needs goes first, then the data of lazy
//! layers that are not mounted, the least lately used ones first.
//!
//! Layers below an active snapshot or a view are never candidates, whoever has mounted them;
//! [`Lazy::evict`] refuses what is in use for any other reason.

use std::collections::HashSet;

use super::Snapshotter;
use super::lowers::Lowers;
use crate::error::{Error, Result};
use crate::mount::{LayerId, Lazy};
use crate::snapshots::record::Kind;
use crate::store::{Levels, Limits, oldest_first};

impl Snapshotter {
    /// Evicts until the store is within `limits`, as far as it can be done. Gives the levels
    /// after that.
    pub fn keep_within(&self, limits: &Limits) -> Result<Option<Levels>> {
        let Some(lazy) = self.lazy() else {
            return Ok(None);
        };
        let _one_at_a_time = self.evicting();
        let before = lazy.levels()?;
        if before.has_room() {
            self.take_spare();
        }
        if limits.excess(before) == 0 {
            return Ok(Some(before));
        }
        // What nobody needs.
        self.cleanup()?;
        let cleaned = lazy.levels()?;
        let excess = limits.excess(cleaned);
        if excess == 0 {
            return Ok(Some(cleaned));
        }
        self.evict(lazy, excess)?;
        lazy.levels().map(Some)
    }

    /// Makes room for a write that has found the disk full; whether there is some now.
    pub fn make_room(&self, limits: &Limits) -> Result<bool> {
        let Some(lazy) = self.lazy() else {
            return Ok(false);
        };
        let _one_at_a_time = self.evicting();
        // Who waited for another one's eviction may find that there is room.
        if limits.when_full(lazy.levels()?) == 0 {
            return Ok(true);
        }
        self.cleanup()?;
        let wanted = limits.when_full(lazy.levels()?);
        if wanted == 0 {
            return Ok(true);
        }
        let freed = self.evict(lazy, wanted)?;
        Ok(freed > 0 || lazy.levels()?.has_room())
    }

    /// Evicts until `wanted` bytes are free. Gives those that are.
    fn evict(&self, lazy: &Lazy, wanted: u64) -> Result<u64> {
        let protected = self.layers_in_use()?;
        let mut candidates = Vec::new();
        for layer in lazy.layers()? {
            if !protected.contains(&layer) {
                candidates.extend(lazy.stored(layer.digest())?);
            }
        }
        let layers: HashSet<_> = candidates.iter().map(|stored| stored.layer).collect();
        candidates.extend(lazy.kept()?);
        let mut freed = 0;
        for stored in oldest_first(candidates) {
            if freed >= wanted {
                break;
            }
            if !layers.contains(&stored.layer) {
                lazy.forget_kept(&stored)?;
                freed += stored.footprint.bytes;
                continue;
            }
            match lazy.evict(stored.layer.into()) {
                Ok(bytes) => freed += bytes.unwrap_or(0),
                // Removed meanwhile.
                Err(Error::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(layer = %stored.layer, %error, "not evicted");
                }
            }
        }
        if freed < wanted {
            tracing::warn!(
                freed,
                wanted,
                "the store stays above its limits: what is left is in use"
            );
        }
        Ok(freed)
    }

    /// The layers below every active snapshot and view: their mounts were handed out, by this
    /// daemon or an earlier one.
    pub fn layers_in_use(&self) -> Result<HashSet<LayerId>> {
        let mut used = HashSet::new();
        let catalog = self.catalog();
        for (name, _) in catalog.select(|_, record| record.kind != Kind::Committed)? {
            let parents = match catalog.chain(&name) {
                Ok((_, parents)) => parents,
                // Removed meanwhile.
                Err(Error::NotFound(_)) => continue,
                Err(error) => return Err(error),
            };
            used.extend(Lowers::of(&parents)?.chain().unwrap_or_default());
        }
        Ok(used)
    }
}
