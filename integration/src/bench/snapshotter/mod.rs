//! `bench snapshotter`: cold starts over slow links, what is read of a mounted image, and what
//! images and daemons cost, beside containerd's own snapshotters in the same run.

mod again;
mod bare;
mod cold;
mod convert;
mod crowd;
mod daemon;
mod index;
mod mounted;
mod node;
mod peers;
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
use super::parts::Measurable;
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
/// Rounds of second starts for each of those: cheap, and held against a peer to a twentieth.
const STARTS: u32 = 10;
/// The format of images that are converted by a profile.
const GUIDED: &str = "zstd-chunked";
/// Where profiles are kept, out of what a node forgets.
const PROFILES: &str = "/root/profiles";

/// An image in the registry and what is known of it.
struct Image {
    recipe: &'static Recipe,
    /// As it was built: ordinary gzip layers.
    ordinary: String,
    /// Converted, without any more.
    estargz: String,
    /// Bytes of the ordinary layers.
    layer_bytes: u64,
}

/// What was recorded of a start, and the image that was converted by it.
struct Profile {
    /// The image that was started for it: eStargz in chunks of a page each.
    fine: String,
    /// What was recorded of that.
    recorded: PathBuf,
    /// The image converted by that, to the format in which it needs the fewest bytes.
    image: String,
    /// The same start in terms of that image.
    file: PathBuf,
    /// What it needs on the wire.
    bytes: u64,
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
        let images = IMAGES.map(|name| prepare(&converted, name));
        let images = images.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(Self {
            node,
            images,
            converted,
        })
    }
}

/// A part of the suite, whose rounds are apart from the others': it has the node to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Part {
    /// Cold starts over slow links
    Cold,
    /// Starts of images that are on the node
    Again,
    /// What conversions cost
    Convert,
    /// Index and metadata image of many files
    Metadata,
    /// Reads of a mounted image
    Reads,
    /// Memory with many images, start-up with many snapshots
    Crowd,
}

impl Measurable for Part {
    type Fixtures = Fixtures;

    fn measure(self, fixtures: &Fixtures, rounds: u32, random: &mut Random) -> Result<Run> {
        let tell = |round: u32| eprintln!("... {self:?}: round {round}");
        match self {
            Self::Cold => {
                let (node, images) = (&fixtures.node, &fixtures.images);
                let converted = &fixtures.converted;
                let profiles = images.iter().map(|image| learn(node, converted, image));
                let profiles = profiles.collect::<Result<Vec<_>>>()?;
                let mut starts = cold::tasks(node, images, &profiles);
                starts.extend(peers::tasks(node, converted, images, &profiles));
                Ok(suite::run(&mut starts, rounds, random, tell))
            }
            Self::Again => {
                let (node, images) = (&fixtures.node, &fixtures.images);
                again::prepare(node, images)?;
                let mut starts = again::tasks(node, images);
                Ok(suite::run(&mut starts, rounds * STARTS, random, tell))
            }
            Self::Convert => {
                let mut conversions = convert::tasks(&fixtures.images);
                Ok(suite::run(&mut conversions, rounds, random, tell))
            }
            Self::Metadata => {
                let mut metadata = tasks(index::operations());
                Ok(suite::run(&mut metadata, rounds * READS, random, tell))
            }
            Self::Reads => {
                let image = fixtures.images.last();
                let image = image.ok_or_else(|| Error::invalid("images", "there are none"))?;
                let mounted = Mounted::prepare(&fixtures.node, image)?;
                let mut reads = mounted::tasks(&mounted);
                Ok(suite::run(&mut reads, rounds * READS, random, tell))
            }
            Self::Crowd => {
                let crowd = Crowd::prepare(fixtures)?;
                let mut weighings = crowd::weigh_tasks(&crowd);
                let mut all = suite::run(&mut weighings, 1, random, tell);
                // Both daemons were weighed first: what is left of that is found again.
                let mut restarts = crowd::restart_tasks(&crowd);
                all.extend(suite::run(&mut restarts, rounds, random, tell));
                Ok(all)
            }
        }
    }
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

/// Has an image in the registry, ordinary and converted.
fn prepare(converted: &Converted, name: &'static str) -> Result<Image> {
    let recipe = recipes::ALL.iter().find(|recipe| recipe.name == name);
    let recipe = recipe.ok_or_else(|| Error::invalid(name, "no such image in the corpus"))?;
    let ordinary = push(name)?;
    Ok(Image {
        recipe,
        layer_bytes: layer_bytes(&ordinary)?,
        estargz: converted.convert(&ordinary, "estargz")?,
        ordinary,
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

/// Starts an image on a node that has never seen it, and converts it by the profile of that.
fn learn(node: &Node, converted: &Converted, image: &Image) -> Result<Profile> {
    fs::create_dir_all(PROFILES).map_err(Error::file("create", Path::new(PROFILES)))?;
    let file = |what: &str| Path::new(PROFILES).join(format!("{}{what}.json", image.recipe.name));
    let (recorded, file) = (file(""), file("-guided"));
    // The second start, by the profile of the first one, adds what the kernel reads ahead when
    // nothing makes it wait; so does that of the converted image, which is cut otherwise.
    let fine = converted.convert_finely(&image.ordinary)?;
    record(node, image.recipe, &fine, None, &recorded)?;
    record(node, image.recipe, &fine, Some(&recorded), &recorded)?;
    let guided = converted.convert_by(&recorded, &fine, GUIDED, Some(&file))?;
    record(node, image.recipe, &guided, Some(&file), &file)?;
    let json = fs::read(&file).map_err(Error::file("read", &file))?;
    Ok(Profile {
        fine,
        recorded,
        image: guided,
        bytes: profile_bytes(&json)?,
        file,
    })
}

/// Starts an image on a node that has never seen it, but knows a profile perhaps, and writes what is
/// known then to `file`.
fn record(
    node: &Node,
    recipe: &Recipe,
    image: &str,
    known: Option<&Path>,
    file: &Path,
) -> Result<()> {
    node.forget(known)?;
    node::pull(image, Stack::XEBEC)?;
    node::run(Stack::XEBEC, recipe, image)?;
    node.pause()?;
    let export = ["xebec-snapshotter", "profile", "export", "-o"];
    output(&[&export[..], &[&file.to_string_lossy(), image]].concat())?;
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
    struct Document {
        /// Layer, first byte, number of bytes, milliseconds.
        reads: Vec<(usize, u64, u64, u32)>,
    }
    let profile: Document =
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
