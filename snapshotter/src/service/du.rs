//! What lazy images and their layers take on this node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Snapshotter;
use super::labels;
use super::lowers::needed;
use crate::error::Result;
use crate::mount::{LayerId, Lazy};
use crate::snapshots::record::Record;
use crate::store::Limits;

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Images that were pulled lazily or streamed, by name.
    pub images: Vec<ImageUse>,
    /// The layers of the store, the ones that take most first.
    pub layers: Vec<LayerUse>,
    /// Bytes of the files of all layers together, each layer once.
    pub total: u64,
    /// Those of them that are on this node.
    pub local: u64,
    /// Bytes that the store takes on disk: data, indexes and what belongs to them, and indexes kept
    /// of layers that are gone.
    pub disk: u64,
    /// Bytes that the store may take, if there is a limit.
    pub quota: Option<u64>,
    /// Bytes free on its file system.
    pub free: u64,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    /// Its name.
    pub name: String,
    /// Digests of its layers, bottom first.
    pub layers: Vec<String>,
    /// Bytes of the files of its layers.
    pub total: u64,
    /// Those of them that are on this node.
    pub local: u64,
    /// Bytes that its layers take on disk, those that others share included.
    pub disk: u64,
    /// Bytes on disk of the layers that other images have too: they stay when this image goes.
    pub shared: u64,
    /// Last use of any of its layers, in seconds since 1970.
    pub used: u64,
    /// Whether a snapshot with mounts builds on all of its layers.
    pub mounted: bool,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerUse {
    /// Digest of its blob.
    pub digest: String,
    /// Number of images that have it.
    pub images: usize,
    /// Bytes of its files.
    pub total: u64,
    /// Those of them that are on this node.
    pub local: u64,
    /// Bytes that it takes on disk.
    pub disk: u64,
    /// Its last use, in seconds since 1970.
    pub used: u64,
    /// Whether a snapshot with mounts builds on it: such a layer is never evicted.
    pub mounted: bool,
}

impl Snapshotter {
    /// What lazy images and their layers take on this node.
    pub fn disk_use(&self, limits: &Limits) -> Result<DiskUse> {
        let Some(lazy) = self.lazy() else {
            return Ok(DiskUse::default());
        };
        let mounted = self.layers_in_use()?;
        let mut layers = HashMap::new();
        for layer in lazy.layers()? {
            if let Some(found) = measure(lazy, layer, mounted.contains(&layer))? {
                layers.insert(layer, found);
            }
        }
        let chains = self.image_chains()?;
        for chain in chains.values() {
            for layer in chain.iter().collect::<HashSet<_>>() {
                if let Some(layer) = layers.get_mut(layer) {
                    layer.images += 1;
                }
            }
        }
        let images = chains
            .into_iter()
            .map(|(name, chain)| image(name, &chain, &layers))
            .collect();
        let levels = lazy.levels()?;
        let mut layers: Vec<_> = layers.into_values().collect();
        layers.sort_by(|one, other| (other.disk, &one.digest).cmp(&(one.disk, &other.digest)));
        Ok(DiskUse {
            images,
            total: layers.iter().map(|layer| layer.total).sum(),
            local: layers.iter().map(|layer| layer.local).sum(),
            layers,
            disk: levels.used,
            quota: limits.quota_of(levels.whole),
            free: levels.free,
        })
    }

    /// The lazy layers of every image, bottom first, by the image's name.
    fn image_chains(&self) -> Result<BTreeMap<String, Vec<LayerId>>> {
        let lazy = self.catalog().select(|_, record| record.layer.is_some())?;
        let records: HashMap<&str, &Record> = lazy
            .iter()
            .map(|(name, record)| (name.as_str(), record))
            .collect();
        let mut chains = BTreeMap::<String, Vec<LayerId>>::new();
        for (_, record) in &lazy {
            let Some(image) = labels::image(&record.labels) else {
                continue;
            };
            let chain = chain_of(record, &records);
            let longest = chains.entry(image.to_owned()).or_default();
            if chain.len() > longest.len() {
                *longest = chain;
            }
        }
        Ok(chains)
    }
}

/// The lazy layers that make the tree of a snapshot, bottom first.
fn chain_of(top: &Record, records: &HashMap<&str, &Record>) -> Vec<LayerId> {
    let below = |record: &&Record| records.get(record.parent.as_deref()?).copied();
    let records: Vec<Record> = std::iter::successors(Some(top), below).cloned().collect();
    let layers = needed(&records).iter().filter_map(|record| record.layer);
    let mut chain: Vec<_> = layers.collect();
    chain.reverse();
    chain
}

/// `None`: it is gone meanwhile.
fn measure(lazy: &Lazy, layer: LayerId, mounted: bool) -> Result<Option<LayerUse>> {
    let Some(stored) = lazy.stored(layer.digest())? else {
        return Ok(None);
    };
    let (_, total) = lazy.sizes(layer)?;
    Ok(Some(LayerUse {
        digest: layer.to_string(),
        images: 0,
        total,
        local: lazy.local_bytes(layer)?,
        disk: stored.footprint.bytes,
        used: seconds(stored.used),
        mounted,
    }))
}

fn image(name: String, chain: &[LayerId], layers: &HashMap<LayerId, LayerUse>) -> ImageUse {
    let mut once = HashSet::new();
    let found: Vec<_> = chain
        .iter()
        .filter(|layer| once.insert(**layer))
        .filter_map(|layer| layers.get(layer))
        .collect();
    let sum = |value: fn(&LayerUse) -> u64| found.iter().map(|layer| value(layer)).sum();
    let shared = found.iter().filter(|layer| layer.images > 1);
    ImageUse {
        name,
        layers: chain.iter().map(ToString::to_string).collect(),
        total: sum(|layer| layer.total),
        local: sum(|layer| layer.local),
        disk: sum(|layer| layer.disk),
        shared: shared.map(|layer| layer.disk).sum(),
        used: found.iter().map(|layer| layer.used).max().unwrap_or(0),
        mounted: !found.is_empty() && found.iter().all(|layer| layer.mounted),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn an_image_sums_its_layers_and_what_it_shares() {
        let ids: Vec<LayerId> = (0..3_u8).map(|n| Digest::of(&[n]).into()).collect();
        let layer = |n: usize, images, disk, mounted| {
            let layer = LayerUse {
                digest: ids[n].to_string(),
                images,
                total: 100,
                local: 10,
                disk,
                used: n as u64,
                mounted,
            };
            (ids[n], layer)
        };
        let layers = HashMap::from([
            layer(0, 2, 1000, true),
            layer(1, 1, 500, true),
            layer(2, 1, 7, false),
        ]);
        // A layer that occurs twice takes its room once.
        let both = image("a".to_owned(), &[ids[0], ids[1], ids[0]], &layers);
        assert_eq!((both.disk, both.shared, both.used), (1500, 1000, 1));
        assert_eq!((both.total, both.local, both.mounted), (200, 20, true));
        let other = image("b".to_owned(), &[ids[0], ids[2]], &layers);
        assert_eq!((other.disk, other.mounted), (1007, false));
        // One whose layers have all gone takes nothing.
        let gone = image("c".to_owned(), &[Digest::of(b"x").into()], &layers);
        assert_eq!((gone.disk, gone.mounted), (0, false));
    }
}
