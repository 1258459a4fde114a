//! Copying that does not wait for its reader: what that has not taken is stored, in memory or in
//! a file, within limits.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::backlog::Backlog;
use super::keep::Keep;
use super::overflow::{Overflow, Policy};
use super::spill::{Place, Spill};
use super::{Setting, Stream, TERMINAL};
use crate::error::{Context, Result as ShimResult};
use crate::log;
use crate::supervisor::message::{Copying, Level};

/// Most bytes read at once.
const CHUNK: usize = 16 * 1024;
/// First and longest pause between looks whether a reader has come.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// The output of one stream that its reader has not taken yet: what the file holds, then what is
/// in memory.
#[derive(Debug)]
pub(super) struct Store {
    policy: Policy,
    backlog: Backlog,
    place: Place,
    spill: Option<Spill>,
    /// The log says that the container waits.
    waits: bool,
}

impl Store {
    /// The store of a stream of init, if the options ask for one. Other processes have none: who
    /// reads an exec wants every byte and is there. `kept` is an earlier worker's.
    pub(super) fn new(
        setting: &Setting,
        exec_id: &str,
        name: &str,
        kept: Option<Stream>,
    ) -> Option<Store> {
        let Overflow {
            policy,
            buffer,
            spill: limit,
        } = setting.overflow.filter(|_| exec_id.is_empty())?;
        let newline = if name == TERMINAL { "\r\n" } else { "\n" };
        let place = Place::new(setting, name, limit);
        Some(Store {
            policy,
            backlog: Backlog::new(buffer, newline),
            spill: kept.and_then(|kept| place.inherit(kept)),
            place,
            waits: false,
        })
    }

    fn is_empty(&self) -> bool {
        self.spill.is_none() && self.backlog.is_empty()
    }

    /// How many bytes may come now. An empty store has room.
    fn room(&mut self) -> usize {
        if self.policy == Policy::Spill && self.spill.is_none() && self.backlog.room() == 0 {
            self.begin_to_spill();
        }
        let room = match &self.spill {
            _ if self.policy == Policy::Drop => CHUNK,
            None => self.backlog.room(),
            Some(spill) if self.backlog.is_empty() => self.place.room(spill),
            // The file takes no more, and order must be kept.
            Some(_) => 0,
        };
        if room == 0 && self.spill.is_some() && !self.waits {
            self.waits = true;
            let path = self.place.path().display();
            log::warn(format_args!("{path} is full: the container waits"));
        }
        room.min(CHUNK)
    }

    /// Adds as many bytes as there was room for.
    fn put(&mut self, bytes: &[u8]) {
        if self.policy == Policy::Drop {
            self.backlog.make_room(bytes.len());
        }
        self.backlog.push(bytes);
        self.pour();
    }

    fn begin_to_spill(&mut self) {
        match self.place.begin(self.backlog.front()) {
            Ok((spill, written)) => {
                self.backlog.taken(written);
                self.spill = Some(spill);
                self.pour();
            }
            Err(error) => {
                self.policy = Policy::Block;
                let path = self.place.path().display();
                log::error(format_args!("{path}: {error}: the container waits"));
            }
        }
    }

    /// Moves what is in memory to the file, if there is one.
    fn pour(&mut self) {
        let Some(spill) = &mut self.spill else {
            return;
        };
        while !self.backlog.is_empty() {
            let front = self.backlog.front();
            let length = front.len().min(self.place.room(spill));
            match spill.append(&front[..length]) {
                Ok(0) => return,
                Ok(written) => self.backlog.taken(written),
                Err(error) => {
                    let path = self.place.path().display();
                    log::error(format_args!("write {path}: {error}"));
                    return;
                }
            }
        }
    }

    /// Hands on to the reader what comes next.
    fn flush(&mut self, to: impl AsFd) -> Result<(), Errno> {
        if let Some(spill) = &self.spill {
            if spill.replay(to)? == 0 {
                self.spill
                    .take()
                    .into_iter()
                    .for_each(|it| self.place.end(it));
                self.waits = false;
            }
            return Ok(());
        }
        if let Some(note) = self.backlog.note() {
            // A pipe takes a line whole or not at all.
            rustix::io::write(&to, note.as_bytes())?;
            self.backlog.noted();
        }
        let written = rustix::io::write(&to, self.backlog.front())?;
        self.backlog.taken(written);
        Ok(())
    }

