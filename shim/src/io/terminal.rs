//! Pseudo-terminals: the runtime hands over the master by SCM_RIGHTS.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

use crate::engine::Console;
use crate::error::{Context, Error, Result};
use crate::supervisor::wire;

/// Number of the next socket file.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// How long the runtime may take to hand over the terminal.
const LIMIT: Duration = Duration::from_secs(30);

/// The shim's end of the hand-over.
#[derive(Debug)]
pub(super) enum Receiver {
    Socket(AsyncFd<OwnedFd>),
    /// The listener's file is removed with the value.
    Listener(UnixListener, SocketFile),
}

#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Absent is what is wanted; the directory is cleared at boot.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes both ends of a hand-over, the runtime's as a file in `directory` if it needs a path.
pub(super) fn offer(directory: &Path, by_path: bool) -> Result<(Receiver, Console)> {
    if !by_path {
        let make = || {
            let (ours, theirs) = UnixStream::pair()?;
            Ok::<_, io::Error>((Receiver::Socket(super::watched(ours.into())?), theirs))
        };
        let (receiver, theirs) = make().context(|| "make a console socket".into())?;
        return Ok((receiver, Console::Socket(theirs.into())));
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("tty-{}-{number}", std::process::id()));
    let listener =
        UnixListener::bind(&path).context(|| format!("make console socket {}", path.display()))?;
    Ok((
        Receiver::Listener(listener, SocketFile(path.clone())),
        Console::Path(path),
    ))
}

impl Receiver {
    /// Waits for the terminal's master.
    pub(super) async fn master(self) -> Result<AsyncFd<OwnedFd>> {
        let arrive = async {
            match self {
                Receiver::Socket(socket) => receive(&socket).await,
                Receiver::Listener(listener, _file) => {
                    let (stream, _) = listener.accept().await?;
                    receive(&super::watched(stream.into_std()?.into())?).await
                }
            }
        };
        match tokio::time::timeout(LIMIT, arrive).await {
            Ok(result) => result.context(|| "receive the terminal".into()),
            Err(_) => Err(Error::FailedPrecondition(format!(
                "no terminal arrived in {LIMIT:?}"
            ))),
        }
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<AsyncFd<OwnedFd>> {
    let mut name = [0; 256];
    loop {
        let mut ready = socket.readable().await?;
        let result = ready.try_io(|inner| wire::receive_with_fds(inner.get_ref(), &mut name));
        let Ok(result) = result else { continue };
        let (bytes, mut fds) = result?;
        if let Some(master) = fds.pop() {
            return super::watched(master);
        }
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sets the size of a terminal in characters.
pub(crate) fn resize(master: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let winsize = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, winsize)?)
}
