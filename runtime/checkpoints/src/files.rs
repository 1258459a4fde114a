//! The files of a checkpoint, in an archive or a directory: the small ones in memory, and where the
//! memory of processes is. Nothing is written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::archive::{CHECKPOINT, Kind, Limits, decompressed, read_members};
use crate::error::{Error, Result};

/// Largest file that is kept in memory, and all of them together, in bytes.
const SMALL: u64 = 16 << 20;
const SMALL_TOTAL: u64 = 256 << 20;
/// What an archive may hold of anything.
pub(crate) const LIMITS: Limits = Limits {
    members: 1 << 18,
    bytes: i64::MAX as u64,
};

/// The files of a checkpoint, by their names in an archive; CRIU's are in `checkpoint/`.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    /// What they are called by in errors.
    shown: String,
    is_archive: bool,
    /// CRIU's files are in the directory itself.
    is_bare: bool,
    small: BTreeMap<String, Vec<u8>>,
    sizes: BTreeMap<String, u64>,
    small_left: u64,
}

/// What is done with name, size and content of each file in an archive.
type Visit<'a> = dyn FnMut(&mut Files, String, u64, &mut dyn Read) -> Result<()> + 'a;

/// A piece of a file.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) length: usize,
}

impl Files {
    /// Looks through an archive, or a directory with the same content, or one of CRIU's images.
    ///
    /// # Errors
    /// It cannot be read, or the archive is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let facts = fs::metadata(path).map_err(Error::io("open", path))?;
        let mut files = Self {
            path: path.to_owned(),
            shown: path.display().to_string(),
            is_archive: !facts.is_dir(),
            is_bare: path.join("inventory.img").is_file(),
            small: BTreeMap::new(),
            sizes: BTreeMap::new(),
            small_left: SMALL_TOTAL,
        };
        if files.is_archive {
            files.read_archive()?;
        } else {
            let prefix = if files.is_bare { CHECKPOINT } else { "" };
            files.read_directory(path, prefix, 0)?;
        }
        Ok(files)
    }

    /// The same files, called by another name in errors.
    pub(crate) fn called(mut self, name: &str) -> Self {
        name.clone_into(&mut self.shown);
        self
    }

    /// What the files are called by in errors.
    pub fn shown(&self) -> String {
        self.shown.clone()
    }

    /// The content of a small file; none if there is no such file.
    ///
    /// # Errors
    /// It is there, and too large.
    pub fn get(&self, name: &str) -> Result<Option<&[u8]>> {
        match (self.small.get(name), self.sizes.get(name)) {
            (Some(content), _) => Ok(Some(content)),
            (None, None) => Ok(None),
            (None, Some(size)) => {
                let reason = format!("{size} bytes are too many");
                Err(Error::refused(self.shown(), name, reason))
            }
        }
    }

    /// The content of a file of any size, if it is in a directory.
    pub(crate) fn stream(&self, name: &str) -> Result<Box<dyn Read + '_>> {
        match self.small.get(name) {
            Some(content) => Ok(Box::new(content.as_slice())),
            None if self.is_archive => Err(Error::refused(self.shown(), name, "it is too large")),
            None => Ok(Box::new(open(&self.real_path(name))?)),
        }
    }

    fn real_path(&self, name: &str) -> PathBuf {
        let bare = name.strip_prefix("checkpoint/").filter(|_| self.is_bare);
        self.path.join(bare.unwrap_or(name))
    }

    /// All names with their sizes in bytes.
    pub fn sizes(&self) -> &BTreeMap<String, u64> {
        &self.sizes
    }

    /// The names of CRIU's image files, without their directory.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        let names = self.sizes.keys();
        names.filter_map(|name| name.strip_prefix(CHECKPOINT)?.strip_prefix('/'))
    }

    fn read_archive(&mut self) -> Result<()> {
        self.walk(&mut |files, name, size, content| files.note(name, size, content))
    }

    fn walk(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        let file = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        let shown = self.shown();
        let mut input = decompressed(file).map_err(|e| Error::malformed(&shown, e))?;
        read_members(&mut input, &shown, LIMITS, &mut |member, content| {
            let name = member.name.to_string_lossy().into_owned();
            match member.kind {
                Kind::File => visit(self, name, member.size, content),
                Kind::Directory => Ok(()),
                kind => {
                    let reason = format!("a {} has no place in a checkpoint", kind.word());
                    Err(Error::refused(&shown, name, reason))
                }
            }
        })
    }

    fn read_directory(&mut self, path: &Path, prefix: &str, depth: u32) -> Result<()> {
        for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
            let entry = entry.map_err(Error::io("list", path))?;
            let own = entry.file_name().to_string_lossy().into_owned();
            let name = if prefix.is_empty() {
                own
            } else {
                format!("{prefix}/{own}")
            };
            let kind = entry.file_type().map_err(Error::io("stat", entry.path()))?;
            if kind.is_dir() && depth < 2 && !self.is_bare {
                self.read_directory(&entry.path(), &name, depth + 1)?;
            } else if kind.is_file() {
                let mut file = open(&entry.path())?;
                let facts = file.metadata().map_err(Error::io("stat", entry.path()))?;
                self.note(name, facts.len(), &mut file)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, name: String, size: u64, content: &mut dyn Read) -> Result<()> {
        let is_small = size <= SMALL && !is_data(&name);
        if is_small {
            let Some(left) = self.small_left.checked_sub(size) else {
                let reason = format!("small files of more than {SMALL_TOTAL} bytes");
                return Err(Error::refused(self.shown(), name, reason));
            };
            self.small_left = left;
            let mut bytes = Vec::new();
            let read = content.take(size).read_to_end(&mut bytes);
            read.map_err(|e| self.cut_short(&name, &e))?;
            self.small.insert(name.clone(), bytes);
        }
        self.sizes.insert(name, size);
        Ok(())
    }

    fn cut_short(&self, name: &str, error: &io::Error) -> Error {
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the archive ends in it".to_owned(),
            _ => error.to_string(),
        };
        Error::refused(self.shown(), name, reason)
    }

    /// Reads pieces of large files, in their order; one that is not there is empty.
    pub(crate) fn pieces(&mut self, pieces: &[Piece]) -> Result<Vec<Vec<u8>>> {
        let mut found = vec![Vec::new(); pieces.len()];
        if !self.is_archive {
            for (piece, bytes) in pieces.iter().zip(&mut found) {
                *bytes = self.piece_of_file(piece)?;
            }
            return Ok(found);
        }
        let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, piece) in pieces.iter().enumerate() {
            by_name.entry(&piece.name).or_default().push(index);
        }
        self.walk(&mut |files, name, _, content| {
            let mut wanted = by_name.remove(name.as_str()).unwrap_or_default();
            wanted.sort_by_key(|index| pieces[*index].offset);
            let mut at = 0;
            for index in wanted {
                let piece = &pieces[index];
                let Some(gap) = piece.offset.checked_sub(at) else {
                    continue;
                };
                let skip = io::copy(&mut content.take(gap), &mut io::sink());
                let mut bytes = Vec::new();
                skip.and_then(|_| content.take(piece.length as u64).read_to_end(&mut bytes))
                    .map_err(|e| files.cut_short(&name, &e))?;
                at = piece.offset + bytes.len() as u64;
                found[index] = bytes;
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn piece_of_file(&self, piece: &Piece) -> Result<Vec<u8>> {
        let path = self.real_path(&piece.name);
        if !self.sizes.contains_key(&piece.name) {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; piece.length];
        let file = open(&path)?;
        let read = file.read_at(&mut bytes, piece.offset);
        let read = read.map_err(Error::io("read", &path))?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

fn open(path: &Path) -> Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(Error::io("open", path))
}

/// Files that hold what a process had, and say nothing about it.
fn is_data(name: &str) -> bool {
    let own = Path::new(name.rsplit('/').next().unwrap_or(name));
    let ending = own.extension().and_then(|ending| ending.to_str());
    own.to_string_lossy().starts_with("pages-") || matches!(ending, Some("tar" | "log"))
}
