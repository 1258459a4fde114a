//! `image inspect`.

use indicatif::HumanBytes;

use super::{AccessArgs, Output, to_json};
use crate::convert::{self, Inspection, LayerFormat, Place};
use crate::error::Result;
use crate::fetch::{Platform, Registry};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Image to look at: HOST/NAME:TAG, oci:DIR[:NAME], oci-archive:FILE[:NAME] or
    /// docker-archive:FILE[:NAME] or containerd:NAME
    #[arg(value_name = "REF")]
    image: Place,
    /// Look at the image for this platform (OS/ARCH[/VARIANT]) [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Format of the result on standard output
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
    #[command(flatten)]
    access: AccessArgs,
}

pub(super) fn run(mut args: Args) -> Result<()> {
    let registry = Registry::new(args.access.apply(&mut [&mut args.image])?)?;
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let inspection = convert::inspect(&registry, &args.image, &platform)?;
    let text = match args.format {
        Output::Text => describe(&inspection),
        Output::Json => to_json(&inspection)?,
    };
    println!("{text}");
    Ok(())
}

/// The image and a line a layer.
fn describe(inspection: &Inspection) -> String {
    let layers = inspection.layers.iter().map(|layer| {
        let format = match layer.format {
            LayerFormat::Estargz => "eStargz (lazy)",
            LayerFormat::ZstdChunked => "zstd:chunked (lazy)",
            LayerFormat::Gzip => "gzip",
            LayerFormat::Zstd => "zstd",
            LayerFormat::Tar => "tar",
            LayerFormat::Other => "other",
        };
        format!(
            "{}  {:>11}  {format}",
            layer.digest,
            HumanBytes(layer.size).to_string()
        )
    });
    let head = format!(
        "{}@{}  {}",
        inspection.image,
        inspection.digest,
        HumanBytes(inspection.size)
    );
    std::iter::once(head)
        .chain(layers)
        .collect::<Vec<_>>()
        .join("\n")
}
