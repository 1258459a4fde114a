//! Copying between a container's streams and their targets, on the event loop.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use tokio::io::unix::AsyncFd;

/// Most bytes moved by one splice: the default capacity of a pipe.
const SPLICE: usize = 64 * 1024;
/// First and longest pause between looks whether a reader has come.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Buffer of the copies that cannot splice; a terminal delivers 4 KiB at most.
const BUFFER: usize = 4096;

/// Moves everything from pipe `from` to pipe `to` without copying it through this process.
pub(super) async fn splice(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut readable = from.readable().await?;
        let mut writable = to.writable().await?;
        match rustix::pipe::splice(from, None, to, None, SPLICE, SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // One of the two would block: bytes waiting in `from` tell that it is `to`.
            Err(Errno::AGAIN) => {
                if rustix::io::ioctl_fionread(from)? > 0 {
                    writable.clear_ready();
                } else {
                    readable.clear_ready();
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Moves what `from` holds right now to `to`, waiting for room but not for more input.
pub(super) async fn splice_rest(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    while rustix::io::ioctl_fionread(from)? > 0 {
        let mut writable = to.writable().await?;
        match rustix::pipe::splice(from, None, to, None, SPLICE, SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => writable.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until what was written to a fifo has been read, at most `patience`. A client may be slow
/// to open its end, and until then what the fifo holds goes with our last descriptor of it.
pub(super) async fn taken(fifo: &AsyncFd<OwnedFd>, patience: Duration) -> io::Result<()> {
    let wait = async {
        let mut pause = LOOKS.0;
        while rustix::io::ioctl_fionread(fifo)? > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
        Ok(())
    };
    let late = |_| io::Error::new(ErrorKind::TimedOut, "its last bytes are still unread");
    tokio::time::timeout(patience, wait).await.map_err(late)?
}

/// Appends everything from `from` to a file. File writes do not wait for readers, so they are
/// made in place.
pub(super) async fn to_file(from: &AsyncFd<OwnedFd>, mut to: &File) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    loop {
        let read = read(from, &mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read])?;
    }
}

/// Copies through a buffer, for terminals. The end of a terminal is EIO.
pub(super) async fn buffered(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match read(from, &mut buffer).await {
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => 0,
            result => result?,
        };
        if read == 0 {
            return Ok(());
        }
        write_all(to, &buffer[..read]).await?;
    }
}

async fn read(from: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = from.readable().await?;
        match rustix::io::read(from.as_fd(), &mut *buffer) {
            Ok(read) => return Ok(read),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = to.writable().await?;
        match rustix::io::write(to.as_fd(), bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (reader.into(), writer.into())
    }

    fn watched(fd: OwnedFd) -> AsyncFd<OwnedFd> {
        crate::io::watched(fd).unwrap()
    }

    #[test]
    fn more_than_a_pipe_holds_comes_through_in_order() {
        let (source, mut feed) = pipe();
        let (drain, sink) = pipe();
        let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || {
            let mut feed = File::from(std::mem::replace(&mut feed, pipe().1));
            feed.write_all(&sent).unwrap();
        });
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            File::from(drain).read_to_end(&mut got).unwrap();
            got
        });
        run(async {
            let (from, to) = (watched(source), watched(sink));
            splice(&from, &to).await.unwrap();
        });
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), expected);
    }

    #[test]
    fn a_file_gets_appended_to() {
        let mut file = tempfile::tempfile().unwrap();
        let (source, feed) = pipe();
        File::from(feed).write_all(b"two lines\nof text\n").unwrap();
        run(async { to_file(&watched(source), &file).await.unwrap() });
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "two lines\nof text\n");
    }

    #[test]
    fn a_fifo_stays_until_a_reader_has_come_or_nobody_believes_in_one() {
        let (drain, sink) = pipe();
        let mut reader = File::from(drain.try_clone().unwrap());
        File::from(sink.try_clone().unwrap())
            .write_all(b"last words")
            .unwrap();
        run(async {
            let fifo = watched(sink);
            let late = taken(&fifo, Duration::from_millis(20)).await.unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            std::thread::spawn(move || reader.read_exact(&mut [0; 10]).unwrap());
            taken(&fifo, Duration::from_mins(1)).await.unwrap();
        });
        drop(drain);
    }

    #[test]
    fn the_rest_of_a_pipe_is_moved_without_waiting_for_its_end() {
        let (source, feed) = pipe();
        let (drain, sink) = pipe();
        let mut feed = File::from(feed);
        feed.write_all(b"left over").unwrap();
        run(async { splice_rest(&watched(source), &watched(sink)).await.unwrap() });
        let mut text = String::new();
        File::from(drain).read_to_string(&mut text).unwrap();
        assert_eq!(text, "left over");
    }
}
