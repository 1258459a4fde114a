//! The server of all clones of one state root: one thread each, and gone with the last of them.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socketpair,
};
use rustix::process::setsid;

use super::guard::{Line, watch};
use super::home::Home;
use super::source::Images;
use super::tenant::Tenant;
use super::wire::{self, Kind};
use crate::error::{Error, Result};

/// Room of a thread, of which little is touched.
const STACK: usize = 128 << 10;
/// Clones that may wait to be taken.
const BACKLOG: i32 = 128;
/// How long a server without clones waits for the next one.
const IDLE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// How a server is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageProgram {
    /// The program, and what makes it serve: it has to call [`serve_pages`].
    pub argv: Vec<std::ffi::OsString>,
}

/// Where the server of a state root listens.
pub(super) fn socket_of(root: &Path) -> PathBuf {
    let mut name = root.as_os_str().to_owned();
    name.push("-pages.sock");
    name.into()
}

/// Serves the clones of a state root until there are none; `line` is the guard's, without which this
/// process becomes the guard of another one that serves.
///
/// # Errors
/// The socket cannot be made, or another server is there already.
pub fn serve_pages(root: &Path, line: Option<OwnedFd>) -> Result<()> {
    match line {
        Some(line) => serve(root, &Line::new(line)),
        None => guard(),
    }
}

/// Runs the same program again, with a line, and outlives it.
fn guard() -> Result<()> {
    // Whoever has started us may end without us.
    setsid().map_err(Error::os("setsid"))?;
    let home = Home::enter();
    let watched = watch_server();
    if let Some(home) = home {
        home.leave();
    }
    watched
}

/// Starts the server, and waits for its end.
fn watch_server() -> Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(Error::os("socketpair"))?;
    let mut words = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(words.next().unwrap_or_default()).args(words);
    // The descriptor is the server's standard input.
    command.stdin(Stdio::from(theirs)).arg("--guarded");
    let mut server = command
        .spawn()
        .map_err(Error::os("start the page server"))?;
    drop(command);
    watch(&ours);
    server
        .wait()
        .map(drop)
        .map_err(Error::os("wait for the page server"))
}

fn serve(root: &Path, line: &Line) -> Result<()> {
    let path = socket_of(root);
    let lock = path.with_extension("lock");
    let lock_file = fs::File::create(&lock).map_err(Error::file("create", &lock))?;
    match flock(&lock_file, FlockOperation::NonBlockingLockExclusive) {
        // It serves whoever started us, too.
        Err(Errno::WOULDBLOCK) => return Ok(()),
        locked => locked.map_err(Error::file("lock", &lock))?,
    }
    let _ = fs::remove_file(&path);
    let socket = wire::new_socket().map_err(Error::os("socket"))?;
    let address = SocketAddrUnix::new(&path).map_err(Error::file("bind", &path))?;
    bind(&socket, &address).map_err(Error::file("bind", &path))?;
    listen(&socket, BACKLOG).map_err(Error::file("listen on", &path))?;
    let clones = Arc::new(AtomicUsize::new(0));
    for number in 0.. {
        let Some(caller) = next(&socket, &clones).map_err(Error::file("accept on", &path))? else {
            break;
        };
        clones.fetch_add(1, Ordering::AcqRel);
        let (line, clones) = (line.clone(), Arc::clone(&clones));
        let serve = move || {
            if let Err(error) = take(caller, &line, number) {
                log(&error);
            }
            clones.fetch_sub(1, Ordering::AcqRel);
        };
        let thread = std::thread::Builder::new().stack_size(STACK);
        thread.spawn(serve).map_err(Error::os("start a thread"))?;
    }
    // Whoever comes between finds no socket, or a closed one, and starts another server.
    let _ = fs::remove_file(&path);
    let _ = fs::remove_file(&lock);
    Ok(())
}

/// The next launch that asks; none when there are no clones, and none came for a while.
fn next(socket: &OwnedFd, clones: &AtomicUsize) -> std::result::Result<Option<OwnedFd>, Errno> {
    loop {
        let mut all = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut all, Some(&IDLE)) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) if clones.load(Ordering::Acquire) == 0 => return Ok(None),
            Ok(0) => {}
            Ok(_) => return accept_with(socket, SocketFlags::CLOEXEC).map(Some),
        }
    }
}

/// Serves one clone to its end. One that cannot be served is killed: it would wait for ever.
fn take(caller: OwnedFd, line: &Line, number: u64) -> Result<()> {
    let asked = wire::receive(&caller).map_err(Error::os("listen to the launch"))?;
    let Some(packet) = asked else {
        return Ok(());
    };
    let hot = packet.number != 0;
    let files: [OwnedFd; 2] = match (packet.kind, packet.files.try_into()) {
        (Kind::Clone, Ok(files)) => files,
        _ => return Err(Error::os("listen to the launch")(Errno::PROTO)),
    };
    let [listener, images] = files;
    wire::send(&caller, Kind::Done, 0, &[]).map_err(Error::os("answer the launch"))?;
    let images = Images {
        directory: images,
        hot,
    };
    Tenant::new(caller, listener, images, line.ward(number)).serve()
}

/// Nobody holds our standard error: the host's log gets it.
fn log(error: &Error) {
    let text = format!("<3>xebec: page server: {error}");
    if let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() {
        // A host without a log has nobody who would read it.
        let _ = socket.send_to(text.as_bytes(), "/dev/log");
    }
}
