//! State directories: `ROOT/ID` with `state.json`, the start fifo and the seccomp program.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, flock, fstat, mkdir, mkfifoat, open, openat, readlinkat,
    renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::for_runc::ForRunc;
use super::record::Record;
use super::{ContainerId, ContainerState, Status};
use crate::cgroup::{Cgroup, CgroupPath};
use crate::error::{Error, Result};
use crate::publish::read_regular;

const STATE_FILE: &str = "state.json";
const STATE_DRAFT: &str = "state.json.new";
const START_FIFO: &str = "exec.fifo";
const SECCOMP_FILE: &str = "seccomp.bpf";
/// A symlink with the cgroup's path: what a damaged record cannot take along.
const CGROUP_LINK: &str = "cgroup";

/// The directory of one container.
#[derive(Debug)]
pub(crate) struct StateDir {
    pub(super) path: PathBuf,
    pub(super) fd: OwnedFd,
}

impl Drop for StateDir {
    /// Gives a lock back: an init that waits for its start still holds a copy of the descriptor,
    /// and with it the lock, however long this process or its end may be away.
    fn drop(&mut self) {
        // Fails only on a bad descriptor.
        let _ = flock(&self.fd, FlockOperation::Unlock);
    }
}

impl StateDir {
    /// Makes the directory of a new container, and locks it.
    pub(crate) fn create(root: &Path, id: &ContainerId) -> Result<Self> {
        let path = root.join(id.as_str());
        match mkdir(&path, Mode::from_raw_mode(0o711)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::AlreadyExists),
            Err(Errno::NOENT) => {
                // Whatever the caller's umask is, nobody else may put a container there.
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o711)
                    .create(root)
                    .map_err(Error::file("mkdir", root))?;
                mkdir(&path, Mode::from_raw_mode(0o711)).map_err(|errno| match errno {
                    Errno::EXIST => Error::AlreadyExists,
                    errno => Error::file("mkdir", &path)(errno),
                })?;
            }
            Err(errno) => return Err(Error::file("mkdir", path)(errno)),
        }
        let dir = Self::open_at(path)?;
        dir.lock()?;
        Ok(dir)
    }

    /// Opens the directory of an existing container.
    pub(crate) fn open(root: &Path, id: &ContainerId) -> Result<Self> {
        Self::open_at(root.join(id.as_str()))
    }

    fn open_at(path: PathBuf) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { path, fd }),
            Err(Errno::NOENT) => Err(Error::NotFound),
            Err(errno) => Err(Error::file("open", path)(errno)),
        }
    }

    /// Waits until no other command changes the container; the lock ends with this value. A
    /// container that was deleted meanwhile is gone, even if there is another of its name now.
    pub(crate) fn lock(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| flock(&self.fd, FlockOperation::LockExclusive))
            .map_err(Error::file("lock", &self.path))?;
        let links = fstat(&self.fd)
            .map_err(Error::file("stat", &self.path))?
            .st_nlink;
        if links == 0 {
            return Err(Error::NotFound);
        }
        Ok(())
    }

    /// The descriptor that a lock is held by.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether somebody holds the lock at this moment, this value included.
    fn is_locked(&self) -> bool {
        // By a description of its own: trying the lock on the one that holds it would give it away.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.fd, c".", flags, Mode::empty())
            .is_ok_and(|other| flock(&other, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// Reads the record; none when creation was cut short before it was written.
    pub(crate) fn read(&self) -> Result<Option<Record>> {
        let Some(text) = self.read_file(STATE_FILE)? else {
            return Ok(None);
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::DamagedState {
                path: self.path.join(STATE_FILE),
                reason: e.to_string(),
            })
    }

    /// Reads the record of a container that has been made.
    pub(crate) fn record(&self) -> Result<Record> {
        self.read()?.ok_or(Error::NotFound)
    }

    /// Writes the record; a reader sees the old one or the new one.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(&ForRunc::of(record)).map_err(|e| Error::Os {
            op: "encode state".to_owned(),
            source: e.into(),
        })?;
        self.write_file(STATE_DRAFT, &text)?;
        renameat(&self.fd, STATE_DRAFT, &self.fd, STATE_FILE)
            .map_err(Error::file("rename", self.path.join(STATE_DRAFT)))
    }

    /// Notes the cgroup once more, apart from the record; nothing when there is none.
    pub(crate) fn write_cgroup(&self, full: &Path) -> Result<()> {
        if full.as_os_str().is_empty() {
            return Ok(());
        }
        symlinkat(full, &self.fd, CGROUP_LINK)
            .map_err(Error::file("create", self.path.join(CGROUP_LINK)))
    }

    /// The cgroup that was noted; empty when there was no time for it.
    pub(crate) fn read_cgroup(&self) -> Result<PathBuf> {
        match readlinkat(&self.fd, CGROUP_LINK, Vec::new()) {
            Ok(full) => Ok(PathBuf::from(OsString::from_vec(full.into_bytes()))),
            Err(Errno::NOENT) => Ok(PathBuf::new()),
            Err(errno) => Err(Error::file("read", self.path.join(CGROUP_LINK))(errno)),
        }
    }

    /// Keeps the compiled filter for further processes of the container.
    pub(crate) fn write_seccomp(&self, program: &[u8]) -> Result<()> {
        self.write_file(SECCOMP_FILE, program)
    }

    /// The compiled filter, if the container has one.
    pub(crate) fn read_seccomp(&self) -> Result<Option<Vec<u8>>> {
        self.read_file(SECCOMP_FILE)
    }

    /// Where that filter is.
    pub(crate) fn seccomp_path(&self) -> PathBuf {
        self.path.join(SECCOMP_FILE)
    }

    /// Reads a file of this very directory, whatever has taken its path meanwhile.
    fn read_file(&self, name: &'static str) -> Result<Option<Vec<u8>>> {
        let failed = |e: io::Error| Error::file("read", self.path.join(name))(e);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno.into())),
        };
        read_regular(file.into()).map(Some).map_err(failed)
    }

    fn write_file(&self, name: &'static str, content: &[u8]) -> Result<()> {
        let failed = |op| move |errno: Errno| Error::file(op, self.path.join(name))(errno);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file =
            openat(&self.fd, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("create"))?;
        let mut rest = content;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest).map_err(failed("write"))?;
            rest = &rest[written..];
        }
        Ok(())
    }

    /// Makes the start fifo and opens it for init to wait at.
    ///
    /// Init holds both ends, so that only a word lets it go, never a writer that was killed before
    /// its word; and once init has gone or is dead, opening the fifo for writing fails.
    pub(crate) fn make_gate(&self) -> Result<OwnedFd> {
        let failed = |op| move |errno: Errno| Error::file(op, self.path.join(START_FIFO))(errno);
        mkfifoat(&self.fd, START_FIFO, Mode::from_raw_mode(0o600)).map_err(failed("mkfifo"))?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&self.fd, START_FIFO, flags, Mode::empty()).map_err(failed("open"))
    }

    /// Whether init still waits to be started: a fifo alone may be what a killed `start` left.
    pub(crate) fn is_waited_at(&self) -> bool {
        self.gate().is_ok()
    }

    fn gate(&self) -> std::result::Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.fd, START_FIFO, flags, Mode::empty())
    }

    /// Lets init go.
    pub(crate) fn open_gate(&self) -> Result<()> {
        let failed = |op| move |errno: Errno| Error::file(op, self.path.join(START_FIFO))(errno);
        let gate = match self.gate() {
            // Nobody holds the other end.
            Err(Errno::NXIO) => {
                return Err(Error::Status(
                    "cannot start an already stopped container: its init has exited".into(),
                ));
            }
            result => result.map_err(failed("open"))?,
        };
        rustix::io::write(&gate, &[1]).map_err(failed("write"))?;
        unlinkat(&self.fd, START_FIFO, AtFlags::empty()).map_err(failed("remove"))
    }

    /// Where the container stands, from its record and what the kernel says.
    pub(crate) fn status(&self, record: &Record) -> Status {
        if record.pid == 0 {
            // Cut short after it had made a process and before it could say which.
            let is_under_way = self.is_locked() || has_processes(&record.cgroup);
            return if is_under_way {
                Status::Creating
            } else {
                Status::Stopped
            };
        }
        if !record.init_is_alive() {
            return Status::Stopped;
        }
        let cgroup = CgroupPath::from_full(&record.cgroup).and_then(|path| Cgroup::open(&path));
        match cgroup.and_then(|cgroup| cgroup.is_frozen()) {
            Ok(true) => Status::Paused,
            // A cgroup that cannot be read is no reason to deny that init is there.
            Ok(false) | Err(_) if self.is_waited_at() => Status::Created,
            Ok(false) | Err(_) => Status::Running,
        }
    }

    /// Makes a directory for a while, which ends with the container's at the latest.
    pub(crate) fn make_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        mkdir(&path, Mode::from_raw_mode(0o700)).map_err(Error::file("mkdir", &path))?;
        Ok(path)
    }

    /// Removes one again, which is empty.
    pub(crate) fn remove_directory(&self, name: &str) -> Result<()> {
        unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
            .map_err(Error::file("rmdir", self.path.join(name)))
    }

    /// Has a program be found by another name in the directory, for as long as the answer lives.
    pub(crate) fn lend(&self, program: &Path, name: &'static str) -> Result<Lent> {
        // Somebody who was killed may have left one.
        self.remove_files(&[name])?;
        let path = self.path.join(name);
        symlinkat(program, &self.fd, name).map_err(Error::file("symlink", path.clone()))?;
        Ok(Lent(path))
    }

    /// Removes the directory, the way to the cgroup last: a removal that is cut short can be
    /// repeated.
    pub(crate) fn remove(&self) -> Result<()> {
        self.remove_files(&[SECCOMP_FILE, STATE_FILE, CGROUP_LINK])?;
        // Most often that was all.
        if self.remove_empty()? {
            return Ok(());
        }
        self.remove_readiness()?;
        self.remove_files(&[START_FIFO, STATE_DRAFT])?;
        if self.remove_empty()? {
            return Ok(());
        }
        // What somebody else has put there does not keep the name taken.
        fs::remove_dir_all(&self.path).map_err(Error::file("remove", &self.path))
    }

    fn remove_files(&self, names: &[&str]) -> Result<()> {
        for name in names {
            match unlinkat(&self.fd, *name, AtFlags::empty()) {
                // A directory by one of our names goes with what is left at the end.
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(errno) => return Err(Error::file("remove", self.path.join(name))(errno)),
            }
        }
        Ok(())
    }

    fn remove_empty(&self) -> Result<bool> {
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY) => Ok(false),
            Err(errno) => Err(Error::file("remove", &self.path)(errno)),
        }
    }
}

