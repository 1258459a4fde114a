//! Cold starts: from the request of a pull to the container's first line, on a node that has never
//! seen the image.

use std::path::Path;

use super::super::suite::{Feed, OURS, Sampler, Task, Unit};
use super::node::{NETWORKS, Network, Node, Started};
use super::{Image, OVERLAYFS, Profile};
use crate::ctr::Stack;
use crate::error::Result;

/// What nothing can be faster than.
const FLOOR: &str = "floor";
/// The time that an image's layers are on the wire, and a warm start.
const WIRE: &str = "wire + warm start";

/// Snapshotters of containerd's own that pull everything first.
pub(super) const FULL: [&str; 2] = [OVERLAYFS, "erofs"];

/// A row of cold starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An image that was converted by a profile of such a start, and that profile.
    Profile,
    /// The same without a profile.
    Estargz,
    /// The ordinary image, without any index.
    Plain,
}

const KINDS: [Kind; 3] = [Kind::Profile, Kind::Estargz, Kind::Plain];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Estargz => "estargz",
            Self::Plain => "plain",
        }
    }

    pub(super) fn row(self, network: Network, image: &Image) -> String {
        format!("{}, {}: {}", self.name(), network.name, image.recipe.name)
    }
}

fn feed(row: String, unit: Unit, contestant: &'static str) -> Feed {
    Feed {
        row: row.into(),
        unit,
        contestant,
    }
}

/// All cold starts of `images`, and what is measured along with them.
pub(super) fn tasks<'a>(
    node: &'a Node,
    images: &'a [Image],
    profiles: &'a [Profile],
) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    for network in NETWORKS {
        for (image, profile) in images.iter().zip(profiles) {
            tasks.push(ours(node, network, image, profile));
            tasks.extend(FULL.map(|snapshotter| full(node, network, image, snapshotter)));
        }
    }
    tasks
}

/// The rows that are the same for a full pull as for ours, in the order of their figures.
fn common(network: Network, image: &Image, contestant: &'static str) -> Vec<Feed> {
    let row = |what: &str| format!("{what}, {}: {}", network.name, image.recipe.name);
    let rows = [
        ("bytes", Unit::Kibibytes),
        ("pull alone", Unit::Milliseconds),
    ];
    rows.map(|(what, unit)| feed(row(what), unit, contestant))
        .into()
}

/// Ours in each of its ways one after the other, and what the figures are held against.
fn ours<'a>(node: &'a Node, network: Network, image: &'a Image, profile: &'a Profile) -> Task<'a> {
    let ms = Unit::Milliseconds;
    let rows = KINDS.map(|kind| kind.row(network, image));
    let [guided, _, plain] = rows.clone();
    let mut feeds: Vec<_> = rows.into_iter().map(|row| feed(row, ms, OURS)).collect();
    feeds.push(feed(guided, ms, FLOOR));
    feeds.push(feed(plain, ms, WIRE));
    feeds.extend(common(network, image, OURS));
    let sampler = move |_| {
        let stack = Stack::XEBEC;
        let start = |reference: &str, profile: Option<&Path>| -> Result<Started> {
            node.forget(profile)?;
            node.cold(stack, network, image.recipe, reference)
        };
        let guided = start(&profile.image, Some(&profile.file))?;
        let warm = node.warm(stack, network, image.recipe, &profile.image)?;
        let lazy = start(&image.estargz, None)?;
        let plain = start(&image.ordinary, None)?;
        let wire = network.wire_ms(profile.bytes);
        Ok(vec![
            guided.ms,
            lazy.ms,
            plain.ms,
            wire + network.round_trips_ms(3) + warm,
            network.wire_ms(image.layer_bytes) + warm,
            guided.bytes as f64 / 1024.0,
            guided.pull_ms,
        ])
    };
    Task {
        feeds,
        every: 1,
        warms_up: false,
        sampler: Ok(Box::new(sampler)),
    }
}

/// A full pull, which is the same for every row.
fn full<'a>(
    node: &'a Node,
    network: Network,
    image: &'a Image,
    snapshotter: &'static str,
) -> Task<'a> {
    let rows = KINDS.map(|kind| kind.row(network, image));
    let mut feeds: Vec<_> = rows
        .into_iter()
        .map(|row| feed(row, Unit::Milliseconds, snapshotter))
        .collect();
    feeds.extend(common(network, image, snapshotter));
    let stack = Stack {
        snapshotter,
        ..Stack::XEBEC
    };
    let sampler = move |_| {
        node.forget(None)?;
        let started = node.cold(stack, network, image.recipe, &image.ordinary)?;
        let Started { ms, pull_ms, bytes } = started;
        Ok(vec![ms, ms, ms, bytes as f64 / 1024.0, pull_ms])
    };
    let can = node.can_pull(stack, &image.ordinary);
    if can.is_err() {
        // One row is enough to say that it is not there.
        feeds.truncate(1);
    }
    Task {
        feeds,
        every: 1,
        warms_up: false,
        sampler: can.map(|()| -> Sampler<'a> { Box::new(sampler) }),
    }
}
