//! `image`: tools for images, without a daemon.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::interrupt::undo_on_signal;
use crate::config::Config;
use crate::convert::{
    self, Format, Inspection, LayerFormat, LayerReport, Observer, Options, Place, Report,
};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::{Platform, Registry, RegistryConfig};

/// Limit for one registry request with its retries.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Convert an image so that containers start before it is there
    Convert(ConvertArgs),
    /// Show an image's layers, their sizes and which can be read lazily
    Inspect(InspectArgs),
}

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

/// Format of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// How registries are reached.
#[derive(Debug, clap::Args)]
struct RegistryArgs {
    /// Configuration file whose [registry] table is used [default: /etc/xebec/snapshotter.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of HOST/hosts.toml files, as containerd's config_path
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
    /// Speak to the named registries without TLS
    #[arg(long)]
    plain_http: bool,
    /// Accept any certificate of the named registries
    #[arg(long, conflicts_with = "plain_http")]
    insecure: bool,
}

#[derive(Debug, clap::Args)]
struct ConvertArgs {
    /// Image to convert: HOST/NAME:TAG, oci:DIR[:NAME] for an OCI layout,
    /// oci-archive:FILE[:NAME] for one in a tar archive, docker-archive:FILE[:NAME] for what
    /// `docker save` writes
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
    /// Largest piece of a file that is fetched at once, in bytes [default: estargz 4194304,
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
    /// Convert layers again that are in the format already
    #[arg(long)]
    rewrite: bool,
    /// Directory for temporary files [default: $TMPDIR, else /var/tmp]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Format of the result on standard output
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// Image to look at: HOST/NAME:TAG, oci:DIR[:NAME], oci-archive:FILE[:NAME] or
    /// docker-archive:FILE[:NAME]
    #[arg(value_name = "REF")]
    image: Place,
    /// Look at the image for this platform (OS/ARCH[/VARIANT]) [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Format of the result on standard output
    #[arg(long, value_enum, default_value = "text")]
    format: Output,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Inspect(args) => run_inspect(&args),
        Command::Convert(args) => run_convert(args),
    }
}

fn run_convert(args: ConvertArgs) -> Result<()> {
    let prioritized = match &args.prioritize {
        Some(path) => {
            convert::parse_list(&std::fs::read_to_string(path).map_err(Error::io("read", path))?)
        }
        None => Vec::new(),
    };
    let registry = Registry::new(args.registry.config(&[&args.source, &args.destination])?)?;
    let options = Options {
        source: args.source,
        destination: args.destination,
        format: args.to.into(),
        platforms: args.platform,
        chunk_size: args.chunk_size,
        level: args.level,
        prioritized,
        rewrite: args.rewrite,
        temp_dir: args.temp_dir.unwrap_or_else(convert::default_temp_dir),
    };
    let progress = Progress::new(std::io::stderr().is_terminal());
    let undo = undo_on_signal()?;
    let report = convert::convert(&registry, &options, &progress, &undo)?;
    progress.clear();
    print(&report, args.format)
}

fn run_inspect(args: &InspectArgs) -> Result<()> {
    let registry = Registry::new(args.registry.config(&[&args.image])?)?;
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

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Error::Internal(format!("result as JSON: {error}")))
}

impl RegistryArgs {
    fn config(&self, places: &[&Place]) -> Result<RegistryConfig> {
        let file = Config::load(self.config.as_deref())?;
        let mut config = RegistryConfig::from(&file.registry);
        // Someone is waiting in front of a terminal.
        config.deadline = PATIENCE;
        if let Some(dir) = &self.hosts_dir {
            config.hosts_dir = Some(dir.clone());
        }
        for place in places {
            if let Place::Registry(image) = place {
                if self.plain_http {
                    config.plain_http.push(image.host().to_owned());
                }
                if self.insecure {
                    config.skip_verify.push(image.host().to_owned());
                }
            }
        }
        Ok(config)
    }
}

fn print(report: &Report, format: Output) -> Result<()> {
    let text = match format {
        Output::Text => format!("{}@{}", report.destination, report.digest),
        Output::Json => to_json(report)?,
    };
    println!("{text}");
    Ok(())
}

/// Bars on a terminal, one line a layer elsewhere.
struct Progress {
    bars: Option<MultiProgress>,
    by_layer: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Progress {
    fn new(terminal: bool) -> Self {
        Self {
            bars: terminal.then(MultiProgress::new),
            by_layer: Mutex::default(),
        }
    }

    fn clear(&self) {
        for bar in self.by_layer().values() {
            bar.finish();
        }
    }

    fn by_layer(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, ProgressBar>> {
        self.by_layer
            .lock()
            .expect("no panic while bars are changed")
    }

    fn line(&self, text: &str) {
        match &self.bars {
            // A line that cannot be drawn is not worth failing for.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }
}

impl Observer for Progress {
    fn planned(&self, layers: &[(Digest, u64)]) {
        let Some(bars) = &self.bars else {
            return;
        };
        let template = "{prefix} {bar:30} {bytes:>11} of {total_bytes:>11} {msg}";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        for (layer, size) in layers {
            let bar = bars.add(ProgressBar::new(*size).with_style(style.clone()));
            bar.set_prefix(short(layer));
            self.by_layer().insert(*layer, bar);
        }
    }

    fn read(&self, layer: &Digest, bytes: u64) {
        if let Some(bar) = self.by_layer().get(layer) {
            bar.inc(bytes);
        }
    }

    fn finished(&self, layer: &Digest, result: &LayerReport) {
        let what = if result.reused { "reused" } else { "converted" };
        let sizes = format!(
            "{} -> {}",
            HumanBytes(result.source_size),
            HumanBytes(result.size)
        );
        if let Some(bar) = self.by_layer().get(layer) {
            bar.finish_with_message(format!("{what}, {}", HumanBytes(result.size)));
            return;
        }
        self.line(&format!(
            "{} {what} {} ({sizes})",
            short(layer),
            short(&result.digest)
        ));
    }

    fn note(&self, text: &str) {
        self.line(text);
    }
}

/// As many hex digits as people compare.
fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}
