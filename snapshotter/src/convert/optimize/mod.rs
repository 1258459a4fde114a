//! Converting an image by what a container of it really reads.
//!
//! The image is unpacked, run by an OCI runtime, and watched: `rootfs` unpacks, `bundle` says what to
//! run, `record` hears which files are opened (fanotify) and asks the page cache, which was emptied
//! before, what of them was read. The files come first in the converted layers, and what was read
//! becomes a profile of them.

mod bundle;
mod record;
mod rootfs;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use self::bundle::Bundle;
use self::record::{Recorded, Recorder};
use super::image::{Format, Image, Options, Report, convert, plan};
use super::inspect::index_of_layer;
use super::progress::Observer;
use super::spool::spool;
use super::store::Store;
use super::target::Target;
use super::undo::Undo;
use crate::error::{Error, Result};
use crate::fetch::manifest::Document;
use crate::fetch::{Platform, Registry};
use crate::index::{Kind, LayerIndex, Listed};
use crate::profile::{Profile, Read};

/// How to run the image.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The OCI runtime's program.
    pub runtime: PathBuf,
    /// How long the container may run; it may end by itself before.
    pub limit: Duration,
    /// A line of its output that holds this text ends the trial.
    pub ready_line: Option<String>,
    /// Arguments in the place of the image's own.
    pub arguments: Vec<String>,
    /// The container has the network of the machine.
    pub host_network: bool,
}

/// What a trial has shown, and what was made of it.
#[derive(Debug)]
pub struct Optimized {
    /// The conversion.
    pub report: Report,
    /// Files that were opened, the first one first, without leading slash.
    pub opened: Vec<String>,
    /// What was read of the converted layers, where they have an index each.
    pub profile: Option<Profile>,
}

/// Runs the image for this machine's platform and converts it by what was seen.
pub fn optimize(
    registry: &Registry,
    options: &Options,
    trial: &Trial,
    observer: &dyn Observer,
    undo: &Undo,
) -> Result<Optimized> {
    let recorded = run(registry, options, trial, observer, undo).inspect_err(|_| undo.run())?;
    let opened: Vec<String> = recorded.iter().map(|file| file.path.clone()).collect();
    observer.note(&format!("{} files were opened", opened.len()));
    let mut options = options.clone();
    // zstd:chunked and indexed layers stay in their order; the profile says it all.
    if matches!(
        options.format,
        Format::Layers(Target::Estargz) | Format::Nydus
    ) {
        options.prioritized.clone_from(&opened);
    }
    options.platforms = vec![Platform::host()];
    let report = convert(registry, &options, observer, undo)?;
    let profile = match options.format {
        Format::Nydus => None,
        Format::Layers(_) | Format::Index => Some(profile(registry, &options, &recorded)?),
    };
    Ok(Optimized {
        report,
        opened,
        profile,
    })
}

fn run(
    registry: &Registry,
    options: &Options,
    trial: &Trial,
    observer: &dyn Observer,
    undo: &Undo,
) -> Result<Vec<Recorded>> {
    let source = Store::source(registry, &options.source, &options.temp_dir, undo)?;
    let top = source.manifest()?;
    let mut plan = plan(&source, &top, &[Platform::host()], observer)?;
    let image = plan.images.remove(0);
    let dir = undo.temp_dir(&options.temp_dir)?;
    let tree = dir.join("rootfs");
    unpack(&source, &image, &options.temp_dir, &tree)?;
    let bundle = Bundle::new(&image.config, trial, &tree)?;
    bundle.write(&dir.join("config.json"))?;
    let recorder = Recorder::start(&tree)?;
    let id = format!("xebec-optimize-{}", std::process::id());
    let outcome = run_container(trial, &dir, &id, undo);
    let recorded = recorder.finish()?;
    // The tree is large and no longer needed.
    undo.run();
    outcome.map(|()| recorded)
}

fn unpack(source: &Store<'_>, image: &Image, temp_dir: &Path, tree: &Path) -> Result<()> {
    std::fs::create_dir(tree).map_err(Error::io("create", tree))?;
    for layer in &image.manifest.layers {
        let what = layer.digest.to_string();
        let spool = spool(source.read(layer)?, temp_dir, &what)?;
        rootfs::apply(tree, &spool, &what)?;
    }
    Ok(())
}

/// Why a trial is over.
enum End {
    Ready,
    Exit,
    Limit,
}

