//! Streams of containers. The container holds pipes or a terminal; the supervisor copies between
//! them and the fifos and files that containerd names, so that containerd and the worker may come
//! and go. The worker says what is to be copied, and starts loggers.

mod ends;
mod keep;
mod logger;
pub mod overflow;
mod spilled;
mod target;
pub(crate) mod terminal;
mod view;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_local;

use crate::engine::Streams;
use crate::error::{Context, Result};
use crate::link::Link;
use crate::supervisor::message::{Copying, Levels, Storing};
use crate::task::exits::Exits;
use crate::{log, sys};
use ends::End;
pub use ends::Ends;
use keep::Keep;
use logger::Logger;
use overflow::Overflow;
use target::Target;
use terminal::Receiver;
pub use view::View;

/// Names under which streams are kept; none begins another.
const STDIN: &str = "in";
const STDOUT: &str = "out";
const STDERR: &str = "err";
const TERMINAL: &str = "tty";
const TERMINAL_STDIN: &str = "keyboard";
const LOGGER: &str = "log";

/// What containerd named for a process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// Container id, for loggers and keys.
    pub id: String,
    /// Where output is spilled to.
    pub bundle: PathBuf,
    /// Owner of the container's pipes.
    pub owner: (u32, u32),
    /// What happens to unread output of init's; without it init waits.
    pub overflow: Option<Overflow>,
    /// Where console sockets go, if the runtime wants one as a path.
    pub console_directory: Option<PathBuf>,
    /// Has streams copied and kept.
    pub link: Arc<Link>,
    /// Tells the ends of loggers.
    pub exits: Rc<Exits>,
    /// Tells the ends of outputs.
    pub ends: Rc<Ends>,
}

/// A stream as it is kept.
#[derive(Debug)]
pub struct Stream {
    /// Of a logger its pid, else empty.
    pub record: String,
    /// What a logger reads; the supervisor has the others'.
    pub fds: Vec<OwnedFd>,
}

/// What the worker has of a process' streams.
#[derive(Debug, Default)]
pub struct Io {
    outputs: Vec<End>,
    inputs: Vec<Keep>,
    stdin: Option<Keep>,
    receiver: Option<Receiver>,
    terminal: Option<Keep>,
    logger: Option<Logger>,
    /// All that the supervisor copies or has copied.
    copied: Vec<Keep>,
}

/// Where an output goes.
enum Sink {
    /// Not opened yet.
    Fifo(PathBuf),
    File(OwnedFd),
}

