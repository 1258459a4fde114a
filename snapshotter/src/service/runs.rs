//! Which trees lie below a snapshot: directories of ordinary layers and runs of lazy ones.

use std::sync::Arc;

use crate::error::Result;
use crate::mount::{LayerId, Lazy, MountPoint};
use crate::snapshots::record::{Record, SnapshotId};

/// One lower layer of an overlay.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lower {
    /// The directory of an ordinary snapshot.
    Directory(SnapshotId),
    /// Neighbouring lazy layers, bottom first: one merged tree.
    Run(Vec<LayerId>),
}

/// Folds `parents`, topmost first, into as few lower layers as there can be, topmost first.
pub(super) fn plan(parents: &[Record]) -> Vec<Lower> {
    let mut lowers: Vec<Lower> = Vec::new();
    for parent in parents {
        match (parent.layer, lowers.last_mut()) {
            (None, _) => lowers.push(Lower::Directory(parent.id)),
            (Some(layer), Some(Lower::Run(run))) => run.insert(0, layer),
            (Some(layer), _) => lowers.push(Lower::Run(vec![layer])),
        }
    }
    lowers
}

/// A use of the mounted tree of a run; dropping it gives the use back.
pub(super) struct HeldRun {
    lazy: Arc<Lazy>,
    chain: Vec<LayerId>,
    point: MountPoint,
}

impl HeldRun {
    pub(super) fn mount(lazy: &Arc<Lazy>, chain: Vec<LayerId>) -> Result<Self> {
        let point = lazy.mount(&chain)?;
        Ok(Self {
            lazy: Arc::clone(lazy),
            chain,
            point,
        })
    }

    pub(super) fn point(&self) -> &MountPoint {
        &self.point
    }
}

impl Drop for HeldRun {
    fn drop(&mut self) {
        if let Err(error) = self.lazy.unmount(&self.chain) {
            tracing::warn!(path = %self.point.path().display(), %error, "lazy tree stays mounted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::snapshots::record::{Kind, Labels, Timestamp};

    fn layer(n: u8) -> LayerId {
        Digest::of(&[n]).into()
    }

    fn parents(lazy: &[bool]) -> Vec<Record> {
        let now = Timestamp {
            seconds: 0,
            nanos: 0,
        };
        let record = |(n, &lazy): (usize, &bool)| {
            let id = SnapshotId(n as u64);
            if lazy {
                Record::lazy(id, None, Labels::new(), now, layer(n as u8))
            } else {
                Record::new(id, Kind::Committed, None, Labels::new(), now)
            }
        };
        lazy.iter().enumerate().map(record).collect()
    }

    #[test]
    fn neighbouring_lazy_layers_become_one_tree_with_the_bottom_first() {
        let dir = |n| Lower::Directory(SnapshotId(n));
        let run = |layers: &[u8]| Lower::Run(layers.iter().copied().map(layer).collect());
        let cases = [
            (vec![], vec![]),
            (vec![false, false], vec![dir(0), dir(1)]),
            (vec![true, true, true], vec![run(&[2, 1, 0])]),
            (vec![false, true, true], vec![dir(0), run(&[2, 1])]),
            (
                vec![true, false, true, true, false],
                vec![run(&[0]), dir(1), run(&[3, 2]), dir(4)],
            ),
        ];
        for (lazy, expected) in cases {
            assert_eq!(plan(&parents(&lazy)), expected, "{lazy:?}");
        }
    }
}