    /// Takes what a source has ready: its length, 0 at the end.
    fn fill(&mut self, from: impl AsFd, room: usize) -> Result<usize, Errno> {
        let mut chunk = [0; CHUNK];
        match rustix::io::read(from, &mut chunk[..room]) {
            // The end of a terminal.
            Err(Errno::IO) => Ok(0),
            result => result.inspect(|read| self.put(&chunk[..*read])),
        }
    }
}

/// Moves everything from a pipe or terminal to fifo `to` by way of `store`, and waits for its
/// reader as long as the caller does.
pub(super) async fn relay(
    from: &AsyncFd<OwnedFd>,
    to: &AsyncFd<OwnedFd>,
    mut store: Store,
) -> io::Result<()> {
    let mut is_open = true;
    while is_open || !store.is_empty() {
        let room = if is_open { store.room() } else { 0 };
        tokio::select! {
            biased;
            ready = to.writable(), if !store.is_empty() => match store.flush(to) {
                Err(Errno::AGAIN) => ready?.clear_ready(),
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            ready = from.readable(), if room > 0 => match store.fill(from, room) {
                Err(Errno::AGAIN) => ready?.clear_ready(),
                Err(Errno::INTR) => {}
                result => is_open = result? > 0,
            },
        }
        // Both sides may be ready for ever.
        tokio::task::consume_budget().await;
    }
    taken(to).await
}

/// Waits until what was written to a fifo has been read.
async fn taken(fifo: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut pause = LOOKS.0;
    while rustix::io::ioctl_fionread(fifo)? > 0 {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOKS.1);
    }
    Ok(())
}

/// Has readers of fifo `late` released, which come when an output is over already: to the
/// supervisor it is an output that ends at once.
pub(super) fn release(keep: &Keep, to: &AsyncFd<OwnedFd>, late: Option<PathBuf>) -> io::Result<()> {
    if late.is_some() {
        let (ended, _) = io::pipe()?;
        let copying = Copying {
            splices: true,
            awaits_reader: false,
            opens: None,
            late,
        };
        keep.copy(copying, ended.into(), to.get_ref().try_clone()?);
    }
    Ok(())
}

/// Further descriptors of both ends of an output, to be kept.
pub(super) fn copies(ends: [&OwnedFd; 2]) -> ShimResult<Vec<OwnedFd>> {
    let copies = ends.into_iter().map(OwnedFd::try_clone);
    copies
        .collect::<io::Result<_>>()
        .context(|| "duplicate a stream".into())
}

/// Both ends of an output, as long as it is relayed.
#[derive(Debug)]
pub(super) struct Relayed([Weak<AsyncFd<OwnedFd>>; 2]);

impl Relayed {
    pub(super) fn new(from: &Rc<AsyncFd<OwnedFd>>, to: &Rc<AsyncFd<OwnedFd>>) -> Relayed {
        Relayed([from, to].map(Rc::downgrade))
    }