/// A program that is lent ([`StateDir::lend`]).
#[derive(Debug)]
pub(crate) struct Lent(PathBuf);

impl Lent {
    /// The directory that it is found in.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.0.parent()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // What cannot be removed goes with the container.
        let _ = fs::remove_file(&self.0);
    }
}

/// The names of all containers below `root`, in their order.
pub(crate) fn ids(root: &Path) -> Result<Vec<ContainerId>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("read", root)(e)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::file("read", root))?;
        // The runtime's own directories have names that no container can have.
        let name = entry.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    ids.sort();
    Ok(ids)
}

/// Whether the cgroup at this path has processes; one that cannot be read has none to tell of.
fn has_processes(full: &Path) -> bool {
    CgroupPath::from_full(full)
        .and_then(|path| Cgroup::open(&path)?.pids(true))
        .is_ok_and(|pids| !pids.is_empty())
}

/// All containers below a state root.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those whose record can be read, by name.
    pub states: Vec<ContainerState>,
    /// What is wrong with each of the others.
    pub damaged: Vec<Error>,
}

/// The states of all containers below `root`.
pub(crate) fn list(root: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    for id in ids(root)? {
        let read = StateDir::open(root, &id).and_then(|dir| {
            let record = dir.record()?;
            Ok(record.view(dir.status(&record)))
        });
        match read {
            Ok(state) => listing.states.push(state),
            // Deleted since the directory was read, or not yet made.
            Err(Error::NotFound) => {}
            Err(error) => listing.damaged.push(error),
        }
    }
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        "c1".parse().expect("valid")
    }

    #[test]
    fn an_id_is_taken_until_its_directory_is_removed() {
        let root = tempfile::tempdir().expect("temporary directory");
        let root = root.path().join("not/there/yet");
        let dir = StateDir::create(&root, &id()).expect("created");
        assert!(matches!(
            StateDir::create(&root, &id()),
            Err(Error::AlreadyExists)
        ));
        dir.write_seccomp(b"x").expect("written");
        dir.remove().expect("removed");
        assert!(matches!(StateDir::open(&root, &id()), Err(Error::NotFound)));
    }

    #[test]
    fn the_gate_opens_only_for_someone_who_waits() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = StateDir::create(root.path(), &id()).expect("created");
        let gate = dir.make_gate().expect("fifo");
        assert!(dir.is_waited_at());
        drop(gate);
        assert!(!dir.is_waited_at());
        assert!(matches!(dir.open_gate(), Err(Error::Status(_))));
    }

    #[test]
    fn a_writer_that_dies_without_a_word_does_not_open_the_gate() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = StateDir::create(root.path(), &id()).expect("created");
        let gate = dir.make_gate().expect("fifo");
        drop(dir.gate().expect("opened"));
        assert_eq!(
            rustix::io::read(&gate, &mut [0; 4]),
            Err(Errno::AGAIN),
            "neither a word nor an end"
        );
        assert!(dir.is_waited_at());
    }

    #[test]
    fn a_directory_that_was_deleted_is_not_mistaken_for_its_successor() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = StateDir::create(root.path(), &id()).expect("created");
        dir.remove().expect("removed");
        let successor = StateDir::create(root.path(), &id()).expect("created");
        successor
            .write_file(STATE_FILE, b"not for the first")
            .expect("written");
        assert!(matches!(dir.lock(), Err(Error::NotFound)));
        assert!(dir.read().expect("nothing there").is_none());
    }

    #[test]
    fn a_word_through_the_gate_arrives_and_the_gate_is_gone() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = StateDir::create(root.path(), &id()).expect("created");
        let gate = dir.make_gate().expect("fifo");
        dir.open_gate().expect("opened");
        assert_eq!(rustix::io::read(&gate, &mut [0; 4]), Ok(1));
        drop(gate);
        assert!(!dir.is_waited_at());
    }

    #[test]
    fn a_look_at_the_lock_does_not_give_it_away() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = StateDir::create(root.path(), &id()).expect("created");
        assert!(dir.is_locked() && dir.is_locked());
        drop(dir);
        let dir = StateDir::open(root.path(), &id()).expect("opened");
        assert!(!dir.is_locked());
    }

    #[test]
    fn a_damaged_record_is_told_with_its_file() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = StateDir::create(root.path(), &id()).expect("created");
        assert!(dir.read().expect("nothing there").is_none());
        fs::write(root.path().join("c1/state.json"), "{\"id\":").expect("written");
        let error = dir.read().expect_err("damaged").to_string();
        assert!(error.contains("c1/state.json"), "{error}");
        let listing = list(root.path()).expect("listed");
        assert_eq!((listing.states.len(), listing.damaged.len()), (0, 1));
    }
}
