//! Converting an image by what a container of it really reads.
//!
//! The image is unpacked, run by an OCI runtime, and watched: `rootfs` unpacks, `bundle` says what to
//! run, `record` hears which files are opened (fanotify) and asks the page cache, which was emptied
//! before, what of them was read. The files come first in the converted layers, and what was read
//! becomes a profile of them.

mod bundle;
mod record;
mod rootfs;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use self::bundle::Bundle;
use self::record::Recorder;
use super::guided::{Optimized, Recorded, convert_by};
use super::image::{Image, Options, plan};
use super::progress::Observer;
use super::spool::spool;
use super::store::Store;
use super::undo::Undo;
use crate::error::{Error, Result};
use crate::fetch::{Platform, Registry};

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

/// Runs the image for this machine's platform and converts it by what was seen.
pub fn optimize(
    registry: &Registry,
    options: &Options,
    trial: &Trial,
    observer: &dyn Observer,
    undo: &Undo,
) -> Result<Optimized> {
    let recorded = run(registry, options, trial, observer, undo).inspect_err(|_| undo.run())?;
    let mut options = options.clone();
    options.platforms = vec![Platform::host()];
    convert_by(registry, &options, &recorded, 0, observer, undo)
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