impl Io {
    /// Opens the named streams and starts to copy. The second value goes to the runtime.
    pub async fn open(names: &Names, setting: &Setting, exec_id: &str) -> Result<(Io, Streams)> {
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
            let source = source(path)?;
            let (reader, writer) = pipe(setting)?;
            let sink = nonblocking(writer).context(|| "prepare standard input".into())?;
            let keep = Keep::new(setting, exec_id, STDIN);
            keep.copy_from_fifo(held(pipe_to_pipe(), exec_id), source, sink);
            io.add(STDIN, keep, setting);
            streams.stdin = Some(reader);
        }
        let stdout = target::parse(&names.stdout)?;
        if let Target::Binary { program, arguments } = &stdout {
            let (out, out_end) = pipe(setting)?;
            let (err, err_end) = pipe(setting)?;
            let plan = logger_plan(program, arguments, setting, exec_id);
            io.logger = Some(Logger::start(plan, [out, err]).await?);
            (streams.stdout, streams.stderr) = (Some(out_end), Some(err_end));
            return Ok((io, streams));
        }
        let stderr = target::parse(&names.stderr)?;
        for (target, name, end) in [
            (stdout, STDOUT, &mut streams.stdout),
            (stderr, STDERR, &mut streams.stderr),
        ] {
            let Some(sink) = open_target(target)? else {
                continue;
            };
            let (reader, writer) = pipe(setting)?;
            let source = nonblocking(reader).context(|| "prepare an output".into())?;
            *end = Some(writer);
            io.copy_output(setting, exec_id, name, pipe_to_pipe(), source, sink);
        }
        Ok((io, streams))
    }

    /// Takes over the streams of an earlier worker's process.
    pub fn inherit(
        names: &Names,
        setting: &Setting,
        exec_id: &str,
        streams: BTreeMap<String, Stream>,
    ) -> Result<Io> {
        let mut io = Io::default();
        for (name, Stream { record, fds }) in streams {
            let keep = Keep::new(setting, exec_id, &name);
            let Ok(outputs) = <[OwnedFd; 2]>::try_from(fds) else {
                io.add(&name, keep, setting);
                continue;
            };
            if let Target::Binary { program, arguments } = target::parse(&names.stdout)? {
                let plan = logger::Plan::new(&program, &arguments, setting, keep);
                io.logger = Some(Logger::inherit(plan, outputs, &record));
            }
        }
        Ok(io)
    }

    /// Notes a stream that the supervisor copies.
    fn add(&mut self, name: &str, keep: Keep, setting: &Setting) {
        self.copied.push(keep.clone());
        match name {
            STDIN => {
                self.stdin = Some(keep.clone());
                self.inputs.push(keep);
            }
            TERMINAL_STDIN => self.inputs.push(keep),
            STDOUT | STDERR => self.outputs.push(setting.ends.of(keep.key())),
            TERMINAL => {
                self.outputs.push(setting.ends.of(keep.key()));
                self.terminal = Some(keep);
            }
            _ => log::error(format_args!("stream {name} of an earlier worker")),
        }
    }

    /// Takes over the terminal that the runtime made, if this process has one.
    pub async fn attach_terminal(
        &mut self,
        names: &Names,
        setting: &Setting,
        exec_id: &str,
    ) -> Result<()> {
        let Some(receiver) = self.receiver.take() else {
            return Ok(());
        };
        let master = receiver.master().await?.into_inner();
        if let Target::Fifo(path) = target::parse(&names.stdin)? {
            let source = source(path)?;
            let sink = master.try_clone();
            let sink = sink.context(|| "duplicate the terminal".into())?;
            let keep = Keep::new(setting, exec_id, TERMINAL_STDIN);
            keep.copy_from_fifo(held(through_a_buffer(), exec_id), source, sink);
            self.add(TERMINAL_STDIN, keep, setting);
        }
        let sink = self.terminal_sink(names, setting, exec_id).await?;
        self.copy_output(setting, exec_id, TERMINAL, through_a_buffer(), master, sink);
        Ok(())
    }

    /// Has an output copied.
    fn copy_output(
        &mut self,
        setting: &Setting,
        exec_id: &str,
        name: &str,
        copying: Copying,
        source: OwnedFd,
        sink: Sink,
    ) {
        let keep = Keep::new(setting, exec_id, name);
        match sink {
            Sink::File(file) => keep.copy(through_a_buffer(), source, file),
            Sink::Fifo(fifo) => {
                let storing = storing(setting, exec_id, name);
                let copying = Copying { storing, ..copying };
                keep.copy_to_fifo(held(copying, exec_id), source, fifo);
            }
        }
        self.add(name, keep, setting);
    }

    /// Where a terminal's output goes; it is read in any case.
    async fn terminal_sink(
        &mut self,
        names: &Names,
        setting: &Setting,
        exec_id: &str,
    ) -> Result<Sink> {
        match target::parse(&names.stdout)? {
            Target::Null => open_append(Path::new("/dev/null")).map(Sink::File),
            Target::Fifo(path) | Target::File(path) => open_sink(path),
            Target::Binary { program, arguments } => {
                let (out, out_end) = pipe(setting)?;
                // A terminal has no second output: the logger sees the end of it at once.
                let (err, _) = pipe(setting)?;
                let plan = logger_plan(&program, &arguments, setting, exec_id);
                self.logger = Some(Logger::start(plan, [out, err]).await?);
                let end = nonblocking(out_end).context(|| "prepare a logger's pipe".into())?;
                Ok(Sink::File(end))
            }
        }
    }

    /// The logger that reads the streams; 0 if none does.
    pub fn logger_pid(&self) -> i32 {
        self.logger.as_ref().map_or(0, Logger::pid)
    }

    /// The streams that are copied, as the supervisor says of those that are open.
    pub(crate) fn view(&self, levels: &Levels) -> Vec<View> {
        let copied = self.copied.iter();
        copied
            .map(|keep| View::new(keep.key(), levels.get(keep.key())))
            .collect()
    }

    /// Resizes the terminal, in characters; without one there is nothing to do.
    pub fn resize(&self, columns: u32, rows: u32) {
        let size = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
        if let Some(terminal) = &self.terminal {
            terminal.resize(size(columns), size(rows));
        }
    }

    /// Ends standard input once what the client has written so far is through.
    pub fn close_stdin(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.close();
        }
    }

    /// Waits until the last output is at its target, at most `limit`: a process that was left
    /// behind may hold the stream open for ever.
    pub async fn drain(&mut self, limit: Duration) {
        self.inputs.iter().for_each(Keep::done);
        let outputs = std::mem::take(&mut self.outputs);
        let copied = async {
            for output in &outputs {
                output.wait().await;
            }
        };
        if tokio::time::timeout(limit, copied).await.is_err() {
            log::warn(format_args!(
                "output is still open {limit:?} after the exit"
            ));
            self.copied.iter().for_each(Keep::done);
        }
        if let Some(logger) = self.logger.take() {
            // Out of the caller's way: a slow logger must not hold up a delete.
            drop(spawn_local(logger.end(limit)));
        }
    }
}

