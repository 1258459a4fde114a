//! Readers that come late, when an output is over already.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::target::Target;

/// How long readers may come late, and how often is looked for them.
const LATE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Looks whether somebody reads the fifo of an output already, and gives a descriptor that keeps
/// such a reader from seeing an end; else the path at which one has to be waited for.
pub(super) fn look_for_reader(target: &Target) -> (Option<OwnedFd>, Option<PathBuf>) {
    let Target::Fifo(path) = target else {
        return (None, None);
    };
    match open_writer(path) {
        Err(Errno::NXIO) => (None, Some(path.clone())),
        writer => (writer.ok(), None),
    }
}

fn open_writer(fifo: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(fifo, flags, rustix::fs::Mode::empty())
}

/// Shows the end of an output to readers that open its fifo when it is over: without a writer such
/// a reader would wait in its open for ever. Ends when the fifo is gone.
pub(super) async fn release_readers(fifo: PathBuf) {
    let looks = LATE.as_millis() / PAUSE.as_millis();
    for _ in 0..looks {
        if open_writer(&fifo).is_err_and(|error| error != Errno::NXIO) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_reader_that_comes_after_the_end_of_a_silent_output_sees_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("out");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let target = Target::Fifo(fifo.clone());
        let (reader_there, late) = look_for_reader(&target);
        assert!(reader_there.is_none());
        let reading = fifo.clone();
        let reader = std::thread::spawn(move || std::fs::read(reading).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::select! {
                () = release_readers(late.unwrap()) => panic!("the fifo is there"),
                () = async { while !reader.is_finished() { tokio::time::sleep(PAUSE).await } } => {}
            }
        });
        assert!(reader.join().unwrap().is_empty());
        let _reader = File::options().read(true).write(true).open(&fifo).unwrap();
        let (reader_there, late) = look_for_reader(&target);
        assert!(reader_there.is_some() && late.is_none());
    }
}
