//! The chains that are mounted, and who uses them.
//!
//! A tree of the kernel's that nobody uses any more stays mounted for a while: with it go its pages,
//! and what is not complete would be asked about again, read for read. Most containers that end are
//! started again. Whoever wants to delete one of its layers takes it away.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{LayerId, MountPoint, kernel, session};
use crate::error::{Error, Result};

/// A mount of either back end.
pub(super) enum Mounted {
    Fuse(session::Mounted),
    Kernel(kernel::Mounted),
}

impl Mounted {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Fuse(mounted) => mounted.path(),
            Self::Kernel(mounted) => mounted.path(),
        }
    }

    /// Takes the mount away; those who have it open keep what they have.
    pub(super) fn unmount(self) -> Result<()> {
        match self {
            Self::Fuse(mounted) => mounted.unmount(),
            Self::Kernel(mounted) => mounted.unmount(),
        }
    }

    /// Whether it can stay for a successor.
    fn outlives_us(&self) -> bool {
        match self {
            Self::Fuse(mounted) => mounted.outlives_us(),
            Self::Kernel(_) => true,
        }
    }
}

/// A mounted chain.
struct Use {
    mounted: Mounted,
    count: usize,
    /// When the last one gave it back.
    unused_since: Instant,
}

/// All mounted chains.
#[derive(Default)]
pub(super) struct Uses(HashMap<Vec<LayerId>, Use>);

/// What became of a use that was given back.
pub(super) enum Left {
    /// Others use the tree.
    Used,
    /// Nobody does, and it stays mounted for now.
    Kept,
    /// Nobody does: it is to be unmounted.
    Over(Mounted),
}

impl Uses {
    /// One more use of a chain that is mounted; whether it had none.
    pub(super) fn again(&mut self, chain: &[LayerId]) -> Option<(MountPoint, bool)> {
        let known = self.0.get_mut(chain)?;
        known.count += 1;
        let point = MountPoint(known.mounted.path().to_owned());
        Some((point, known.count == 1))
    }

    /// The first use of a chain.
    pub(super) fn begin(&mut self, chain: &[LayerId], mounted: Mounted) -> MountPoint {
        let point = MountPoint(mounted.path().to_owned());
        let first = Use {
            mounted,
            count: 1,
            unused_since: Instant::now(),
        };
        self.0.insert(chain.to_vec(), first);
        point
    }

    /// Gives one use back; a tree of the kernel's without any is kept if `keeps` says so.
    pub(super) fn end(&mut self, chain: &[LayerId], keeps: bool) -> Result<Left> {
        let known = self.0.get_mut(chain).filter(|known| known.count > 0);
        let Some(known) = known else {
            let top = chain.last().map_or_else(String::new, ToString::to_string);
            return Err(Error::NotFound(format!("mount of layer {top}")));
        };
        known.count -= 1;
        if known.count > 0 {
            return Ok(Left::Used);
        }
        known.unused_since = Instant::now();
        if keeps && matches!(known.mounted, Mounted::Kernel(_)) {
            return Ok(Left::Kept);
        }
        let over = self.0.remove(chain);
        Ok(over.map_or(Left::Used, |over| Left::Over(over.mounted)))
    }

    /// Whether a layer is part of a chain that somebody uses.
    pub(super) fn has(&self, layer: LayerId) -> bool {
        let mut used = self.0.iter().filter(|(_, known)| known.count > 0);
        used.any(|(chain, _)| chain.contains(&layer))
    }

    /// All chains that are mounted.
    pub(super) fn chains(&self) -> impl Iterator<Item = &Vec<LayerId>> {
        self.0.keys()
    }

    /// Whether something is mounted at `path`.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.0.values().any(|known| known.mounted.path() == path)
    }

    /// Unmounts what nobody uses and has a layer.
    pub(super) fn drop_unused_with(&mut self, layer: LayerId) {
        self.drop_unused(|chain, _| chain.contains(&layer));
    }

    /// Unmounts what nobody has used for so long.
    pub(super) fn drop_unused_for(&mut self, time: Duration) {
        self.drop_unused(|_, since| since.elapsed() >= time);
    }

    /// Unmounts what nobody uses and what cannot stay without this process.
    pub(super) fn drop_all(&mut self) {
        for (_, last) in self.0.drain() {
            if last.count == 0 || !last.mounted.outlives_us() {
                unmount(last.mounted);
            }
        }
    }

    fn drop_unused(&mut self, is_over: impl Fn(&[LayerId], Instant) -> bool) {
        let over = self
            .0
            .extract_if(|chain, known| known.count == 0 && is_over(chain, known.unused_since));
        for (_, known) in over {
            unmount(known.mounted);
        }
    }
}

fn unmount(mounted: Mounted) {
    if let Err(error) = mounted.unmount() {
        tracing::warn!(%error, "a mount stays");
    }
}
