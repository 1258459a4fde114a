//! Templates on disk: one directory each, complete or not there, for nobody but their owner.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, SeekFrom, flock, renameat_with, seek};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::count::Counter;
use super::flatten::names;
use super::memory::PAGE;
use super::record::{FileFacts, MemoryMode, Template};
use crate::error::{Error, Result};
use crate::hex::hex;
use crate::state::ContainerId;

/// Where templates are unless another directory is given.
pub const TEMPLATES: &str = "/var/lib/xebec/templates";
/// The file that says what a template is.
pub const RECORD: &str = "template.json";
/// No record is larger.
const RECORD_MAX: u64 = 64 << 20;
/// The pages of the mode `share`.
const PAGES: &str = "pages";
/// Directory of the pages that a first request needs, and of those in the making.
const HOT: &str = "hot";
const NEW_HOT: &str = "@hot";
/// As much as one call reads to be hashed.
const CHUNK: u64 = 64 << 10;
/// What is being made or removed; no template can have such a name.
const DRAFT: &str = "@new-";
const REMOVED: &str = "@old-";

/// The templates below one directory, which nobody but its owner can write to.
#[derive(Clone, Debug)]
pub struct Templates {
    root: PathBuf,
}

/// The directory of a template.
#[derive(Clone, Debug)]
pub(crate) struct TemplateDir {
    pub(crate) path: PathBuf,
}

impl TemplateDir {
    /// Its images for a mode.
    pub(crate) fn images(&self, mode: MemoryMode) -> PathBuf {
        self.path.join(mode.images().to_string())
    }

    pub(crate) fn page_file(&self) -> PathBuf {
        self.path.join(PAGES)
    }

    /// The content of one of its file systems.
    pub(crate) fn filesystem(&self, index: usize) -> PathBuf {
        self.path.join("tmpfs").join(index.to_string())
    }

    /// What its files are now: the images of a mode, and the page file if that is of use then.
    pub(crate) fn facts(&self, mode: MemoryMode) -> Result<Vec<(String, FileFacts)>> {
        self.facts_of(self.files_of(mode)?)
    }

    fn facts_of(&self, files: Vec<String>) -> Result<Vec<(String, FileFacts)>> {
        let mut facts = Vec::new();
        for file in files {
            let path = self.path.join(&file);
            let size = fs::metadata(&path)
                .map_err(Error::file("stat", &path))?
                .len();
            let sha256 = digest(&path)?;
            facts.push((file, FileFacts { size, sha256 }));
        }
        Ok(facts)
    }

    fn files_of(&self, mode: MemoryMode) -> Result<Vec<String>> {
        let mode = mode.images();
        let images = names(&self.images(mode))?;
        let mut files: Vec<_> = images.iter().map(|name| format!("{mode}/{name}")).collect();
        if mode == MemoryMode::Share {
            files.push(PAGES.to_owned());
        }
        Ok(files)
    }

    /// Holds the files of a mode against the record: their content, of images of pages merely the
    /// size unless `thorough`.
    pub(crate) fn verify(&self, record: &Template, mode: MemoryMode, thorough: bool) -> Result<()> {
        let found = self.files_of(mode)?;
        let prefix = format!("{}/", mode.images());
        let known = record.files.keys().filter(|name| name.starts_with(&prefix));
        if let Some(missing) = known.into_iter().find(|name| !found.contains(name)) {
            return Err(self.damaged(missing, "is missing"));
        }
        for file in &found {
            let facts = record.files.get(file);
            let facts = facts.ok_or_else(|| self.damaged(file, "is not the template's"))?;
            self.verify_file(file, facts, thorough)?;
        }
        if mode == MemoryMode::Uffd || thorough {
            let prefix = format!("{HOT}/");
            let hot = record
                .files
                .iter()
                .filter(|(file, _)| file.starts_with(&prefix));
            for (file, facts) in hot {
                self.verify_file(file, facts, thorough)?;
            }
        }
        Ok(())
    }

    fn verify_file(&self, file: &str, facts: &FileFacts, thorough: bool) -> Result<()> {
        let path = self.path.join(file);
        let size = fs::metadata(&path)
            .map_err(Error::file("stat", &path))?
            .len();
        if size != facts.size {
            return Err(self.damaged(file, "has another size"));
        }
        let is_large = file.contains("pages");
        if (thorough || !is_large) && digest(&path)? != facts.sha256 {
            return Err(self.damaged(file, "has other content"));
        }
        Ok(())
    }

    fn damaged(&self, file: &str, reason: &str) -> Error {
        let path = self.path.join(file);
        Error::InvalidArgument(format!("template is damaged: {} {reason}", path.display()))
    }

    /// The number of the next clone; no two get the same.
    pub(crate) fn next_generation(&self) -> Result<u64> {
        Counter::of(&self.path).next(|| digest(&self.path.join(RECORD)))
    }
}

