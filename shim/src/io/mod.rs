//! Streams of containers. The container holds pipes or a terminal; the shim copies between them
//! and the fifos and files that containerd names, so that containerd may come and go.

mod backlog;
mod copy;
mod keep;
mod late;
mod logger;
pub mod overflow;
mod relay;
mod spill;
mod target;
mod terminal;
mod view;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Gid, OFlags, Uid};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet, spawn_local};

use crate::engine::Streams;
use crate::error::{Context, Result};
use crate::link::Link;
use crate::task::exits::Exits;
use crate::{log, sys};
use keep::Keep;
use logger::Logger;
use overflow::Overflow;
use relay::Store;
use target::Target;
use terminal::Receiver;
use view::Ends;
pub use view::View;

/// How long the last of an output waits for its reader, if no option says what is to happen.
const UNREAD: Duration = Duration::from_secs(3);

/// Names under which streams are kept; none begins another.
const STDIN: &str = "in";
const STDOUT: &str = "out";
const STDERR: &str = "err";
const TERMINAL: &str = "tty";
const TERMINAL_STDIN: &str = "keyboard";
const LOGGER: &str = "log";
/// Record of a standard input that ends with what has been written so far.
const CLOSING: &str = "closing";

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
    /// Keeps the descriptors of streams.
    pub link: Arc<Link>,
    /// Tells the ends of loggers.
    pub exits: Rc<Exits>,
}

/// A stream as it is kept: its descriptors and how far it is.
#[derive(Debug)]
pub struct Stream {
    /// Empty, or what the kind of stream has to remember.
    pub record: String,
    /// The container's side, then the other, if that is not a file.
    pub fds: Vec<OwnedFd>,
}

/// The shim's side of a process' streams; dropping it ends all copying.
#[derive(Debug, Default)]
pub struct Io {
    outputs: JoinSet<()>,
    inputs: JoinSet<()>,
    stdin: Option<Stdin>,
    receiver: Option<Receiver>,
    master: Option<Rc<AsyncFd<OwnedFd>>>,
    logger: Option<Logger>,
    ends: Vec<Ends>,
}

/// How standard input is closed.
#[derive(Debug)]
struct Stdin {
    close: Rc<Notify>,
    copy: AbortHandle,
    keep: Keep,
}

/// A target that bytes can be copied to.
enum Sink {
    Pipe(Rc<AsyncFd<OwnedFd>>),
    File(File),
}

/// What else there is to an output than its two ends.
struct Output {
    name: &'static str,
    keep: Keep,
    /// Where unread bytes are stored, if the options say so.
    store: Option<Store>,
    /// A fifo whose reader had not come when it was opened.
    late: Option<PathBuf>,
}

