//! Second starts: of images that the node has started before, by several snapshotters in turns.

use super::super::suite::{Feed, OURS, Sampler, Task, Unit};
use super::Image;
use super::cold::FULL;
use super::node::{GIGABIT, Node};
use crate::ctr::Stack;
use crate::error::Result;

/// Who starts an image, and which form of it.
#[derive(Debug, Clone, Copy)]
struct Side {
    contestant: &'static str,
    snapshotter: &'static str,
}

impl Side {
    fn all() -> impl Iterator<Item = Self> {
        let full = FULL.map(|snapshotter| (snapshotter, snapshotter));
        let sides = [(OURS, Stack::XEBEC.snapshotter)].into_iter().chain(full);
        sides.map(|(contestant, snapshotter)| Self {
            contestant,
            snapshotter,
        })
    }

    /// With the same runtime, whoever has the image.
    fn stack(self) -> Stack {
        Stack {
            snapshotter: self.snapshotter,
            ..Stack::XEBEC
        }
    }

    fn form(self, image: &Image) -> &str {
        if self.contestant == OURS {
            &image.estargz
        } else {
            &image.ordinary
        }
    }
}

/// Has the node pull and start each image for every snapshotter that can.
pub(super) fn prepare(node: &Node, images: &[Image]) -> Result<()> {
    node.forget(None)?;
    for side in Side::all() {
        for image in images {
            let form = side.form(image);
            if node.can_pull(side.stack(), form).is_ok() {
                node.cold(side.stack(), GIGABIT, image.recipe, form)?;
            }
        }
    }
    Ok(())
}

/// A start of each image by each of them.
pub(super) fn tasks<'a>(node: &'a Node, images: &'a [Image]) -> Vec<Task<'a>> {
    let each = images
        .iter()
        .flat_map(|image| Side::all().map(move |side| (image, side)));
    each.map(|(image, side)| {
        let form = side.form(image);
        let sampler = move |_| {
            let started = node.warm(side.stack(), GIGABIT, image.recipe, form);
            started.map(|ms| vec![ms])
        };
        Task {
            feeds: vec![Feed {
                row: format!("second start: {}", image.recipe.name).into(),
                unit: Unit::Milliseconds,
                contestant: side.contestant,
            }],
            every: 1,
            warms_up: true,
            sampler: node
                .can_pull(side.stack(), form)
                .map(|()| -> Sampler<'a> { Box::new(sampler) }),
        }
    })
    .collect()
}
