//! What conversions cost in processor time, of user mode alone as peers' recorded figures are.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use super::super::suite::{Feed, OURS, Task, Unit};
use super::super::weigh;
use super::Image;
use crate::error::Result;

const FORMATS: [&str; 4] = ["estargz", "zstd-chunked", "nydus", "index"];

/// What was converted so far, for others to start.
#[derive(Debug, Default)]
pub(super) struct Converted(RefCell<BTreeSet<String>>);

impl Converted {
    /// Converts an image of the registry; its reference there. An index is beside the image, which
    /// stays what it is.
    pub(super) fn convert(&self, image: &str, format: &str) -> Result<String> {
        let target = image.replacen(":v1", &format!(":{format}"), 1);
        self.once(target, &[format, image])
    }

    /// The same to eStargz in chunks of a page each, which records best what is read.
    pub(super) fn convert_finely(&self, image: &str) -> Result<String> {
        let target = image.replacen(":v1", ":fine", 1);
        self.once(target, &["estargz", "--chunk-size", "4096", image])
    }

    /// As [`Self::convert`], of an image that was converted, by a profile of it, which is told again
    /// in terms of the new image where `output` says.
    pub(super) fn convert_by(
        &self,
        profile: &Path,
        image: &str,
        format: &str,
        output: Option<&Path>,
    ) -> Result<String> {
        let target = format!("{image}-guided-{format}");
        let profile = profile.to_string_lossy();
        let output = output.map(Path::to_string_lossy);
        let mut arguments = vec![format, "--profile", &profile];
        if let Some(output) = &output {
            arguments.extend(["--profile-output", output]);
        }
        arguments.push(image);
        self.once(target, &arguments)
    }

    fn once(&self, target: String, arguments: &[&str]) -> Result<String> {
        if !self.0.borrow().contains(&target) {
            anew(&target, arguments)?;
            self.0.borrow_mut().insert(target.clone());
        }
        Ok(target)
    }
}

/// Converts an image, whether or not that has been done before; the seconds of processor time.
fn anew(target: &str, arguments: &[&str]) -> Result<f64> {
    let convert = ["xebec-snapshotter", "image", "convert", "--to"];
    let used = weigh::command(&[&convert[..], arguments, &[target]].concat())?;
    Ok(used.user_ms / 1e3)
}

/// A conversion of each image to each format, under names of their own.
pub(super) fn tasks(images: &[Image]) -> Vec<Task<'_>> {
    let each = FORMATS
        .into_iter()
        .flat_map(|format| images.iter().map(move |image| (format, image)));
    each.map(|(format, image)| Task {
        feeds: vec![Feed {
            row: format!("convert to {format}: {}", image.recipe.name).into(),
            unit: Unit::ProcessorSeconds,
            contestant: OURS,
        }],
        every: 1,
        warms_up: false,
        sampler: Ok(Box::new(move |_| {
            let target = format!("{}-measured-{format}", image.ordinary);
            Ok(vec![anew(&target, &[format, &image.ordinary])?])
        })),
    })
    .collect()
}
