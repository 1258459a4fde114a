//! Streams of containers. The container holds pipes or a terminal; the shim copies between them
//! and the fifos and files that containerd names, so that containerd may come and go.

mod copy;
mod logger;
mod target;
mod terminal;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{Gid, OFlags, Uid};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_local};

use crate::engine::Streams;
use crate::error::{Context, Result};
use crate::task::exits::Reaper;
use crate::{log, sys};
use logger::Logger;
use target::Target;
use terminal::Receiver;

/// What containerd named for a process.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Source of standard input.
    pub stdin: String,
    /// Target of standard output.
    pub stdout: String,
    /// Target of standard error; unused with a terminal.
    pub stderr: String,
    /// One terminal instead of three streams.
    pub terminal: bool,
}

/// What else opening streams depends on.
#[derive(Debug, Clone)]
pub struct Setting {
    /// containerd namespace, for loggers.
    pub namespace: String,
    /// Container id, for loggers.
    pub id: String,
    /// Owner of the container's pipes.
    pub owner: (u32, u32),
    /// Where console sockets go, if the runtime wants one as a path.
    pub console_directory: Option<PathBuf>,
    /// Knows the children that are waited for.
    pub reaper: Rc<Reaper>,
}

/// The shim's side of a process' streams; dropping it ends all copying.
#[derive(Debug, Default)]
pub struct Io {
    outputs: JoinSet<()>,
    inputs: JoinSet<()>,
    close_stdin: Rc<Notify>,
    receiver: Option<Receiver>,
    master: Option<Rc<AsyncFd<OwnedFd>>>,
    logger: Option<Logger>,
}

/// A target that bytes can be copied to.
enum Sink {
    Pipe(AsyncFd<OwnedFd>),
    File(File),
}

impl Io {
    /// Opens the named streams and starts to copy. The second value goes to the runtime.
    pub async fn open(names: &Names, setting: &Setting) -> Result<(Io, Streams)> {
        let mut io = Io::default();
        let mut streams = Streams::default();
        if names.terminal {
            let by_path = setting.console_directory.is_some();
            let directory = setting
                .console_directory
                .as_deref()
                .unwrap_or(Path::new("/"));
            let (receiver, console) = terminal::offer(directory, by_path)?;
            io.receiver = Some(receiver);
            streams.console = Some(console);
            return Ok((io, streams));
        }
        if let Target::Fifo(path) = target::parse(&names.stdin)? {
            streams.stdin = Some(io.feed_stdin(&path, setting)?);
        }
        let stdout = target::parse(&names.stdout)?;
        if let Target::Binary { program, arguments } = &stdout {
            let (out, out_end) = pipe(setting)?;
            let (err, err_end) = pipe(setting)?;
            let identity = (&*setting.namespace, &*setting.id);
            let reaper = &setting.reaper;
            io.logger =
                Some(logger::start(program, arguments, identity, [out, err], reaper).await?);
            (streams.stdout, streams.stderr) = (Some(out_end), Some(err_end));
            return Ok((io, streams));
        }
        streams.stdout = io.copy_output(&stdout, setting)?;
        streams.stderr = io.copy_output(&target::parse(&names.stderr)?, setting)?;
        Ok((io, streams))
    }

    /// Takes over the terminal that the runtime made, if this process has one.
    pub async fn attach_terminal(&mut self, names: &Names) -> Result<()> {
        let Some(receiver) = self.receiver.take() else {
            return Ok(());
        };
        let master = Rc::new(receiver.master().await?);
        self.master = Some(Rc::clone(&master));
        if let Target::Fifo(path) = target::parse(&names.stdin)? {
            let source = open_fifo(&path, OFlags::RDONLY)?;
            let master = Rc::clone(&master);
            self.inputs.spawn_local(async move {
                report(
                    "copy to the terminal",
                    copy::buffered(&source, &master).await,
                );
            });
        }
        let sink = match target::parse(&names.stdout)? {
            Target::Null | Target::Binary { .. } => {
                Sink::File(open_append(Path::new("/dev/null"))?)
            }
            Target::Fifo(path) | Target::File(path) => open_sink(&path)?,
        };
        self.outputs.spawn_local(async move {
            let result = match &sink {
                Sink::Pipe(to) => copy::buffered(&master, to).await,
                Sink::File(to) => copy::to_file(&master, to).await,
            };
            report("copy from the terminal", result);
        });
        Ok(())
    }

