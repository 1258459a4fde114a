//! A store of checkpoints: chunks that checkpoints share, and a record for each of them.
//!
//! [`cuts`] says where images are cut (pure), [`prepare`] names and packs the pieces, [`chunk`] is how
//! one of them is named, packed, sealed and verified, [`record`] what is written of a checkpoint,
//! [`retention`] which ones go (pure), [`disk`] where everything is and in which order it gets there.

mod chunk;
mod cuts;
mod disk;
mod prepare;
mod record;
mod retention;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::flat;
use crate::keys::{Identities, Recipients};
use chunk::{Proof, Word};
use disk::{Disk, Locked};
use prepare::{in_parallel, prepare};
use record::{Head, Record};
use retention::{Coming, Kept, Usage, plan};

pub use record::Label;
pub use retention::Limits;

/// Where a store is, unless one says otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/xebec/checkpoints";

/// A store of checkpoints.
#[derive(Debug)]
pub struct Store {
    disk: Disk,
}

/// What the store knows of a checkpoint, as `list` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The container's.
    pub container: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Bytes of its images.
    pub size: u64,
    /// Bytes of the disk that its removal sets free.
    pub own: u64,
    /// Nobody without an identity can open it.
    pub sealed: bool,
    /// No limit removes it.
    pub pinned: bool,
    /// Why it cannot be used; it has no more than a name then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// What one has to say of a checkpoint that is to be kept.
#[derive(Debug)]
pub struct Keep<'a> {
    /// Who it is.
    pub label: Label,
    /// Who may open it; anyone who reads the store if there is none.
    pub recipients: Option<&'a Recipients>,
    /// No limit removes it.
    pub pinned: bool,
    /// What the store may hold; where they say nothing, its `limits.json` does.
    pub limits: Limits,
}

/// What a checkpoint has cost.
#[derive(Debug, Serialize)]
pub struct Written {
    /// Names of those that had to go.
    pub removed: Vec<String>,
    /// Bytes of its images.
    pub size: u64,
    /// Bytes that were written.
    pub stored: u64,
}

/// All records, under the lock.
struct Census {
    secret: Word,
    whole: Vec<(Record, u64)>,
    /// Names, and what is wrong.
    damaged: Vec<(String, Error)>,
    pins: HashSet<String>,
    #[expect(dead_code, reason = "held as long as the census has to be true")]
    lock: Locked,
}

impl Census {
    fn kept(&self) -> Vec<Kept<'_>> {
        self.whole
            .iter()
            .map(|(record, bytes)| Kept {
                head: &record.head,
                record: *bytes,
                pinned: self.pins.contains(&record.head.name),
            })
            .collect()
    }

    fn chunks_without(&self, going: &[String]) -> HashMap<Word, u32> {
        let stay = self
            .whole
            .iter()
            .filter(|(record, _)| !going.contains(&record.head.name));
        let chunks = stay.flat_map(|(record, _)| &record.head.chunks);
        chunks.map(|chunk| (chunk.id, chunk.bytes)).collect()
    }
}

impl Store {
    /// Opens a store, and makes it if there is none.
    pub fn make(root: &Path) -> Result<Self> {
        let disk = Disk::make(root)?;
        let _lock = disk.lock(FlockOperation::LockExclusive)?;
        disk.make_secret()?;
        Ok(Self { disk })
    }