/// Removes what the streams of init have spilled into `bundle` and nobody has read.
pub fn remove_spilled(bundle: &Path) -> Result<()> {
    spilled::remove(bundle, &[STDOUT, STDERR, TERMINAL])
}

/// Bytes go from pipe to pipe within the kernel.
fn pipe_to_pipe() -> Copying {
    Copying {
        splices: true,
        ..Copying::default()
    }
}

/// One side is a terminal or a file.
fn through_a_buffer() -> Copying {
    Copying::default()
}

/// Init's streams wait until init is there for good.
fn held(copying: Copying, exec_id: &str) -> Copying {
    Copying {
        held: exec_id.is_empty(),
        ..copying
    }
}

/// How unread output of init's is stored, if the options ask for it. That of other processes is
/// not: who reads an exec wants every byte and is there.
fn storing(setting: &Setting, exec_id: &str, name: &str) -> Option<Storing> {
    let overflow = setting.overflow.filter(|_| exec_id.is_empty())?;
    Some(Storing {
        overflow,
        file: spilled::file(&setting.bundle, name),
        is_terminal: name == TERMINAL,
    })
}

/// Makes reads and writes of a descriptor return at once.
fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Registers a descriptor with the event loop.
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    sys::watch(nonblocking(fd)?)
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

/// A fifo that the supervisor will open for reading.
fn source(path: PathBuf) -> Result<PathBuf> {
    let found = std::fs::metadata(&path);
    found.context(|| format!("open stream {}", path.display()))?;
    Ok(path)
}

/// How the logger of a process is started.
fn logger_plan(
    program: &Path,
    arguments: &[String],
    setting: &Setting,
    exec_id: &str,
) -> logger::Plan {
    let keep = Keep::new(setting, exec_id, LOGGER);
    logger::Plan::new(program, arguments, setting, keep)
}

/// Opens where an output goes, unless that is a fifo; `None` if it is nowhere.
fn open_target(target: Target) -> Result<Option<Sink>> {
    match target {
        Target::Fifo(path) => open_sink(path).map(Some),
        Target::File(path) => Ok(Some(Sink::File(open_append(&path)?))),
        Target::Null | Target::Binary { .. } => Ok(None),
    }
}

/// Opens an output, unless it is a fifo.
fn open_sink(path: PathBuf) -> Result<Sink> {
    let is_fifo = std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_fifo());
    if is_fifo {
        return Ok(Sink::Fifo(path));
    }
    Ok(Sink::File(open_append(&path)?))
}

fn open_append(path: &Path) -> Result<OwnedFd> {
    let what = || format!("open stream {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).context(what)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .map(OwnedFd::from)
        .context(what)
}
