//! Where what is, and in which order it gets there: whoever is killed at any moment leaves a store
//! in which every checkpoint is whole.
//!
//! ```text
//! secret          what names of chunks and codes of records are made with
//! lock            shared by readers, held alone by whoever changes something
//! limits.json     what an operator allows
//! records/NAME    one a checkpoint; it exists when this does
//! pins/NAME       empty
//! chunks/ab/…     by their names
//! staging/        what is being written
//! ```

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs, syncfs};
use rustix::rand::{GetRandomFlags, getrandom};

use super::chunk::Word;
use crate::error::{Error, Result};

/// The directories of a store.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    /// A directory that is memory.
    memory: PathBuf,
}

/// Nobody else changes the store, or changes it at all, as long as this lives.
#[derive(Debug)]
pub(crate) struct Locked(#[expect(dead_code, reason = "held, not looked at")] File);

impl Disk {
    /// Makes what is missing.
    pub(crate) fn make(root: &Path) -> Result<Self> {
        for name in ["", "records", "pins", "chunks", "staging"] {
            make_directory(&root.join(name))?;
        }
        Ok(Self {
            root: root.to_owned(),
            memory: PathBuf::from("/run"),
        })
    }

    /// Opens what is there.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let records = root.join("records");
        fs::metadata(&records).map_err(Error::io("open", records))?;
        Ok(Self {
            root: root.to_owned(),
            memory: PathBuf::from("/run"),
        })
    }

    /// The same with another directory in memory.
    #[cfg(test)]
    pub(crate) fn with_memory(self, memory: &Path) -> Self {
        let memory = memory.to_owned();
        Self { memory, ..self }
    }

    pub(crate) fn lock(&self, operation: FlockOperation) -> Result<Locked> {
        let path = self.root.join("lock");
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options.open(&path).map_err(Error::io("open", &path))?;
        flock(&file, operation).map_err(Error::io("lock", &path))?;
        Ok(Locked(file))
    }

    /// Makes the store's secret, under the lock, unless there are records that were made with another.
    pub(crate) fn make_secret(&self) -> Result<()> {
        let path = self.root.join("secret");
        if path.exists() || !names_in(&self.root.join("records"))?.is_empty() {
            return Ok(());
        }
        self.write_staged("secret", &new_secret()?.0)?;
        self.sync()?;
        self.rename("secret", &path)
    }

    /// The store's secret.
    pub(crate) fn secret(&self) -> Result<Word> {
        read_secret(&self.root.join("secret"))
    }

    /// A secret that must not reach a disk: one of this boot, beside others in memory, for this store. If
    /// there is no memory, it is a new one each time, and nothing is shared. Under the lock.
    pub(crate) fn secret_of_boot(&self) -> Result<Word> {
        const TMPFS: u64 = 0x0102_1994;
        let memory =
            rustix::fs::statfs(&self.memory).is_ok_and(|found| found.f_type as u64 == TMPFS);
        if !memory {
            return new_secret();
        }
        let directory = self.memory.join("xebec-checkpoints");
        make_directory(&directory)?;
        let name = blake3::derive_key("xebec 2026 name of a store", &self.secret()?.0);
        let path = directory.join(Word(name).to_string());
        if !path.exists() {
            let draft = path.with_extension("new");
            let secret = new_secret()?;
            let written = create(&draft).and_then(|mut file| file.write_all(&secret.0));
            let renamed = written.and_then(|()| fs::rename(&draft, &path));
            renamed.map_err(Error::io("write", &path))?;
        }
        read_secret(&path)
    }

    /// Names and contents of all records.
    pub(crate) fn records(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let names = names_in(&self.root.join("records"))?;
        let read = |name: String| Ok(self.record(&name)?.map(|content| (name, content)));
        names
            .into_iter()
            .filter_map(|name| read(name).transpose())
            .collect()
    }

    /// The record of a name, if there is one.
    pub(crate) fn record(&self, name: &str) -> Result<Option<Vec<u8>>> {
        read_if_there(&self.root.join("records").join(name))
    }

    pub(crate) fn limits(&self) -> Result<Option<Vec<u8>>> {
        read_if_there(&self.limits_path())
    }

    pub(crate) fn limits_path(&self) -> PathBuf {
        self.root.join("limits.json")
    }

    pub(crate) fn pins(&self) -> Result<HashSet<String>> {
        Ok(names_in(&self.root.join("pins"))?.into_iter().collect())
    }

    pub(crate) fn pin(&self, name: &str) -> Result<()> {
        let path = self.root.join("pins").join(name);
        File::create(&path).map_err(Error::io("create", &path))?;
        sync_directory(&self.root.join("pins"))
    }

    pub(crate) fn unpin(&self, name: &str) -> Result<()> {
        remove_if_there(&self.root.join("pins").join(name))
    }

    pub(crate) fn read_chunk(&self, id: Word) -> Result<Vec<u8>> {
        let path = self.chunk(id);
        fs::read(&path).map_err(Error::io("open", path))
    }

    /// Whether a chunk lies there as it was written, as far as its size tells.
    pub(crate) fn has_chunk(&self, id: Word, bytes: u32) -> bool {
        fs::metadata(self.chunk(id)).is_ok_and(|found| found.len() == u64::from(bytes))
    }

    /// Bytes that are free on the disk for whoever may use all of it.
    pub(crate) fn free(&self) -> Result<u64> {
        let found = statvfs(&self.root).map_err(Error::io("statvfs", &self.root))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Puts chunks and the record that needs them into the store, or neither.
    pub(crate) fn commit(
        &self,
        name: &str,
        chunks: &[(Word, Vec<u8>)],
        record: &[u8],
    ) -> Result<()> {
        for (id, content) in chunks {
            self.write_staged(&id.to_string(), content)?;
        }
        self.write_staged("record", record)?;
        // Contents are on the disk before anything has a name there, and chunks before the record.
        self.sync()?;
        for (id, _) in chunks {
            let path = self.chunk(*id);
            make_directory(path.parent().unwrap_or(&self.root))?;
            self.rename(&id.to_string(), &path)?;
        }
        self.sync()?;
        let records = self.root.join("records");
        self.rename("record", &records.join(name))?;
        sync_directory(&records)
    }

    /// Takes a checkpoint out of the store; what only it needed is an orphan then.
    pub(crate) fn remove_record(&self, name: &str) -> Result<()> {
        let records = self.root.join("records");
        remove_if_there(&records.join(name))?;
        // Before any chunk goes.
        sync_directory(&records)?;
        self.unpin(name)
    }

    /// Removes what was being written when somebody was killed.
    pub(crate) fn empty_staging(&self) -> Result<()> {
        let staging = self.root.join("staging");
        for name in names_in(&staging)? {
            remove_if_there(&staging.join(name))?;
        }
        Ok(())
    }

    /// Removes chunks that nothing refers to.
    pub(crate) fn sweep(&self, referred: &HashSet<Word>) -> Result<()> {
        let chunks = self.root.join("chunks");
        for shard in names_in(&chunks)? {
            let directory = chunks.join(shard);
            for name in names_in(&directory)? {
                if !Word::parse(&name).is_some_and(|id| referred.contains(&id)) {
                    remove_if_there(&directory.join(name))?;
                }
            }
        }
        Ok(())
    }

    fn chunk(&self, id: Word) -> PathBuf {
        let name = id.to_string();
        self.root.join("chunks").join(&name[..2]).join(&name)
    }

    fn write_staged(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.root.join("staging").join(name);
        let written = create(&path).and_then(|mut file| file.write_all(content));
        written.map_err(Error::io("write", path))
    }

    fn rename(&self, staged: &str, path: &Path) -> Result<()> {
        fs::rename(self.root.join("staging").join(staged), path).map_err(Error::io("rename", path))
    }

    fn sync(&self) -> Result<()> {
        let root = File::open(&self.root).map_err(Error::io("open", &self.root))?;
        syncfs(&root).map_err(Error::io("sync", &self.root))
    }
}

fn read_secret(path: &Path) -> Result<Word> {
    let content = fs::read(path).map_err(Error::io("read", path))?;
    let secret = content.try_into();
    let secret =
        secret.map_err(|_| Error::malformed(path.display().to_string(), "not 32 bytes"))?;
    Ok(Word(secret))
}

fn new_secret() -> Result<Word> {
    let mut secret = [0; 32];
    getrandom(&mut secret, GetRandomFlags::empty()).map_err(Error::os("getrandom"))?;
    Ok(Word(secret))
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

fn make_directory(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(Error::io("mkdir", path))
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", directory))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(Error::io("sync", path))
}