    /// Opens a store.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self {
            disk: Disk::open(root)?,
        })
    }

    /// Keeps the images of a directory as a checkpoint. It is there when this returns, or nothing is;
    /// what the limits demand is removed before anything is written.
    pub fn save(&self, images: &Path, keep: &Keep<'_>) -> Result<Written> {
        check_name(&keep.label.name)?;
        let images = flat::open_all(images)?;
        let size = images.iter().map(|image| image.size).sum();
        let census = self.census(FlockOperation::LockExclusive)?;
        let name = &keep.label.name;
        let damaged = census.damaged.iter().any(|(damaged, _)| damaged == name);
        if damaged
            || census
                .whole
                .iter()
                .any(|(record, _)| record.head.name == *name)
        {
            return Err(Error::Exists(name.clone()));
        }
        self.disk.empty_staging()?;
        self.sweep(&census, &[])?;
        let key = self.chunk_key(&census.secret, keep.recipients)?;
        let here = census.chunks_without(&[]);
        let sealed = keep.recipients.is_some();
        let prepared = prepare(&images, (&key, sealed), |id| {
            here.get(&id)
                .copied()
                .filter(|bytes| self.disk.has_chunk(id, *bytes))
        })?;
        let head = Head::new(keep.label.clone(), size, sealed, prepared.chunks);
        let parts = (prepared.contents, prepared.files);
        let record = record::encode(&head, parts, keep.recipients, &census.secret)?;
        let removed = self.make_room(&census, &head, (record.len() as u64, keep))?;
        let chunks = prepared.new.iter().map(|(_, chunk)| chunk.len() as u64);
        let stored = chunks.sum::<u64>() + record.len() as u64;
        if let Err(error) = self.write(&head, (&prepared.new, &record), keep.pinned) {
            // The failure that brought us here is the one to report; the next one sweeps, too.
            let _ = self.disk.empty_staging();
            let _ = self.sweep(&census, &removed);
            return Err(error);
        }
        Ok(Written {
            removed,
            size,
            stored,
        })
    }

    fn write(
        &self,
        head: &Head,
        (chunks, record): (&[(Word, Vec<u8>)], &[u8]),
        pinned: bool,
    ) -> Result<()> {
        if pinned {
            self.disk.pin(&head.name)?;
        }
        self.disk.commit(&head.name, chunks, record)
    }

    /// Removes what has to go before a checkpoint comes.
    fn make_room(
        &self,
        census: &Census,
        head: &Head,
        (record, keep): (u64, &Keep<'_>),
    ) -> Result<Vec<String>> {
        let coming = Coming {
            container: &head.container,
            pinned: keep.pinned,
            chunks: &head.chunks,
            record,
        };
        let limits = keep.limits.or(self.limits()?);
        let going = self.going(census, Some(&coming), &limits)?;
        self.forget(&going)?;
        let mut needed = census.chunks_without(&going);
        needed.extend(head.chunks.iter().map(|chunk| (chunk.id, chunk.bytes)));
        if !going.is_empty() && census.damaged.is_empty() {
            self.disk.sweep(&needed.into_keys().collect())?;
        }
        Ok(going)
    }

    fn going(
        &self,
        census: &Census,
        coming: Option<&Coming<'_>>,
        limits: &Limits,
    ) -> Result<Vec<String>> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let kept = census.kept();
        let going = plan(&kept, coming, limits, (now, self.disk.free()?)).map_err(Error::Full)?;
        Ok(going.into_iter().map(str::to_owned).collect())
    }

    fn forget(&self, names: &[String]) -> Result<()> {
        names
            .iter()
            .try_for_each(|name| self.disk.remove_record(name))
    }

    /// Removes orphans, chunks and pins, unless there is a record that cannot tell what it refers to.
    fn sweep(&self, census: &Census, gone: &[String]) -> Result<()> {
        if !census.damaged.is_empty() {
            return Ok(());
        }
        let referred = census.chunks_without(gone).into_keys().collect();
        self.disk.sweep(&referred)?;
        let is_there = |name: &String| {
            census
                .whole
                .iter()
                .any(|(record, _)| record.head.name == *name)
        };
        let lost = census.pins.iter().filter(|name| !is_there(name));
        lost.into_iter().try_for_each(|name| self.disk.unpin(name))
    }

    /// Puts the images of a checkpoint into a directory, all of them verified.
    pub fn load(&self, name: &str, identities: &Identities, images: &Path) -> Result<()> {
        check_name(name)?;
        let _lock = self.disk.lock(FlockOperation::LockShared)?;
        let secret = self.disk.secret()?;
        let record = self
            .disk
            .record(name)?
            .ok_or_else(|| Error::Missing(name.to_owned()))?;
        let record = Record::decode(name, &record, &secret)?;
        let contents = record.contents(identities)?;
        let key = self.chunk_key(&secret, None)?;
        let mut wanted = Vec::new();
        for file in &contents.files {
            let output = flat::create(images, &file.name)?;
            let mut offset = 0;
            for number in &file.chunks {
                wanted.push((wanted_in(&output, &file.name)?, offset, *number as usize));
                offset += u64::from(contents.chunks[*number as usize].length);
            }
        }
        let written = in_parallel(
            &wanted,
            || Ok(()),
            |(), (output, offset, number)| {
                let content = contents.chunks[*number];
                let id = record.head.chunks[*number].id;
                let proof = match content.digest {
                    Some(digest) => Proof::Sealed { digest },
                    None => Proof::Plain { key, id },
                };
                if proof.id() != id {
                    return Err(Error::malformed(
                        format!("chunk {id}"),
                        "another one than its record names",
                    ));
                }
                let plain = proof.unpack(self.disk.read_chunk(id)?, content.length as usize)?;
                output
                    .write_all_at(&plain, *offset)
                    .map_err(Error::os("write to memory"))
            },
        );
        written.map(drop)
    }

    /// All checkpoints, the oldest first.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let census = self.census(FlockOperation::LockShared)?;
        let mut usage = Usage::new();
        for kept in census.kept() {
            usage.add(&kept.head.chunks, kept.record);
        }
        let whole = census.kept().into_iter().map(|kept| Listed {
            name: kept.head.name.clone(),
            container: kept.head.container.clone(),
            created: kept.head.created,
            size: kept.head.size,
            own: usage.own(&kept.head.chunks) + retention::on_disk(kept.record),
            sealed: kept.head.sealed,
            pinned: kept.pinned,
            damage: None,
        });
        let damaged = census.damaged.iter().map(|(name, error)| Listed {
            name: name.clone(),
            container: String::new(),
            created: 0,
            size: 0,
            own: 0,
            sealed: false,
            pinned: census.pins.contains(name),
            damage: Some(error.to_string()),
        });
        let mut all: Vec<_> = whole.chain(damaged).collect();
        all.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(all)
    }

    /// Removes checkpoints by their names, pinned and damaged ones, too.
    pub fn remove(&self, names: &[String]) -> Result<()> {
        let census = self.census(FlockOperation::LockExclusive)?;
        for name in names {
            check_name(name)?;
            if self.disk.record(name)?.is_none() {
                return Err(Error::Missing(name.clone()));
            }
        }
        self.forget(names)?;
        self.after_removal(census, names)
    }

    /// Removes what these limits, and those of the store, do not allow; the names that went.
    pub fn prune(&self, limits: Limits) -> Result<Vec<String>> {
        let census = self.census(FlockOperation::LockExclusive)?;
        let going = self.going(&census, None, &limits.or(self.limits()?))?;
        self.forget(&going)?;
        self.after_removal(census, &going)?;
        Ok(going)
    }

    fn after_removal(&self, mut census: Census, gone: &[String]) -> Result<()> {
        census.damaged.retain(|(name, _)| !gone.contains(name));
        self.disk.empty_staging()?;
        self.sweep(&census, gone)
    }

    /// Has limits leave a checkpoint alone, or not any more.
    pub fn set_pinned(&self, name: &str, pinned: bool) -> Result<()> {
        check_name(name)?;
        let _lock = self.disk.lock(FlockOperation::LockExclusive)?;
        if self.disk.record(name)?.is_none() {
            return Err(Error::Missing(name.to_owned()));
        }
        if pinned {
            self.disk.pin(name)
        } else {
            self.disk.unpin(name)
        }
    }

    /// What names of chunks are made with. Those of sealed ones must not be guessed by who has the
    /// disk: theirs is of memory, and only the same recipients share chunks.
    fn chunk_key(&self, secret: &Word, recipients: Option<&Recipients>) -> Result<Word> {
        let Some(recipients) = recipients else {
            return Ok(Word(blake3::derive_key(
                "xebec 2026 plain chunks",
                &secret.0,
            )));
        };
        let mut material = self.disk.secret_of_boot()?.0.to_vec();
        material.extend(recipients.fingerprint());
        Ok(Word(blake3::derive_key(
            "xebec 2026 sealed chunks",
            &material,
        )))
    }

    fn limits(&self) -> Result<Limits> {
        let Some(content) = self.disk.limits()? else {
            return Ok(Limits::default());
        };
        let path = self.disk.limits_path();
        serde_json::from_slice(&content)
            .map_err(|e| Error::malformed(path.display().to_string(), e))
    }

    fn census(&self, operation: FlockOperation) -> Result<Census> {
        let lock = self.disk.lock(operation)?;
        let secret = self.disk.secret()?;
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        for (name, content) in self.disk.records()? {
            match Record::decode(&name, &content, &secret) {
                Ok(record) => whole.push((record, content.len() as u64)),
                Err(error) => damaged.push((name, error)),
            }
        }
        let pins = self.disk.pins()?;
        Ok(Census {
            secret,
            whole,
            damaged,
            pins,
            lock,
        })
    }
}

fn wanted_in(file: &std::fs::File, name: &str) -> Result<std::fs::File> {
    file.try_clone().map_err(Error::io("open", name))
}

/// Reads a record as it is before its code, as one may be that somebody with the store's secret has
/// forged; the bytes of its images. For fuzzing.
#[doc(hidden)]
pub fn read_record(name: &str, content: &[u8]) -> Result<u64> {
    let record = Record::parse(name, content)?;
    record.contents(&Identities::default())?;
    Ok(record.head.size)
}

/// Lengths of the chunks that a file of `size` bytes is cut into by this page map. For fuzzing.
#[doc(hidden)]
pub fn cuts_by(map: &[u8], size: u64) -> Option<Vec<u32>> {
    let (_, runs) = cuts::page_map(map, rustix::param::page_size() as u64)?;
    Some(cuts::along(&runs, size, prepare::WINDOW))
}

/// Refuses what can be no name of a checkpoint.
pub fn check_name(name: &str) -> Result<()> {
    if flat::is_name(name) {
        return Ok(());
    }
    let rule = "letters, digits and ._+- are allowed, 200 at most, and no dot in front";
    Err(Error::Invalid(format!(
        "{name:?} is no name of a checkpoint: {rule}"
    )))
}
