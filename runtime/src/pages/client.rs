//! A launch's side: the server is found or started, and told of the clone.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::server::{PageProgram, socket_of};
use super::socket::Socket;
use super::wire::{self, Kind};
use crate::error::{Error, Result};

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server that expects CRIU.
#[derive(Debug)]
pub(crate) struct PageClient {
    connection: OwnedFd,
    /// What CRIU connects to, which nobody needs afterwards.
    _socket: Socket,
}

impl PageClient {
    /// Has the server of `root` serve a clone whose images are in `images`, and which CRIU restores
    /// in the directory `work`; with `hot`, the hot pages beside the images come unasked.
    pub(crate) fn new(
        root: &Path,
        server: &PageProgram,
        (work, images): (&Path, BorrowedFd<'_>),
        hot: bool,
    ) -> Result<Self> {
        let (socket, listener) = Socket::listen(work)?;
        let end = Instant::now() + PATIENCE;
        let mut is_started = false;
        loop {
            match ask(root, &listener, images, hot) {
                Ok(connection) => {
                    return Ok(Self {
                        connection,
                        _socket: socket,
                    });
                }
                Err(errno) if Instant::now() > end => {
                    return Err(Error::file("connect to", socket_of(root))(errno));
                }
                // There is none, or one that was about to end.
                Err(_) if !is_started => {
                    start(root, server)?;
                    is_started = true;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Tells the server that the clone runs. Only when this has returned does nothing of it depend
    /// on us.
    pub(crate) fn started(self, init: BorrowedFd<'_>) -> Result<()> {
        let told = wire::send(&self.connection, Kind::Started, 0, &[init])
            .and_then(|()| heard(&self.connection));
        told.map_err(Error::os("speak to the page server"))
    }
}

fn ask(
    root: &Path,
    listener: &OwnedFd,
    images: BorrowedFd<'_>,
    hot: bool,
) -> std::result::Result<OwnedFd, Errno> {
    let connection = wire::connect_to(&socket_of(root))?;
    let files = [listener.as_fd(), images];
    wire::send(&connection, Kind::Clone, hot.into(), &files)?;
    heard(&connection)?;
    Ok(connection)
}

fn heard(connection: &OwnedFd) -> std::result::Result<(), Errno> {
    match wire::receive(connection)? {
        Some(packet) if packet.kind == Kind::Done => Ok(()),
        Some(_) => Err(Errno::PROTO),
        None => Err(Errno::CONNRESET),
    }
}

/// Starts a server, which ends by itself. It holds nothing of ours.
fn start(root: &Path, server: &PageProgram) -> Result<()> {
    let Some((program, words)) = server.argv.split_first() else {
        let reason = "no page server is given for the memory mode uffd";
        return Err(Error::InvalidArgument(reason.to_owned()));
    };
    let mut command = Command::new(program);
    command.args(words).arg(root);
    // It outlives us, and must not hold what our caller waits for the end of.
    for set in [Command::stdin, Command::stdout, Command::stderr] {
        set(&mut command, Stdio::null());
    }
    command
        .spawn()
        .map(drop)
        .map_err(Error::os("start the page server"))
}
