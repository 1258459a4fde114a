//! What conversions cost in processor time, of user mode alone as peers' recorded figures are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use super::super::suite::{Feed, OURS, Task, Unit};
use super::super::weigh;
use super::Image;
use crate::error::Result;

const FORMATS: [&str; 4] = ["estargz", "zstd-chunked", "nydus", "index"];

/// What was converted so far, and the seconds of processor time that it took.
#[derive(Debug, Default)]
pub(super) struct Converted(RefCell<BTreeMap<String, f64>>);

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
        if !self.0.borrow().contains_key(&target) {
            let convert = ["xebec-snapshotter", "image", "convert", "--to"];
            let used = weigh::command(&[&convert[..], arguments, &[&target]].concat())?;
            let seconds = used.user_ms / 1e3;
            self.0.borrow_mut().insert(target.clone(), seconds);
        }
        Ok(target)
    }
}

/// A conversion of each image to each format; once is enough for what is no time on a wall.
pub(super) fn tasks<'a>(converted: &'a Converted, images: &'a [Image]) -> Vec<Task<'a>> {
    let each = FORMATS
        .into_iter()
        .flat_map(|format| images.iter().map(move |image| (format, image)));
    each.map(|(format, image)| Task {
        feeds: vec![Feed {
            row: format!("convert to {format}: {}", image.recipe.name).into(),
            unit: Unit::ProcessorSeconds,
            contestant: OURS,
        }],
        every: u32::MAX,
        warms_up: false,
        sampler: Ok(Box::new(move |_| {
            let target = converted.convert(&image.ordinary, format)?;
            let used = converted.0.borrow().get(&target).copied();
            Ok(vec![used.unwrap_or(f64::NAN)])
        })),
    })
    .collect()
}