impl Templates {
    /// Those in `root`, which is made with the first template.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes a template of what `fill` puts into its directory, and of the record that it returns.
    pub(crate) fn create(
        &self,
        name: &ContainerId,
        fill: impl FnOnce(&TemplateDir) -> Result<Template>,
    ) -> Result<Template> {
        let make = |path: &Path| {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(path).map_err(Error::file("mkdir", path))
        };
        make(&self.root)?;
        check_owner(&self.root)?;
        let place = self.root.join(name.as_str());
        if place.exists() {
            return Err(exists(name));
        }
        let draft = self.root.join(format!("{DRAFT}{name}"));
        let _lock = take_draft(&draft, name)?;
        let dir = TemplateDir {
            path: draft.clone(),
        };
        let filled = fill(&dir).and_then(|record| {
            write_record(&draft, &record)?;
            match renameat_with(CWD, &draft, CWD, &place, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => Err(exists(name)),
                renamed => renamed.map_err(Error::file("rename", &draft)),
            }?;
            Ok(record)
        });
        if filled.is_err() {
            // The cause is what the caller has to hear of.
            let _ = fs::remove_dir_all(&draft);
        }
        filled
    }

    /// A template and its record.
    pub(crate) fn open(&self, name: &ContainerId) -> Result<(TemplateDir, Template)> {
        let path = self.root.join(name.as_str());
        match check_owner(&path) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::InvalidArgument(format!(
                    "template {name} does not exist"
                )));
            }
            checked => checked?,
        }
        check_owner(&self.root)?;
        let record = read_record(&path.join(RECORD), name)?;
        Ok((TemplateDir { path }, record))
    }

    /// What is known of a template.
    ///
    /// # Errors
    /// There is none, it is damaged, or others could have written it.
    pub fn get(&self, name: &ContainerId) -> Result<Template> {
        self.open(name).map(|(_, record)| record)
    }

    /// The same, after every byte of its files has been held against the record.
    ///
    /// # Errors
    /// Names the file that is not as it was.
    pub fn verify(&self, name: &ContainerId) -> Result<Template> {
        let (dir, record) = self.open(name)?;
        for mode in &record.modes {
            dir.verify(&record, *mode, true)?;
        }
        Ok(record)
    }

    /// Gives a template the hot pages that `fill` writes into a directory, in the place of those that
    /// it has; clones that start meanwhile do without.
    pub(crate) fn set_hot(
        &self,
        name: &ContainerId,
        fill: impl FnOnce(&TemplateDir, &Path) -> Result<u64>,
    ) -> Result<Template> {
        let (dir, _) = self.open(name)?;
        let lock = File::open(&dir.path).map_err(Error::file("open", &dir.path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(Error::file("lock", &dir.path))?;
        let (new, place) = (dir.path.join(NEW_HOT), dir.path.join(HOT));
        remove_if_there(&new)?;
        let make = DirBuilder::new().mode(0o700).create(&new);
        make.map_err(Error::file("mkdir", &new))?;
        let filled = fill(&dir, &new).and_then(|hot_memory| {
            let mut record = read_record(&dir.path.join(RECORD), name)?;
            let prefix = format!("{HOT}/");
            record.files.retain(|file, _| !file.starts_with(&prefix));
            record.hot_memory = 0;
            write_record(&dir.path, &record)?;
            remove_if_there(&place)?;
            fs::rename(&new, &place).map_err(Error::file("rename", &new))?;
            let files = names(&place)?
                .into_iter()
                .map(|file| prefix.clone() + &file);
            record.files.extend(dir.facts_of(files.collect())?);
            record.hot_memory = hot_memory;
            write_record(&dir.path, &record)?;
            Ok(record)
        });
        if filled.is_err() {
            // The cause is what the caller has to hear of.
            let _ = remove_if_there(&new);
        }
        filled
    }

    /// A template for another machine: its directory, and its record without what is of use on this
    /// one only, as the text of a file called [`RECORD`].
    ///
    /// # Errors
    /// As for [`Templates::get`]; it was not made for memory that is copied.
    pub fn portable(&self, name: &ContainerId) -> Result<(PathBuf, Vec<u8>)> {
        let (dir, mut record) = self.open(name)?;
        record.modes.retain(|mode| *mode == MemoryMode::Eager);
        if record.modes.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "template {name} is for the memory mode share alone"
            )));
        }
        let prefixes = [MemoryMode::Eager.to_string(), HOT.to_owned()].map(|part| part + "/");
        let is_kept = |file: &String| prefixes.iter().any(|prefix| file.starts_with(prefix));
        record.files.retain(|file, _| is_kept(file));
        let text =
            serde_json::to_vec_pretty(&record).map_err(|e| Error::os("encode template")(e))?;
        Ok((dir.path, text))
    }

    /// Where a template of this name is, or would be.
    pub fn place(&self, name: &ContainerId) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// All templates, by name; with the errors of those that cannot be read.
    pub fn list(&self) -> Result<(Vec<Template>, Vec<Error>)> {
        let entries = match names(&self.root) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok((Vec::new(), Vec::new()));
            }
            entries => entries?,
        };
        let (mut found, mut damaged) = (Vec::new(), Vec::new());
        for name in entries.iter().filter_map(|name| name.parse().ok()) {
            match self.open(&name) {
                Ok((_, record)) => found.push(record),
                Err(error) => damaged.push(error),
            }
        }
        Ok((found, damaged))
    }

    /// Removes a template, whatever it looks like; clones go on.
    pub fn remove(&self, name: &ContainerId) -> Result<()> {
        let path = self.root.join(name.as_str());
        let removed = self.root.join(format!("{REMOVED}{name}"));
        let away = || renameat_with(CWD, &path, CWD, &removed, RenameFlags::NOREPLACE);
        let moved = match away() {
            Err(Errno::EXIST) => {
                // Whoever removed it before was stopped.
                fs::remove_dir_all(&removed).map_err(Error::file("remove", &removed))?;
                away()
            }
            moved => moved,
        };
        match moved {
            Err(Errno::NOENT) => {
                return Err(Error::InvalidArgument(format!(
                    "template {name} does not exist"
                )));
            }
            moved => moved.map_err(Error::file("rename", &path))?,
        }
        fs::remove_dir_all(&removed).map_err(Error::file("remove", removed))
    }
}

