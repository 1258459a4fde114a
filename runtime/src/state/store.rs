//! State directories: `ROOT/ID` with `state.json`, the start fifo and the seccomp program.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, flock, mkdir, mkfifoat, open, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use super::record::Record;
use super::{ContainerId, ContainerState, Status};
use crate::cgroup::{Cgroup, CgroupPath};
use crate::error::{Error, Result};

const STATE_FILE: &str = "state.json";
const STATE_DRAFT: &str = "state.json.new";
const START_FIFO: &str = "exec.fifo";
const SECCOMP_FILE: &str = "seccomp.bpf";

/// The directory of one container.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    fd: OwnedFd,
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
                fs::create_dir_all(root).map_err(Error::file("mkdir", root))?;
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

    /// Waits until no other command changes the container; the lock ends with this value.
    pub(crate) fn lock(&self) -> Result<()> {
        rustix::io::retry_on_intr(|| flock(&self.fd, FlockOperation::LockExclusive))
            .map_err(Error::file("lock", &self.path))
    }

    /// Whether somebody holds the lock at this moment.
    fn is_locked(&self) -> bool {
        let busy = flock(&self.fd, FlockOperation::NonBlockingLockShared).is_err();
        if !busy {
            // A lock that was just taken can be given back.
            let _ = flock(&self.fd, FlockOperation::Unlock);
        }
        busy
    }

    /// Reads the record; none when creation was cut short before it was written.
    pub(crate) fn read(&self) -> Result<Option<Record>> {
        let path = self.path.join(STATE_FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| Error::DamagedState {
                    path,
                    reason: e.to_string(),
                }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file("read", path)(e)),
        }
    }

    /// Reads the record of a container that has been made.
    pub(crate) fn record(&self) -> Result<Record> {
        self.read()?.ok_or(Error::NotFound)
    }

    /// Writes the record; a reader sees the old one or the new one.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).map_err(|e| Error::Os {
            op: "encode state".to_owned(),
            source: e.into(),
        })?;
        self.write_file(STATE_DRAFT, &text)?;
        renameat(&self.fd, STATE_DRAFT, &self.fd, STATE_FILE)
            .map_err(Error::file("rename", self.path.join(STATE_DRAFT)))
    }

    /// Keeps the compiled filter for further processes of the container.
    pub(crate) fn write_seccomp(&self, program: &[u8]) -> Result<()> {
        self.write_file(SECCOMP_FILE, program)
    }

    /// The compiled filter, if the container has one.
    pub(crate) fn read_seccomp(&self) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(SECCOMP_FILE);
        match fs::read(&path) {
            Ok(program) => Ok(Some(program)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::file("read", path)(e)),
        }
    }

    /// Where that filter is.
    pub(crate) fn seccomp_path(&self) -> PathBuf {
        self.path.join(SECCOMP_FILE)
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

    /// Makes the start fifo and opens the end that init will wait at.
    ///
    /// Opened without blocking, a fifo that nobody has written to yet is silent rather than at its
    /// end; and once init is dead, opening it for writing fails.
    pub(crate) fn make_gate(&self) -> Result<OwnedFd> {
        let failed = |op| move |errno: Errno| Error::file(op, self.path.join(START_FIFO))(errno);
        mkfifoat(&self.fd, START_FIFO, Mode::from_raw_mode(0o600)).map_err(failed("mkfifo"))?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&self.fd, START_FIFO, flags, Mode::empty()).map_err(failed("open"))
    }

    /// Whether init still waits to be started.
    pub(crate) fn has_gate(&self) -> bool {
        rustix::fs::accessat(
            &self.fd,
            START_FIFO,
            rustix::fs::Access::EXISTS,
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .is_ok()
    }

    /// Lets init go.
    pub(crate) fn open_gate(&self) -> Result<()> {
        let failed = |op| move |errno: Errno| Error::file(op, self.path.join(START_FIFO))(errno);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let gate = match openat(&self.fd, START_FIFO, flags, Mode::empty()) {
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
        if record.pid == 0 && self.is_locked() {
            return Status::Creating;
        }
        if !record.init_is_alive() {
            return Status::Stopped;
        }
        if self.has_gate() {
            return Status::Created;
        }
        let cgroup = CgroupPath::from_full(&record.cgroup).and_then(|path| Cgroup::open(&path));
        match cgroup.and_then(|cgroup| cgroup.is_frozen()) {
            Ok(true) => Status::Paused,
            // A cgroup that cannot be read is no reason to deny that init runs.
            Ok(false) | Err(_) => Status::Running,
        }
    }

    /// Removes the directory, the record last: a removal that is cut short can be repeated.
    pub(crate) fn remove(&self) -> Result<()> {
        for name in [START_FIFO, SECCOMP_FILE, STATE_DRAFT, STATE_FILE] {
            match unlinkat(&self.fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::file("remove", self.path.join(name))(errno)),
            }
        }
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::file("remove", &self.path)(errno)),
        }
    }
}

/// The states of all containers below `root`.
pub(crate) fn list(root: &Path) -> Result<Vec<ContainerState>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("read", root)(e)),
    };
    let mut states = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::file("read", root))?;
        // The runtime's own directories have names that no container can have.
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        match StateDir::open(root, &id) {
            Ok(dir) => {
                if let Some(record) = dir.read()? {
                    states.push(record.view(dir.status(&record)));
                }
            }
            // Deleted since the directory was read.
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    states.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(states)
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
        assert!(dir.has_gate());
        drop(gate);
        assert!(matches!(dir.open_gate(), Err(Error::Status(_))));
        assert!(dir.has_gate());
    }

    #[test]
    fn a_word_through_the_gate_arrives_and_the_gate_is_gone() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = StateDir::create(root.path(), &id()).expect("created");
        let gate = dir.make_gate().expect("fifo");
        dir.open_gate().expect("opened");
        assert_eq!(rustix::io::read(&gate, &mut [0; 4]), Ok(1));
        assert!(!dir.has_gate());
    }

    #[test]
    fn a_damaged_record_is_told_with_its_file() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = StateDir::create(root.path(), &id()).expect("created");
        assert!(dir.read().expect("nothing there").is_none());
        fs::write(root.path().join("c1/state.json"), "{\"id\":").expect("written");
        let error = dir.read().expect_err("damaged").to_string();
        assert!(error.contains("c1/state.json"), "{error}");
    }
}