    /// Resizes the terminal; without one there is nothing to do.
    pub fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        self.master
            .as_ref()
            .map_or(Ok(()), |master| terminal::resize(master, columns, rows))
    }

    /// Ends standard input once what the client has written so far is through.
    pub fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    /// Waits until the last output is at its target, at most `limit`: a process that was left
    /// behind may hold the stream open for ever.
    pub async fn drain(&mut self, limit: Duration) {
        self.inputs.abort_all();
        let copied = async { while self.outputs.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, copied).await.is_err() {
            log::warn(format_args!(
                "output is still open {limit:?} after the exit"
            ));
        }
        if let Some(logger) = self.logger.take() {
            // Out of the caller's way: a slow logger must not hold up a delete.
            drop(spawn_local(logger.end(limit)));
        }
    }

    /// Copies the fifo at `path` to a new pipe and returns the pipe's reading end.
    fn feed_stdin(&mut self, path: &Path, setting: &Setting) -> Result<OwnedFd> {
        let source = open_fifo(path, OFlags::RDONLY)?;
        let (reader, writer) = pipe(setting)?;
        let sink = watched(writer).context(|| "watch standard input".into())?;
        let close = Rc::clone(&self.close_stdin);
        self.inputs.spawn_local(async move {
            let result = tokio::select! {
                result = copy::splice(&source, &sink) => result,
                () = close.notified() => copy::splice_rest(&source, &sink).await,
            };
            report("copy standard input", result);
        });
        Ok(reader)
    }

    /// Copies a new pipe to `target` and returns the pipe's writing end.
    fn copy_output(&mut self, target: &Target, setting: &Setting) -> Result<Option<OwnedFd>> {
        let sink = match target {
            Target::Fifo(path) => open_sink(path)?,
            Target::File(path) => Sink::File(open_append(path)?),
            Target::Null | Target::Binary { .. } => return Ok(None),
        };
        let (reader, writer) = pipe(setting)?;
        let source = watched(reader).context(|| "watch an output".into())?;
        self.outputs.spawn_local(async move {
            let result = match &sink {
                Sink::Pipe(to) => copy::splice(&source, to).await,
                Sink::File(to) => copy::to_file(&source, to).await,
            };
            report("copy an output", result);
        });
        Ok(Some(writer))
    }
}

/// Registers a descriptor with the event loop, non-blocking.
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    sys::watch(fd)
}

fn report(what: &str, result: io::Result<()>) {
    match result {
        // The container closed its standard input before the client did.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => log::error(format_args!("{what}: {error}")),
        Ok(()) => {}
    }
}

/// A pipe whose ends belong to the owner that the options name.
fn pipe(setting: &Setting) -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe().context(|| "make a pipe".into())?;
    let ends = (OwnedFd::from(reader), OwnedFd::from(writer));
    let (uid, gid) = setting.owner;
    if (uid, gid) != (0, 0) {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::fchown(&ends.1, uid, gid).context(|| "give a pipe to IoUid".into())?;
    }
    Ok(ends)
}

/// Opens a fifo, never waiting for the other side.
fn open_fifo(path: &Path, access: OFlags) -> Result<AsyncFd<OwnedFd>> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = || {
        let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
        sys::watch(fd)
    };
    open().context(|| format!("open stream {}", path.display()))
}

/// Opens an output. A fifo is opened for reading too: then a reader that goes away leaves the
/// container waiting, not killed by SIGPIPE, and another reader may come.
fn open_sink(path: &Path) -> Result<Sink> {
    let is_fifo = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
    if is_fifo {
        return Ok(Sink::Pipe(open_fifo(path, OFlags::RDWR)?));
    }
    Ok(Sink::File(open_append(path)?))
}

fn open_append(path: &Path) -> Result<File> {
    let what = || format!("open stream {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).context(what)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .context(what)
}