    /// What waits in it; `None` once it is over.
    pub(super) fn level(&self) -> Option<Level> {
        let [from, to] = [self.0[0].upgrade()?, self.0[1].upgrade()?];
        let waiting = |fd: &AsyncFd<OwnedFd>| rustix::io::ioctl_fionread(fd).ok();
        Some(Level {
            unread: waiting(&from),
            untaken: waiting(&to),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::STDOUT;
    use crate::link::Link;
    use crate::supervisor::wire;
    use rustix::fs::{CWD, FileType, Mode};
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::sync::Arc;
    use tokio::task::{JoinHandle, spawn_blocking};

    const KIB: usize = 1024;

    /// A bundle with the fifo of a stream, and who keeps descriptors.
    struct World {
        bundle: tempfile::TempDir,
        setting: Setting,
        supervisor: UnixStream,
    }

    impl World {
        fn new(policy: Policy, buffer: usize, spill: usize) -> World {
            let (ours, supervisor) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            let bundle = tempfile::tempdir().unwrap();
            let fifo = bundle.path().join("fifo");
            rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
            let spill = spill as u64;
            let setting = Setting {
                namespace: "test".into(),
                id: "c".into(),
                bundle: bundle.path().into(),
                owner: (0, 0),
                overflow: Some(Overflow {
                    policy,
                    buffer,
                    spill,
                }),
                console_directory: None,
                link: Arc::new(Link::new(ours)),
                exits: Rc::default(),
                ends: Rc::default(),
            };
            World {
                bundle,
                setting,
                supervisor,
            }
        }

        fn fifo(&self) -> PathBuf {
            self.bundle.path().join("fifo")
        }

        fn spilled(&self) -> Option<u64> {
            let path = self.bundle.path().join("out.spill");
            path.metadata().ok().map(|metadata| metadata.len())
        }

        fn copy(&self, source: OwnedFd, kept: Option<Stream>) -> Copying {
            let from = crate::io::watched(source).unwrap();
            let to = crate::io::open_fifo(&self.fifo(), rustix::fs::OFlags::RDWR).unwrap();
            let to = crate::io::watched(to).unwrap();
            let store = Store::new(&self.setting, "", STDOUT, kept).unwrap();
            Box::pin(async move { relay(&from, &to, store).await })
        }

        /// A reader who takes everything.
        fn reader(&self) -> JoinHandle<Vec<u8>> {
            let mut fifo = File::open(self.fifo()).unwrap();
            spawn_blocking(move || {
                let mut got = Vec::new();
                fifo.read_to_end(&mut got).unwrap();
                got
            })
        }

        /// Lets the container come to its end while nobody reads, then reads everything.
        async fn read_late(&self, mut copying: Copying, container: JoinHandle<()>) -> Vec<u8> {
            tokio::select! {
                result = &mut copying => panic!("copied without a reader: {result:?}"),
                result = container => result.unwrap(),
            }
            let reader = self.reader();
            copying.await.unwrap();
            reader.await.unwrap()
        }
    }

    type Copying = Pin<Box<dyn Future<Output = io::Result<()>>>>;

    fn run(future: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let limited = async { tokio::time::timeout(Duration::from_mins(1), future).await };
        runtime.block_on(limited).expect("nobody waits for ever");
    }

    /// Numbered lines, `length` bytes of them.
    fn lines(length: usize) -> Vec<u8> {
        let lines = (0..).flat_map(|number| format!("line {number:06}\n").into_bytes());
        lines.take(length).collect()
    }

    /// A container that writes `bytes` and ends.
    fn container(bytes: &[u8]) -> (OwnedFd, JoinHandle<()>) {
        let (source, mut feed) = io::pipe().unwrap();
        let bytes = bytes.to_vec();
        let writer = spawn_blocking(move || feed.write_all(&bytes).unwrap());
        (source.into(), writer)
    }

    #[test]
    fn nobody_waits_with_drop_and_the_reader_gets_the_newest_and_is_told_of_the_rest() {
        run(async {
            let world = World::new(Policy::Drop, 64 * KIB, 64 * KIB);
            let sent = lines(KIB * KIB);
            let (source, container) = container(&sent);
            let got = world.read_late(world.copy(source, None), container).await;
            let text = String::from_utf8(got).unwrap();
            let (notes, kept): (Vec<&str>, Vec<&str>) =
                text.lines().partition(|line| line.starts_with("xebec: "));
            let told = notes.iter().map(|note| {
                let (number, rest) = note["xebec: ".len()..].split_once(' ').unwrap();
                assert_eq!(rest, "bytes of output dropped, nobody read them");
                number.parse::<usize>().unwrap()
            });
            let notes_length: usize = notes.iter().map(|note| note.len() + 1).sum();
            let lost = told.sum::<usize>() + text.len() - notes_length;
            // One newline more, if the fifo had been full in the middle of a line.
            assert!(
                (sent.len()..=sent.len() + notes.len()).contains(&lost),
                "{notes:?}"
            );
            assert!(lost > 512 * KIB && kept[0] == "line 000000", "{notes:?}");
            let newest = &sent[sent.len() - 40 * KIB..];
            assert!(text.as_bytes().ends_with(newest), "the newest are missing");
        });
    }

    #[test]
    fn every_byte_comes_late_and_in_order_from_memory_or_a_file() {
        run(async {
            for (policy, buffer, spills) in [
                (Policy::Block, 1024 * KIB, false),
                (Policy::Spill, 64 * KIB, true),
                (Policy::Spill, 1024 * KIB, false),
            ] {
                let world = World::new(policy, buffer, 1024 * KIB);
                let sent = lines(800 * KIB);
                let (source, container) = container(&sent);
                let mut copying = world.copy(source, None);
                if spills {
                    wait_for(&mut copying, || world.spilled() > Some(300 * 1024)).await;
                }
                let got = world.read_late(copying, container).await;
                assert!(got == sent, "{policy:?}: {} bytes", got.len());
                assert_eq!(world.spilled(), None);
            }
        });
    }

    #[test]
    fn a_full_file_makes_the_container_wait_and_loses_nothing() {
        run(async {
            let world = World::new(Policy::Spill, 64 * KIB, 128 * KIB);
            let sent = lines(KIB * KIB);
            let (source, container) = container(&sent);
            let mut copying = world.copy(source, None);
            let limit = 128 * 1024;
            wait_for(&mut copying, || world.spilled() == Some(limit)).await;
            assert!(!container.is_finished(), "there was no room for all");
            let reader = world.reader();
            copying.await.unwrap();
            container.await.unwrap();
            assert!(reader.await.unwrap() == sent);
            assert_eq!(world.spilled(), None);
        });
    }

    #[test]
    fn a_file_that_cannot_be_made_makes_the_container_wait() {
        run(async {
            let world = World::new(Policy::Spill, 64 * KIB, 128 * KIB);
            std::fs::create_dir(world.bundle.path().join("out.spill")).unwrap();
            let sent = lines(KIB * KIB);
            let (source, container) = container(&sent);
            let copying = world.copy(source, None);
            let reader = world.reader();
            copying.await.unwrap();
            container.await.unwrap();
            assert!(reader.await.unwrap() == sent);
        });
    }

    #[test]
    fn a_successor_goes_on_with_the_very_next_byte_of_the_file() {
        run(async {
            let world = World::new(Policy::Spill, 64 * KIB, 1024 * KIB);
            let sent = lines(800 * KIB);
            let (source, container) = container(&sent);
            let mut copying = world.copy(source.try_clone().unwrap(), None);
            let fifo = crate::io::open_fifo(&world.fifo(), rustix::fs::OFlags::RDWR).unwrap();
            // It ends only if its pipe is emptied.
            wait_for(&mut copying, || container.is_finished()).await;
            assert!(world.spilled() > Some(600 * 1024));
            let (_, fds) = wire::receive_with_fds(&world.supervisor, &mut [0; 4096]).unwrap();
            let mut early = vec![0; 300 * KIB];
            let mut fifo_end = File::open(world.fifo()).unwrap();
            let reader = spawn_blocking(move || {
                fifo_end.read_exact(&mut early).unwrap();
                early
            });
            // The worker ends in the middle of it.
            let mut got = tokio::select! {
                result = &mut copying => panic!("nobody has read the rest: {result:?}"),
                early = reader => early.unwrap(),
            };
            drop(copying);
            let record = String::new();
            let successor = world.copy(source, Some(Stream { record, fds }));
            let reader = world.reader();
            drop(fifo);
            successor.await.unwrap();
            got.extend(reader.await.unwrap());
            assert!(got == sent, "{} bytes", got.len());
            assert_eq!(world.spilled(), None);
        });
    }

    /// Goes on copying until `condition`, which only copying makes true.
    async fn wait_for(copying: &mut Copying, condition: impl Fn() -> bool) {
        while !condition() {
            tokio::select! {
                result = &mut *copying => panic!("copied without a reader: {result:?}"),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
    }
}
