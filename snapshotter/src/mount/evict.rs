//! Deleting the data of layers that are not mounted.
//!
//! A layer whose data goes is taken out of use for that moment: nobody adds it, and who opens it
//! waits. What is mounted is known in three ways, each of which is enough: the chains that this
//! engine has mounted, those who have the layer open in this process (a FUSE tree that somebody
//! still uses after its unmounting, a prefetch), and the kernel, which knows who has a file open
//! (an EROFS mount of whatever daemon, also one that is detached).

use std::sync::Arc;

use super::layers::Layers;
use super::{LayerId, Lazy};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::{Footprint, Levels, Sealer, Space, Stored};

/// So few inodes are as good as none.
const FEW_INODES: u64 = 64;

impl Lazy {
    /// Deletes the data of a layer; it stays usable, and is fetched again when it is read. Gives
    /// the bytes that are free now, or `None` if it is in use.
    pub fn evict(&self, layer: LayerId) -> Result<Option<u64>> {
        let evicted = self.layers_of_node().try_in_turn(layer, || {
            // From here on until it is done, who wants to open the layer waits.
            let taken = {
                // Before the mounts: nobody who mounts waits for the disk.
                let _not_synced = self.layers_of_node().wait_for_tidier();
                let mut mounts = self.mounts();
                mounts.drop_unused_with(layer);
                !mounts.has(layer) && self.layers_of_node().take_out_of_use(layer)
            };
            if !taken {
                return Ok(None);
            }
            let evicted = self.layers_of_node().store.evict(layer.digest());
            self.forget_watched(layer);
            self.layers_of_node().settle(layer);
            evicted
        });
        let evicted = evicted.unwrap_or(Ok(None))?;
        if let Some(bytes) = evicted {
            self.space().count(bytes);
            tracing::info!(%layer, bytes, "evicted the data of a layer");
        }
        Ok(evicted)
    }

    /// Deletes the kept index of a layer that is gone.
    pub fn forget_kept(&self, kept: &Stored) -> Result<()> {
        let Stored {
            layer, footprint, ..
        } = kept;
        self.layers_of_node().store.forget_kept(layer)?;
        self.space().count(footprint.bytes);
        tracing::info!(%layer, bytes = footprint.bytes, "evicted the index of a layer that is gone");
        Ok(())
    }

    /// The kept indexes of layers that are gone.
    pub fn kept(&self) -> Result<Vec<Stored>> {
        self.layers_of_node().store.kept()
    }

    /// What a layer takes and when it was used last; `None` if it is gone.
    pub fn stored(&self, layer: &Digest) -> Result<Option<Stored>> {
        self.layers_of_node().store.stored(layer)
    }

    /// What a layer's files take on disk.
    pub fn footprint(&self, layer: LayerId) -> Result<Footprint> {
        self.layers_of_node().store.footprint(layer.digest())
    }

    /// Bytes of a layer's files that are on this node.
    pub fn local_bytes(&self, layer: LayerId) -> Result<u64> {
        Ok(self.layers_of_node().get(layer)?.blob().local_bytes())
    }

    /// What the store takes, and what is left of its file system.
    pub fn levels(&self) -> Result<Levels> {
        let root = self.root();
        let stat = rustix::fs::statvfs(root).map_err(Error::io("statfs", root))?;
        // A file system that numbers its inodes and has none left is full.
        let is_out_of_inodes = stat.f_files > 0 && stat.f_favail < FEW_INODES;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(Levels {
            used: self.layers_of_node().store.whole_footprint()?.bytes,
            free: if is_out_of_inodes { 0 } else { free },
            whole: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    /// What is written to the store, and evicted from it.
    pub fn space(&self) -> &Arc<Space> {
        self.layers_of_node().store.space()
    }

    /// What of the store is sealed.
    pub fn sealer(&self) -> &Sealer {
        self.layers_of_node().store.sealer()
    }
}

impl Layers {
    /// Takes a layer that nobody uses out of use until [`Layers::settle`]. `false`: somebody
    /// uses it.
    fn take_out_of_use(&self, id: LayerId) -> bool {
        let mut open = self.lock_open();
        if open.unsettled.contains(&id) {
            // Not waited for: who makes it may be waiting for room.
            return false;
        }
        if let Some(filler) = open.fillers.remove(&id) {
            // Closed, so that nobody who has only a weak hold of it can come back: its bitmap will
            // claim what is gone.
            match Arc::try_unwrap(filler) {
                Ok(filler) if Arc::strong_count(filler.blob()) == 1 => drop(filler),
                Ok(_) => return false,
                Err(filler) => {
                    open.fillers.insert(id, filler);
                    return false;
                }
            }
        }
        open.unsettled.insert(id);
        true
    }
}
