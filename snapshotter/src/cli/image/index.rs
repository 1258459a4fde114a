//! `image index`: the image stays as it is, its indexes come to lie beside it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::HumanBytes;

use super::super::prefetch::manifest;
use super::AccessArgs;
use super::progress::short;
use crate::convert::Place;
use crate::discover::Image;
use crate::error::Result;
use crate::fetch::manifest::Descriptor;
use crate::fetch::{ImageRef, Platform, Registry};
use crate::ingest::beside::{self, Described};
use crate::mount::is_ordinary;

/// Layers that are read at the same time.
const AT_ONCE: usize = 4;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Image in a registry: HOST/NAME:TAG
    #[arg(value_name = "REF")]
    image: ImageRef,
    /// The image for this platform (OS/ARCH[/VARIANT]) [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Put the indexes beside the image in its registry; without it only their sizes are shown
    #[arg(long)]
    push: bool,
    #[command(flatten)]
    access: AccessArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut place = Place::Registry(args.image.clone());
    let registry = Arc::new(Registry::new(args.access.apply(&mut [&mut place])?)?);
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let digest = manifest(&registry, &args.image, &platform)?;
    let image = Image::fetch(Arc::clone(&registry) as _, &args.image, Some(digest))?;
    let known = beside::known(&image)?;
    let layers = image.manifest().layers.iter();
    let ordinary = layers.filter(|layer| is_ordinary(layer));
    let (done, todo): (Vec<_>, Vec<_>) =
        ordinary.partition(|layer| known.contains_key(&layer.digest.to_string()));
    for layer in done {
        eprintln!("{} has an index in the registry", short(&layer.digest));
    }
    let described = describe(&image, todo)?;
    if !args.push {
        return Ok(());
    }
    match beside::push(&*registry, &image, &described)? {
        Some(digest) => println!("{}@{digest}", args.image.name()),
        None => eprintln!("nothing to push"),
    }
    Ok(())
}

/// Reads the layers, several at a time; the first error counts.
fn describe(image: &Image, layers: Vec<&Descriptor>) -> Result<Vec<Described>> {
    let threads = AT_ONCE.min(layers.len());
    let queue = Mutex::new(VecDeque::from(layers));
    let done = Mutex::new(Vec::new());
    let next = || {
        let queue = queue.lock();
        queue.unwrap_or_else(PoisonError::into_inner).pop_front()
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(layer) = next() {
                    let described = beside::describe(image, layer).inspect(|described| {
                        eprintln!(
                            "{} {}: index of {}",
                            short(&layer.digest),
                            HumanBytes(layer.size),
                            HumanBytes(described.index.len() as u64)
                        );
                    });
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push(described);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter().collect()
}