fn remove_if_there(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::file("remove", directory)),
    }
}

fn exists(name: &ContainerId) -> Error {
    Error::InvalidArgument(format!("template {name} exists already"))
}

/// Makes the directory of a draft, in the place of one whose maker was killed.
fn take_draft(draft: &Path, name: &ContainerId) -> Result<File> {
    let make = || DirBuilder::new().mode(0o700).create(draft);
    let lock = || -> Result<File> {
        let file = File::open(draft).map_err(Error::file("open", draft))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::InvalidArgument(format!("template {name} is being made by somebody else"))
        })?;
        Ok(file)
    };
    match make() {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let _left = lock()?;
            fs::remove_dir_all(draft).map_err(Error::file("remove", draft))?;
            make()
        }
        made => made,
    }
    .map_err(Error::file("mkdir", draft))?;
    lock()
}

/// CRIU trusts its images: nobody else may have had a hand in them.
pub(super) fn check_owner(path: &Path) -> Result<()> {
    let found = fs::symlink_metadata(path).map_err(Error::file("open", path))?;
    let ours = found.uid() == rustix::process::geteuid().as_raw();
    if found.is_dir() && ours && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(Error::InvalidArgument(format!(
        "{path} is no directory of this user's alone, whose content could be trusted"
    )))
}

fn write_record(directory: &Path, record: &Template) -> Result<()> {
    let text = serde_json::to_vec_pretty(record).map_err(|e| Error::os("encode template")(e))?;
    let path = directory.join(RECORD);
    crate::publish::publish(&path, 0o600, &text).map_err(Error::file("write", path))
}

fn read_record(path: &Path, name: &ContainerId) -> Result<Template> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(Error::file("open", path))?;
    file.take(RECORD_MAX)
        .read_to_end(&mut text)
        .map_err(Error::file("read", path))?;
    let damaged = |reason: String| {
        let path = path.display();
        Error::InvalidArgument(format!("template is damaged: {path}: {reason}"))
    };
    let record: Template = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    record.check(name).map_err(damaged)?;
    Ok(record)
}

fn digest(path: &Path) -> Result<String> {
    let failed = |e: io::Error| Error::file("read", path)(e);
    let mut file = File::open(path).map_err(Error::file("open", path))?;
    let hash = if path.ends_with(PAGES) {
        digest_sparse(&file)
    } else {
        let mut hash = Sha256::new();
        read_through(&mut file, |chunk| hash.update(chunk)).map(|()| hash)
    };
    Ok(hex(&hash.map_err(failed)?.finalize()))
}

/// The digest of a file that is nearly all holes: of what is not zero, with its place.
fn digest_sparse(mut file: &File) -> io::Result<Sha256> {
    let mut hash = Sha256::new();
    let mut at = 0;
    loop {
        let data = match seek(file, SeekFrom::Data(at)) {
            // There is no more.
            Err(Errno::NXIO) => return Ok(hash),
            found => found?,
        };
        at = seek(file, SeekFrom::Hole(data))?;
        seek(file, SeekFrom::Start(data))?;
        let mut place = data;
        read_through(&mut file.by_ref().take(at - data), |chunk| {
            for page in chunk.chunks(PAGE as usize) {
                if page.iter().any(|byte| *byte != 0) {
                    hash.update(place.to_le_bytes());
                    hash.update(page);
                }
                place += page.len() as u64;
            }
        })?;
    }
}

/// Reads to the end, in chunks that are full but for the last one.
fn read_through(file: &mut impl Read, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut chunk = Vec::with_capacity(CHUNK as usize);
    loop {
        chunk.clear();
        if file.take(CHUNK).read_to_end(&mut chunk)? == 0 {
            return Ok(());
        }
        each(&chunk);
    }
}

#[cfg(test)]
mod tests;