fn run_container(trial: &Trial, bundle: &Path, id: &str, undo: &Undo) -> Result<()> {
    let runtime = &trial.runtime;
    let delete = {
        let (runtime, id) = (runtime.clone(), id.to_owned());
        move || {
            let mut command = Command::new(runtime);
            command.args(["delete", "--force", &id]);
            // Of a container that has ended nothing is left to delete.
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    };
    let spawn = || {
        Command::new(runtime)
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io("start", runtime))
    };
    let mut child = undo.make(spawn, delete.clone())?;
    let end = wait(&mut child, trial);
    if !matches!(end, End::Exit) {
        delete();
    }
    let status = child.wait().map_err(Error::io("wait for", runtime))?;
    if matches!(end, End::Exit) && !status.success() {
        let what = format!("container of {}", runtime.display());
        let reason = format!("ended with {status}: nothing is to be learnt from it");
        return Err(Error::Unusable { what, reason });
    }
    Ok(())
}

/// Shows the container's output until the trial is over.
fn wait(child: &mut Child, trial: &Trial) -> End {
    let (sender, receiver) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        let ready_line = trial.ready_line.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output)
                .split(b'\n')
                .map_while(std::io::Result::ok)
            {
                let line = String::from_utf8_lossy(&line);
                eprintln!("{line}");
                let is_ready = ready_line.as_ref().is_some_and(|text| line.contains(text));
                // Nobody waits any more once the trial is over.
                if is_ready && sender.send(End::Ready).is_err() {
                    return;
                }
            }
            let _ = sender.send(End::Exit);
        });
    }
    let deadline = Instant::now() + trial.limit;
    let left = deadline.saturating_duration_since(Instant::now());
    match receiver.recv_timeout(left) {
        Ok(End::Ready) => End::Ready,
        Ok(End::Exit | End::Limit) | Err(RecvTimeoutError::Disconnected) => {
            // Its output is closed, which is not yet its end.
            while Instant::now() < deadline {
                match child.try_wait() {
                    Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                    Ok(Some(_)) | Err(_) => return End::Exit,
                }
            }
            End::Limit
        }
        Err(RecvTimeoutError::Timeout) => End::Limit,
    }
}

/// What was read, as ranges of the converted layers.
fn profile(registry: &Registry, options: &Options, recorded: &[Recorded]) -> Result<Profile> {
    let undo = Undo::new();
    let (place, dir) = (&options.destination, &options.temp_dir);
    let store = Store::source(registry, place, dir, &undo)?;
    let what = format!("image {place}");
    let Document::Manifest(manifest) = store.manifest()?.document(&what)? else {
        return Err(Error::Internal(format!("{what} is an index")));
    };
    let layers = manifest.layers.iter();
    let indexes = layers
        .map(|layer| {
            let index = index_of_layer(&store, layer)?;
            let missing = || Error::Internal(format!("layer {} has no index", layer.digest));
            index.ok_or_else(missing)
        })
        .collect::<Result<Vec<_>>>()?;
    let digests = manifest.layers.iter().map(|layer| layer.digest).collect();
    Ok(Profile::new(digests, reads(&indexes, recorded)))
}

/// The ranges of the layers' blobs that hold what was read, each once.
fn reads(indexes: &[LayerIndex], recorded: &[Recorded]) -> Vec<Read> {
    let mut files: HashMap<String, (usize, u32)> = HashMap::new();
    for (number, index) in indexes.iter().enumerate() {
        index.walk(|path, listed| {
            if let Listed::Inode(id, inode) = listed
                && inode.kind() == Kind::File
            {
                files.insert(path.to_owned(), (number, id));
            }
        });
    }
    let mut seen = std::collections::HashSet::new();
    let mut reads = Vec::new();
    for file in recorded {
        let Some(&(layer, inode)) = files.get(&file.path) else {
            continue;
        };
        let index = &indexes[layer];
        let inode = index.inode(inode);
        for &(offset, len) in &file.ranges {
            for chunk in index.chunks_at(&inode, offset, len) {
                let id = index.chunk(chunk).unit;
                if seen.insert((layer, id)) {
                    let unit = index.unit(id);
                    let (offset, len) = (index.place_among_blobs(&unit), u64::from(unit.len));
                    let at = file.at;
                    reads.push(Read {
                        layer,
                        offset,
                        len,
                        at,
                    });
                }
            }
        }
    }
    reads
}
