//! `image convert`.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;

use super::progress::Progress;
use super::{AccessArgs, Output, to_json};
use crate::cli::interrupt::undo_on_signal;
use crate::convert::{self, Format, Options, Place, Report};
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::{Platform, Registry};
use crate::profile::{Profile, remote};

/// Format to convert to.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Target {
    /// gzip layers with a table of contents; any containerd can also pull them as usual
    Estargz,
    /// the same layers, each with an index by which it can be read lazily
    Index,
    /// zstd layers with a table of contents, as podman, buildah and skopeo write them; layers keep
    /// their diff IDs
    ZstdChunked,
    /// Nydus (RAFS v6): data blobs and a bootstrap; only lazy snapshotters can pull them
    Nydus,
}

impl From<Target> for Format {
    fn from(target: Target) -> Self {
        match target {
            Target::Estargz => Self::Layers(convert::Target::Estargz),
            Target::ZstdChunked => Self::Layers(convert::Target::ZstdChunked),
            Target::Index => Self::Index,
            Target::Nydus => Self::Nydus,
        }
    }
}

/// What is converted, and into what.
#[derive(Debug, clap::Args)]
pub(super) struct ConvertArgs {
    /// Image to convert: HOST/NAME:TAG, oci:DIR[:NAME] for an OCI layout,
    /// oci-archive:FILE[:NAME] for one in a tar archive, docker-archive:FILE[:NAME] for what
    /// `docker save` writes, containerd:NAME for one in containerd
    #[arg(value_name = "SRC")]
    source: Place,
    /// Where the converted image goes, in the same forms
    #[arg(value_name = "DST")]
    destination: Place,
    /// Format to convert to
    #[arg(long, value_enum, default_value = "estargz")]
    to: Target,
    /// Convert the images for these platforms (OS/ARCH[/VARIANT]) only; otherwise all of an index.
    /// For one platform the result has no index
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Largest piece of a file that is fetched at once, in bytes [default: estargz 262144,
    /// zstd-chunked 524288, nydus 1048576]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(4096..=64 << 20))]
    chunk_size: Option<u64>,
    /// Compression level: estargz 0 to 9 [default: 6], zstd-chunked and nydus
    /// 1 to 22 [default: 3]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u32).range(0..=22))]
    level: Option<u32>,
    /// File that lists, one a line, the paths a container reads first
    #[arg(long, value_name = "FILE")]
    prioritize: Option<PathBuf>,
    /// Profile of a start of SRC, as `profile export` writes it: what it names comes first in
    /// estargz and nydus, has chunks of its own in estargz and zstd-chunked, packed as small as can
    /// be, and it is told again in terms of the converted layers, beside the image where that is in
    /// a registry
    #[arg(long, value_name = "FILE")]
    pub(super) profile: Option<PathBuf>,
    /// File to write that profile to, as `profile import` takes it
    #[arg(long, value_name = "FILE")]
    pub(super) profile_output: Option<PathBuf>,
    /// For nydus: an image of that format, converted with the same chunk size, whose chunks are
    /// not stored again
    #[arg(long, value_name = "REF")]
    chunk_dict: Option<Place>,
    /// For nydus: leave the image's gzip layers as they are; only a bootstrap and what unpacks the
    /// layers in pieces are added
    #[arg(long)]
    oci_ref: bool,
    /// Convert layers again that are in the format already
    #[arg(long)]
    rewrite: bool,
    /// Directory for temporary files [default: $TMPDIR, else /var/tmp]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Format of the result on standard output
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: Output,
    #[command(flatten)]
    access: AccessArgs,
}

impl ConvertArgs {
    /// What the library is called with.
    pub(super) fn options(mut self) -> Result<(Registry, Options)> {
        let prioritized = match &self.prioritize {
            Some(path) => convert::parse_list(
                &std::fs::read_to_string(path).map_err(Error::io("read", path))?,
            ),
            None => Vec::new(),
        };
        let mut places = vec![&mut self.source, &mut self.destination];
        places.extend(&mut self.chunk_dict);
        let registry = Registry::new(self.access.apply(&mut places)?)?;
        let options = Options {
            source: self.source,
            destination: self.destination,
            format: self.to.into(),
            platforms: self.platform,
            chunk_size: self.chunk_size,
            level: self.level,
            prioritized,
            rewrite: self.rewrite,
            chunk_dict: self.chunk_dict,
            oci_ref: self.oci_ref,
            temp_dir: self.temp_dir.unwrap_or_else(convert::default_temp_dir),
        };
        Ok((registry, options))
    }
}

pub(super) fn run(args: ConvertArgs) -> Result<()> {
    let format = args.format;
    let (profile, output) = (args.profile.clone(), args.profile_output.clone());
    if profile.is_none() && output.is_some() {
        let reason = "--profile-output is for a conversion by --profile".to_owned();
        return Err(Error::InvalidArgument(reason));
    }
    let (registry, options) = args.options()?;
    check_profile_output(&options, output.as_deref())?;
    let progress = Progress::new(std::io::stderr().is_terminal());
    let Some(path) = profile else {
        let undo = undo_on_signal()?;
        let report = convert::convert(&registry, &options, &progress, &undo)?;
        progress.clear();
        return print(&report, format);
    };
    let json = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let profile = Profile::parse(&json, &path.display().to_string())?;
    let undo = undo_on_signal()?;
    let done = convert::convert_by_profile(&registry, &options, &profile, &progress, &undo)?;
    progress.clear();
    keep_profile(registry, &options, done.profile, output.as_deref())?;
    print(&done.report, format)
}

/// Refuses a place for a profile that there will not be, before anything is done.
pub(super) fn check_profile_output(options: &Options, output: Option<&Path>) -> Result<()> {
    match output {
        Some(path) if options.format == Format::Nydus => Err(Error::InvalidArgument(format!(
            "{}: a Nydus image has its list in itself and no profile",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Writes a profile of the converted image to `output`, and puts it beside the image in a registry.
pub(super) fn keep_profile(
    registry: Registry,
    options: &Options,
    profile: Option<Profile>,
    output: Option<&Path>,
) -> Result<()> {
    let Some(profile) = profile else {
        return Ok(());
    };
    if let Some(path) = output {
        write(path, &profile.to_json()?)?;
    }
    let Place::Registry(reference) = &options.destination else {
        return Ok(());
    };
    let registry = Arc::new(registry);
    let image = Image::fetch(registry.clone(), reference, None)?;
    // Of an index, the image of another platform may be the profile's: that is for its own nodes.
    if image.chain() == profile.layers() {
        remote::push(&*registry, &image, profile)?;
    }
    Ok(())
}

pub(super) fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::File::create(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(Error::io("write", path))
}

pub(super) fn print(report: &Report, format: Output) -> Result<()> {
    let text = match format {
        Output::Text => format!("{}@{}", report.destination, report.digest),
        Output::Json => to_json(report)?,
    };
    println!("{text}");
    Ok(())
}
