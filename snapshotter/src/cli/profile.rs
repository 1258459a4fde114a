//! `xebec-snapshotter profile`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::prefetch::manifest;
use crate::config::Config;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::{ImageRef, Platform, Registry, RegistryConfig};
use crate::profile::{MAX_LEN, Profile, Profiles, remote};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write what this node has recorded of an image's first seconds
    Export(Box<ExportArgs>),
    /// Give this node a profile that another one has recorded
    Import(ImportArgs),
    /// Put what this node has recorded beside the image in its registry
    Push(Box<RegistryArgs>),
    /// Give this node the profile that lies beside the image in its registry
    Pull(Box<RegistryArgs>),
}

#[derive(Debug, clap::Args)]
struct ExportArgs {
    /// The image, which its registry is asked for
    image: ImageRef,
    /// File to write; standard output if it is not given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image for this platform [default: that of this machine]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, clap::Args)]
struct RegistryArgs {
    /// The image, which its registry is asked for
    image: ImageRef,
    /// The image for this platform [default: that of this machine]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, clap::Args)]
struct ImportArgs {
    /// Files to read; `-` is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// Configuration file of the daemon [default: /etc/xebec/snapshotter.toml, a user's own below
    /// ~/.config, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory that the daemon keeps everything in (overrides the file)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl NodeArgs {
    fn load(&self) -> Result<(Config, Profiles)> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(root) = &self.root {
            config.root.clone_from(root);
        }
        let profiles = Profiles::below(&config.root.join("lazy"));
        Ok((config, profiles))
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Export(args) => export(args),
        Command::Import(args) => import(args),
        Command::Push(args) => push(args),
        Command::Pull(args) => pull(args),
    }
}

/// An image for a platform, as its registry describes it.
fn find(
    registry: &Arc<Registry>,
    reference: &ImageRef,
    platform: Option<&Platform>,
) -> Result<Image> {
    let platform = platform.cloned().unwrap_or_else(Platform::host);
    let digest = manifest(registry, reference, &platform)?;
    Image::fetch(Arc::clone(registry) as _, reference, Some(digest))
}

fn registry(config: &Config) -> Result<Arc<Registry>> {
    Registry::new(RegistryConfig::from(&config.registry)).map(Arc::new)
}

/// What this node knows of an image.
fn known(config: &Config, profiles: &Profiles, image: &Image) -> Result<Profile> {
    profiles.get(&image.chain())?.ok_or_else(|| {
        Error::NotFound(format!(
            "profile of {} below {}",
            image.reference(),
            config.root.display()
        ))
    })
}

fn push(args: &RegistryArgs) -> Result<()> {
    let (config, profiles) = args.node.load()?;
    let registry = registry(&config)?;
    let image = find(&registry, &args.image, args.platform.as_ref())?;
    let profile = known(&config, &profiles, &image)?;
    match remote::push(&*registry, &image, profile)? {
        Some(digest) => println!("{}@{digest}", args.image.name()),
        None => eprintln!("the registry has all of it already"),
    }
    Ok(())
}

fn pull(args: &RegistryArgs) -> Result<()> {
    let (config, profiles) = args.node.load()?;
    let image = find(&registry(&config)?, &args.image, args.platform.as_ref())?;
    let profile = remote::find(&image)?
        .ok_or_else(|| Error::NotFound(format!("profile beside {} in its registry", args.image)))?;
    let (runs, reads) = (profile.runs(), profile.reads().len());
    profiles.merge(profile)?;
    eprintln!("{}: {reads} reads of {runs} runs", args.image);
    Ok(())
}

fn export(args: &ExportArgs) -> Result<()> {
    let (config, profiles) = args.node.load()?;
    let image = find(&registry(&config)?, &args.image, args.platform.as_ref())?;
    let profile = known(&config, &profiles, &image)?;
    let json = profile.to_json()?;
    match &args.output {
        Some(path) => fs::write(path, json).map_err(Error::io("write", path)),
        None => std::io::stdout()
            .write_all(&json)
            .map_err(Error::io("write", Path::new("standard output"))),
    }
}

fn import(args: &ImportArgs) -> Result<()> {
    let (_, profiles) = args.node.load()?;
    for path in &args.files {
        let json = read(path).map_err(Error::io("read", path))?;
        let profile = Profile::parse(&json, &path.display().to_string())?;
        let (layers, reads) = (profile.layers().len(), profile.reads().len());
        profiles.merge(profile)?;
        eprintln!("{}: {layers} layers, {reads} reads", path.display());
    }
    Ok(())
}

/// A file's content, and a little more than may be read of one that is too long.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut json = Vec::new();
    let limit = MAX_LEN as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut json)?;
    } else {
        fs::File::open(path)?.take(limit).read_to_end(&mut json)?;
    }
    Ok(json)
}
