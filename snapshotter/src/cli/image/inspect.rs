//! `image inspect`.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;

use indicatif::HumanBytes;

use super::progress::Progress;
use super::{AccessArgs, Output, to_json};
use crate::convert::{self, How, InspectOptions, InspectedLayer, Inspection, LayerFormat, Place};
use crate::error::{Error, Result};
use crate::fetch::{Platform, Registry};
use crate::profile::Profile;

/// Wasted files that are shown to people.
const WORST: usize = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Image to look at: HOST/NAME:TAG, oci:DIR[:NAME], oci-archive:FILE[:NAME],
    /// docker-archive:FILE[:NAME] or containerd:NAME
    #[arg(value_name = "REF")]
    image: Place,
    /// Look at the image for this platform (OS/ARCH[/VARIANT]) [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// List every file that a container sees
    #[arg(long)]
    files: bool,
    /// Do not read layers that have no index, so say nothing of their files
    #[arg(long)]
    quick: bool,
    /// Profile of this image's starts (`profile export`): show what they read
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Directory for temporary files [default: $TMPDIR, else /var/tmp]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Format of the result on standard output
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
    #[command(flatten)]
    access: AccessArgs,
}

pub(super) fn run(mut args: Args) -> Result<()> {
    let registry = Registry::new(args.access.apply(&mut [&mut args.image])?)?;
    let profile = match &args.profile {
        Some(path) => {
            let json = std::fs::read(path).map_err(Error::io("read", path))?;
            Some(Profile::parse(&json, &path.display().to_string())?)
        }
        None => None,
    };
    let options = InspectOptions {
        image: args.image,
        platform: args.platform.unwrap_or_else(Platform::host),
        read_layers: !args.quick,
        list_files: args.files,
        profile,
        temp_dir: args.temp_dir.unwrap_or_else(convert::default_temp_dir),
    };
    let progress = Progress::new(std::io::stderr().is_terminal());
    let inspection = convert::inspect(&registry, &options, &progress)?;
    progress.clear();
    let text = match args.format {
        Output::Text => describe(&inspection),
        Output::Json => to_json(&inspection)?,
    };
    println!("{}", text.trim_end());
    Ok(())
}

/// The image, a line a layer, and what is to be said of all of them.
fn describe(inspection: &Inspection) -> String {
    let mut text = format!(
        "{}@{}  {}\n",
        inspection.image,
        inspection.digest,
        HumanBytes(inspection.size)
    );
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{arguments}");
    };
    for layer in &inspection.layers {
        line(format_args!("{}", describe_layer(layer)));
    }
    if let Some(waste) = &inspection.waste {
        let (size, all) = (HumanBytes(waste.size), HumanBytes(waste.unpacked));
        let percent = waste.efficiency * 100.0;
        line(format_args!(
            "wasted: {size} of {all} in {} files; efficiency {percent:.1} %",
            waste.files.len()
        ));
        for file in waste.files.iter().take(WORST).filter(|file| file.size > 0) {
            let how = match file.how {
                How::Overwritten => "overwritten",
                How::Removed => "removed",
            };
            let (size, path) = (HumanBytes(file.size).to_string(), &file.path);
            let (layer, by) = (file.layer + 1, file.hidden_by + 1);
            line(format_args!(
                "  {size:>11}  /{path}  of layer {layer}, {how} by layer {by}"
            ));
        }
    }
    if let Some(start) = &inspection.start_up {
        let (size, unpacked) = (HumanBytes(start.size), HumanBytes(start.unpacked));
        line(format_args!(
            "a start reads: {size} packed, {unpacked} unpacked, of {} files",
            start.files
        ));
    }
    for file in inspection.files.iter().flatten() {
        let mark = if file.start_up == Some(true) {
            "*"
        } else {
            " "
        };
        let (size, layer) = (file.size, file.layer + 1);
        line(format_args!("{size:>12} {layer:>3}{mark} /{}", file.path));
    }
    text
}

fn describe_layer(layer: &InspectedLayer) -> String {
    let format = match layer.format {
        LayerFormat::Estargz => "eStargz (lazy)",
        LayerFormat::ZstdChunked => "zstd:chunked (lazy)",
        LayerFormat::Indexed => "with an index (lazy)",
        LayerFormat::NydusBlob => "Nydus blob (lazy)",
        LayerFormat::NydusBootstrap => "Nydus bootstrap (lazy)",
        LayerFormat::Gzip => "gzip",
        LayerFormat::Zstd => "zstd",
        LayerFormat::Tar => "tar",
        LayerFormat::Other => "other",
    };
    let size = HumanBytes(layer.size).to_string();
    let mut text = format!("{}  {size:>11}  {format}", layer.digest);
    let mut add = |part: String| {
        text.push_str(", ");
        text.push_str(&part);
    };
    if let (Some(unpacked), Some(files)) = (layer.unpacked, layer.files) {
        add(format!("{} in {files} files", HumanBytes(unpacked)));
    }
    if let Some(chunks) = layer.chunks {
        add(format!("{chunks} chunks"));
    }
    if let Some(start) = &layer.start_up {
        add(format!("a start reads {}", HumanBytes(start.size)));
    }
    text
}