impl Sink {
    fn pipe(&self) -> Option<&Rc<AsyncFd<OwnedFd>>> {
        match self {
            Sink::Pipe(pipe) => Some(pipe),
            Sink::File(_) => None,
        }
    }
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
            let source = open_fifo(&path, OFlags::RDONLY)?;
            let (reader, writer) = pipe(setting)?;
            let sink = watched(writer).context(|| "watch standard input".into())?;
            let keep = Keep::new(setting, exec_id, STDIN);
            keep.put("", &[&sink, &source])?;
            io.feed_stdin(source, sink, keep, false);
            streams.stdin = Some(reader);
        }
        let stdout = target::parse(&names.stdout)?;
        if let Target::Binary { program, arguments } = &stdout {
            let (out, out_end) = pipe(setting)?;
            let (err, err_end) = pipe(setting)?;
            let keep = Keep::new(setting, exec_id, LOGGER);
            let plan = logger::Plan::new(program, arguments, setting, keep);
            io.logger = Some(Logger::start(plan, [out, err]).await?);
            (streams.stdout, streams.stderr) = (Some(out_end), Some(err_end));
            return Ok((io, streams));
        }
        let stderr = target::parse(&names.stderr)?;
        for (target, name, end) in [
            (stdout, STDOUT, &mut streams.stdout),
            (stderr, STDERR, &mut streams.stderr),
        ] {
            let (reader_there, late) = late::look_for_reader(&target);
            let Some(sink) = open_target(&target)? else {
                continue;
            };
            drop(reader_there);
            let (reader, writer) = pipe(setting)?;
            let source = watched(reader).context(|| "watch an output".into())?;
            let keep = Keep::new(setting, exec_id, name);
            keep.put(
                "",
                &[Some(&source), sink.pipe().map(Rc::as_ref)]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>(),
            )?;
            let output = Output {
                name,
                keep,
                store: Store::new(setting, exec_id, name, None),
                late,
            };
            io.copy_output(source, sink, output);
            *end = Some(writer);
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
        let (mut spilled, streams): (BTreeMap<_, _>, BTreeMap<_, _>) = streams
            .into_iter()
            .partition(|(name, _)| name.starts_with(spill::PREFIX));
        let mut store =
            |name| Store::new(setting, exec_id, name, spilled.remove(&spill::key(name)));
        let mut terminal = None;
        let mut terminal_stdin = None;
        for (name, Stream { record, fds }) in streams {
            let mut fds = fds
                .into_iter()
                .map(|fd| sys::watch(fd).context(|| format!("watch {name}")));
            let (Some(inner), outer) = (fds.next().transpose()?, fds.next().transpose()?) else {
                continue;
            };
            let keep = |name| Keep::new(setting, exec_id, name);
            let mut again = |name| Output {
                name,
                keep: keep(name),
                store: store(name),
                late: None,
            };
            match (&*name, outer) {
                (STDIN, Some(source)) => {
                    io.feed_stdin(source, inner, keep(STDIN), record == CLOSING);
                }
                (STDOUT, outer) => {
                    let sink = sink_again(outer, &names.stdout)?;
                    io.copy_output(inner, sink, again(STDOUT));
                }
                (STDERR, outer) => {
                    let sink = sink_again(outer, &names.stderr)?;
                    io.copy_output(inner, sink, again(STDERR));
                }
                (TERMINAL, outer) => terminal = Some((inner, sink_again(outer, &names.stdout)?)),
                (TERMINAL_STDIN, _) => terminal_stdin = Some(inner),
                (LOGGER, Some(stderr)) => {
                    let Target::Binary { program, arguments } = target::parse(&names.stdout)?
                    else {
                        continue;
                    };
                    let plan = logger::Plan::new(&program, &arguments, setting, keep(LOGGER));
                    let outputs = [inner.into_inner(), stderr.into_inner()];
                    io.logger = Some(Logger::inherit(plan, outputs, &record));
                }
                _ => log::error(format_args!("stream {name} of an earlier worker")),
            }
        }
        if let Some((master, sink)) = terminal {
            let keep = |name| Keep::new(setting, exec_id, name);
            io.copy_terminal(master, terminal_stdin, sink, store(TERMINAL), &keep);
        }
        Ok(io)
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
        let keep = |name| Keep::new(setting, exec_id, name);
        let master = receiver.master().await?;
        let stdin = match target::parse(&names.stdin)? {
            Target::Fifo(path) => Some(open_fifo(&path, OFlags::RDONLY)?),
            _ => None,
        };
        if let Some(stdin) = &stdin {
            keep(TERMINAL_STDIN).put("", &[stdin])?;
        }
        let sink = terminal_sink(&names.stdout)?;
        let kept = [Some(&master), sink.pipe().map(Rc::as_ref)];
        keep(TERMINAL).put("", &kept.into_iter().flatten().collect::<Vec<_>>())?;
        let store = Store::new(setting, exec_id, TERMINAL, None);
        self.copy_terminal(master, stdin, sink, store, &keep);
        Ok(())
    }

    /// The logger that reads the streams; 0 if none does.
    pub fn logger_pid(&self) -> i32 {
        self.logger.as_ref().map_or(0, Logger::pid)
    }

    /// The streams that are copied here as they are now.
    pub fn view(&self) -> Vec<View> {
        self.ends.iter().map(Ends::view).collect()
    }

    /// Resizes the terminal; without one there is nothing to do.
    pub fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        self.master
            .as_ref()
            .map_or(Ok(()), |master| terminal::resize(master, columns, rows))
    }

    /// Ends standard input once what the client has written so far is through.
    pub fn close_stdin(&self) {
        let open = self
            .stdin
            .as_ref()
            .filter(|stdin| !stdin.copy.is_finished());
        if let Some(stdin) = open {
            stdin.close.notify_one();
            stdin.keep.note(CLOSING);
        }
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

    /// Copies a fifo to the container's standard input.
    fn feed_stdin(
        &mut self,
        source: AsyncFd<OwnedFd>,
        sink: AsyncFd<OwnedFd>,
        keep: Keep,
        closing: bool,
    ) {
        let (source, sink) = (Rc::new(source), Rc::new(sink));
        self.ends.push(Ends::new(STDIN, &source, Some(&sink)));
        let close = Rc::new(Notify::new());
        if closing {
            close.notify_one();
        }
        let kept = keep.clone();
        let closed = Rc::clone(&close);
        let copy = self.inputs.spawn_local(async move {
            let result = tokio::select! {
                result = copy::splice(&source, &sink) => result,
                () = closed.notified() => copy::splice_rest(&source, &sink).await,
            };
            report("copy standard input", result);
            drop((source, sink));
            kept.done();
        });
        self.stdin = Some(Stdin { close, copy, keep });
    }

    /// Copies an output to its end.
    fn copy_output(&mut self, source: AsyncFd<OwnedFd>, sink: Sink, output: Output) {
        let Output {
            name,
            keep,
            store,
            late,
        } = output;
        let source = Rc::new(source);
        self.ends.push(Ends::new(name, &source, sink.pipe()));
        self.outputs.spawn_local(async move {
            let result = match (&sink, store) {
                (Sink::Pipe(to), Some(store)) => relay::relay(&source, to, store).await,
                (Sink::Pipe(to), None) => and_taken(copy::splice(&source, to).await, to).await,
                (Sink::File(to), _) => copy::to_file(&source, to).await,
            };
            report("copy an output", result);
            drop((source, sink));
            keep.done();
            if let Some(fifo) = late {
                drop(spawn_local(late::release_readers(fifo)));
            }
        });
    }

    fn copy_terminal(
        &mut self,
        master: AsyncFd<OwnedFd>,
        stdin: Option<AsyncFd<OwnedFd>>,
        sink: Sink,
        store: Option<Store>,
        keep: &dyn Fn(&'static str) -> Keep,
    ) {
        let master = Rc::new(master);
        self.master = Some(Rc::clone(&master));
        if let Some(source) = stdin {
            let source = Rc::new(source);
            self.ends.push(Ends::new(TERMINAL_STDIN, &source, None));
            let (master, keep) = (Rc::clone(&master), keep(TERMINAL_STDIN));
            self.inputs.spawn_local(async move {
                report(
                    "copy to the terminal",
                    copy::buffered(&source, &master).await,
                );
                drop(source);
                keep.done();
            });
        }
        self.ends.push(Ends::new(TERMINAL, &master, sink.pipe()));
        let keep = keep(TERMINAL);
        self.outputs.spawn_local(async move {
            let result = match (&sink, store) {
                (Sink::Pipe(to), Some(store)) => relay::relay(&master, to, store).await,
                (Sink::Pipe(to), None) => and_taken(copy::buffered(&master, to).await, to).await,
                (Sink::File(to), _) => copy::to_file(&master, to).await,
            };
            report("copy from the terminal", result);
            drop(sink);
            keep.done();
        });
    }
}

/// Removes what the streams of init have spilled into `bundle` and nobody has read.
pub fn remove_spilled(bundle: &Path) -> Result<()> {
    spill::remove(bundle, &[STDOUT, STDERR, TERMINAL])
}

/// The end of a copy to a fifo.
async fn and_taken(copied: io::Result<()>, fifo: &AsyncFd<OwnedFd>) -> io::Result<()> {
    copied?;
    copy::taken(fifo, UNREAD).await
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

/// Opens where an output goes; `None` if that is nowhere.
fn open_target(target: &Target) -> Result<Option<Sink>> {
    match target {
        Target::Fifo(path) => open_sink(path).map(Some),
        Target::File(path) => Ok(Some(Sink::File(open_append(path)?))),
        Target::Null | Target::Binary { .. } => Ok(None),
    }
}

/// Opens where a terminal's output goes; it is read in any case.
fn terminal_sink(name: &str) -> Result<Sink> {
    match target::parse(name)? {
        Target::Null | Target::Binary { .. } => {
            Ok(Sink::File(open_append(Path::new("/dev/null"))?))
        }
        Target::Fifo(path) | Target::File(path) => open_sink(&path),
    }
}

/// The sink of an earlier worker: a fifo that was kept, or else a file.
fn sink_again(kept: Option<AsyncFd<OwnedFd>>, name: &str) -> Result<Sink> {
    kept.map_or_else(|| terminal_sink(name), |pipe| Ok(Sink::Pipe(Rc::new(pipe))))
}

/// Opens an output. A fifo is opened for reading too: then a reader that goes away leaves the
/// container waiting, not killed by SIGPIPE, and another reader may come.
fn open_sink(path: &Path) -> Result<Sink> {
    let is_fifo = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
    if is_fifo {
        return Ok(Sink::Pipe(Rc::new(open_fifo(path, OFlags::RDWR)?)));
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
