//! `bench snapshotter`: cold starts over slow links, what is read of a mounted image, and what
//! images and daemons cost, beside containerd's own snapshotters in the same run.

mod cold;
mod convert;
mod crowd;
mod index;
mod mounted;
mod node;
mod reads;
mod second;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use self::convert::Converted;
use self::crowd::Crowd;
use self::mounted::Mounted;
use self::node::Node;
use super::measure::{output, version};
use super::suite::{self, Random, Run};
use super::tasks;
use crate::corpus::{Recipe, recipes};
use crate::ctr::Stack;
use crate::error::{Error, Result};
use crate::hosts::Service;

/// containerd's default snapshotter.
const OVERLAYFS: &str = "overlayfs";
/// The images whose starts are measured.
const IMAGES: [&str; 3] = ["python3-numpy", "nodejs", "openjdk"];
/// Rounds of reads of mounted images for each round of cold starts, which take much longer.
const READS: u32 = 3;
/// Where profiles are kept, out of what a node forgets.
const PROFILES: &str = "/root/profiles";

/// An image in the registry and what is known of it.
struct Image {
    recipe: &'static Recipe,
    /// As it was built: ordinary gzip layers.
    ordinary: String,
    /// Converted, without any more.
    estargz: String,
    /// The profile of a start of the converted one.
    profile: PathBuf,
    /// What that profile needs on the wire.
    profile_bytes: u64,
    /// Bytes of the ordinary layers.
    layer_bytes: u64,
}

/// What lives as long as the suite.
pub(super) struct Fixtures {
    node: Node,
    images: Vec<Image>,
    converted: Converted,
}

impl Fixtures {
    /// Starts the node's daemons, and pushes and converts images.
    pub(super) fn start() -> Result<Self> {
        let node = Node::start()?;
        let converted = Converted::default();
        let images = IMAGES.map(|name| prepare(&node, &converted, name));
        let images = images.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(Self {
            node,
            images,
            converted,
        })
    }
}

/// Measures everything, in parts whose rounds are apart: each has the node to itself.
pub(super) fn measure(fixtures: &Fixtures, rounds: u32, random: &mut Random) -> Result<Run> {
    let tell = |part: &'static str| {
        move |done: u32| eprintln!("... {part}: round {done}")
    };
    let mut starts = cold::tasks(&fixtures.node, &fixtures.images);
    starts.extend(convert::tasks(&fixtures.converted, &fixtures.images));
    let mut all = suite::run(&mut starts, rounds, random, tell("cold starts"))?;

    let mut metadata = tasks(index::operations());
    all.extend(suite::run(&mut metadata, rounds * READS, random, tell("metadata"))?);

    let image = fixtures.images.last();
    let image = image.ok_or_else(|| Error::invalid("images", "there are none"))?;
    let mounted = Mounted::prepare(&fixtures.node, image)?;
    let mut reads = mounted::tasks(&mounted);
    all.extend(suite::run(&mut reads, rounds * READS, random, tell("reads"))?);
    drop(reads);
    drop(mounted);

    let crowd = Crowd::prepare(fixtures)?;
    let mut weighings = crowd::weigh_tasks(&crowd);
    all.extend(suite::run(&mut weighings, 1, random, tell("memory"))?);
    let mut restarts = crowd::restart_tasks(&crowd);
    all.extend(suite::run(&mut restarts, rounds, random, tell("start-up"))?);
    Ok(all)
}

/// What the programs say of their versions.
pub(super) fn versions() -> BTreeMap<String, String> {
    [
        ["xebec-snapshotter", "--version"],
        ["containerd", "--version"],
        ["mkfs.erofs", "--version"],
    ]
    .into_iter()
    .map(|argv| (argv[0].to_owned(), version(&argv)))
    .collect()
}

/// Has an image in the registry, ordinary and converted, with a profile of its start.
fn prepare(node: &Node, converted: &Converted, name: &'static str) -> Result<Image> {
    let recipe = recipes::ALL.iter().find(|recipe| recipe.name == name);
    let recipe = recipe.ok_or_else(|| Error::invalid(name, "no such image in the corpus"))?;
    let ordinary = push(name)?;
    let estargz = converted.convert(&ordinary, "estargz")?;
    let profile = Path::new(PROFILES).join(format!("{name}.json"));
    record(node, recipe, &estargz, &profile)?;
    let json = fs::read(&profile).map_err(Error::file("read", &profile))?;
    Ok(Image {
        recipe,
        layer_bytes: layer_bytes(&ordinary)?,
        profile_bytes: profile_bytes(&json)?,
        ordinary,
        estargz,
        profile,
    })
}

/// Puts an image of the corpus into the registry; its reference there.
fn push(name: &str) -> Result<String> {
    let reference = format!("{}/{name}:v1", Service::REGISTRY);
    let source = format!("oci:/srv/corpus/{name}:{name}");
    let target = format!("docker://{reference}");
    let argv = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false"];
    output(&[&argv[..], &[&source, &target]].concat())?;
    Ok(reference)
}

/// Starts an image on a node that has never seen it, and takes the profile of that.
fn record(node: &Node, recipe: &Recipe, image: &str, profile: &Path) -> Result<()> {
    node.forget(None)?;
    node::pull(image, Stack::XEBEC)?;
    node::run(Stack::XEBEC, recipe, image, || crate::proxy::Counters {
        down: 0,
        up: 0,
        connections: 0,
    })?;
    node.pause()?;
    fs::create_dir_all(PROFILES).map_err(Error::file("create", Path::new(PROFILES)))?;
    let file = profile.to_string_lossy();
    output(&["xebec-snapshotter", "profile", "export", "-o", &file, image])?;
    node.resume()
}

fn layer_bytes(image: &str) -> Result<u64> {
    #[derive(Deserialize)]
    struct Manifest {
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    struct Layer {
        size: u64,
    }
    let source = format!("docker://{image}");
    let text = output(&["skopeo", "inspect", "--raw", "--tls-verify=false", &source])?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|error| Error::invalid(image, error))?;
    Ok(manifest.layers.iter().map(|layer| layer.size).sum())
}

/// The bytes that a profile names, each counted once.
fn profile_bytes(json: &[u8]) -> Result<u64> {
    #[derive(Deserialize)]
    struct Profile {
        /// Layer, first byte, number of bytes, milliseconds.
        reads: Vec<(usize, u64, u64, u32)>,
    }
    let profile: Profile =
        serde_json::from_slice(json).map_err(|error| Error::invalid("a profile", error))?;
    let mut ranges: Vec<_> = profile
        .reads
        .iter()
        .map(|&(layer, offset, len, _)| (layer, offset, offset + len))
        .collect();
    ranges.sort_unstable();
    let (mut bytes, mut seen) = (0, (0, 0));
    for (layer, begin, end) in ranges {
        let known = if seen.0 == layer { seen.1 } else { 0 };
        bytes += end.saturating_sub(begin.max(known));
        seen = (layer, end.max(known));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_a_profile_names_twice_count_once() {
        let json = br#"{"version": 1, "layers": ["a", "b"], "runs": 1,
            "reads": [[0, 100, 50, 0], [1, 100, 10, 1], [0, 120, 50, 2], [0, 100, 10, 3]]}"#;
        assert_eq!(profile_bytes(json).unwrap(), 80);
    }
}
