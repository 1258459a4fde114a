//! What lies below a snapshot: one merged tree of lazy layers at the bottom, directories above.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mount::{LayerId, Lazy, MountPoint};
use crate::snapshots::record::{Record, SnapshotId};

/// Those of `parents`, topmost first, that are part of the tree they make: what lies below a layer
/// that is a whole tree is not.
pub(super) fn needed(parents: &[Record]) -> &[Record] {
    let whole = parents.iter().position(|parent| parent.whole);
    whole.map_or(parents, |at| &parents[..=at])
}

/// The parents of a snapshot, by how they are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lowers {
    /// Ordinary layers, topmost first.
    ordinary: Vec<SnapshotId>,
    /// The lazy layers below them, bottom first.
    lazy: Vec<LayerId>,
}

impl Lowers {
    /// Sorts `parents`, topmost first.
    ///
    /// A lazy layer above an ordinary one is never recorded: whiteouts are resolved inside the
    /// merged tree, so they could not hide anything of an ordinary layer below it.
    pub(super) fn of(parents: &[Record]) -> Result<Self> {
        let mut lowers = Self::default();
        for parent in needed(parents) {
            match parent.layer {
                None if lowers.lazy.is_empty() => lowers.ordinary.push(parent.id),
                None => {
                    return Err(Error::Internal(format!(
                        "snapshot directory {} lies below a lazy layer",
                        parent.id
                    )));
                }
                Some(layer) => lowers.lazy.push(layer),
            }
        }
        lowers.lazy.reverse();
        Ok(lowers)
    }

    /// The chain that must be mounted, if there is one.
    pub(super) fn chain(&self) -> Option<&[LayerId]> {
        Some(self.lazy.as_slice()).filter(|chain| !chain.is_empty())
    }

    /// The paths for overlayfs, topmost first.
    pub(super) fn paths(
        &self,
        directory: impl Fn(SnapshotId) -> PathBuf,
        tree: Option<&HeldTree>,
    ) -> Vec<PathBuf> {
        let trees = tree.map(|tree| tree.point.path().to_owned());
        self.ordinary
            .iter()
            .copied()
            .map(directory)
            .chain(trees)
            .collect()
    }
}

/// A use of the mounted tree of a chain; dropping it gives the use back.
pub(super) struct HeldTree {
    lazy: Arc<Lazy>,
    chain: Vec<LayerId>,
    point: MountPoint,
}

impl HeldTree {
    pub(super) fn mount(lazy: &Arc<Lazy>, chain: &[LayerId]) -> Result<Self> {
        let point = lazy.mount(chain)?;
        Ok(Self {
            lazy: Arc::clone(lazy),
            chain: chain.to_owned(),
            point,
        })
    }

    /// Takes over the tree that is mounted already; `None` if none is.
    pub(super) fn adopt(lazy: &Arc<Lazy>, chain: &[LayerId]) -> Result<Option<Self>> {
        let point = lazy.adopt(chain)?;
        Ok(point.map(|point| Self {
            lazy: Arc::clone(lazy),
            chain: chain.to_owned(),
            point,
        }))
    }

    pub(super) fn point(&self) -> &MountPoint {
        &self.point
    }
}

impl Drop for HeldTree {
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
                Record::lazy(id, None, Labels::new(), now, layer(n as u8).into())
            } else {
                Record::new(id, Kind::Committed, None, Labels::new(), now)
            }
        };
        lazy.iter().enumerate().map(record).collect()
    }

    #[test]
    fn lazy_layers_become_one_chain_bottom_first_below_the_ordinary_ones() {
        let cases: [(&[bool], &[u64], &[u8]); 4] = [
            (&[], &[], &[]),
            (&[false, false], &[0, 1], &[]),
            (&[true, true, true], &[], &[2, 1, 0]),
            (&[false, false, true, true], &[0, 1], &[3, 2]),
        ];
        for (lazy, ordinary, chain) in cases {
            let lowers = Lowers::of(&parents(lazy)).unwrap();
            assert_eq!(
                lowers.ordinary,
                ordinary.iter().copied().map(SnapshotId).collect::<Vec<_>>()
            );
            let chain: Vec<_> = chain.iter().copied().map(layer).collect();
            assert_eq!(lowers.chain().unwrap_or_default(), chain, "{lazy:?}");
        }
    }

    #[test]
    fn what_lies_below_a_whole_tree_is_left_out() {
        let mut parents = parents(&[false, true, true, true, false]);
        parents[2].whole = true;
        let lowers = Lowers::of(&parents).unwrap();
        assert_eq!(lowers.ordinary, [SnapshotId(0)]);
        assert_eq!(lowers.lazy, [layer(2), layer(1)]);
    }

    #[test]
    fn an_ordinary_layer_below_a_lazy_one_is_refused() {
        for lazy in [&[true, false][..], &[false, true, false]] {
            Lowers::of(&parents(lazy)).unwrap_err();
        }
    }
}
