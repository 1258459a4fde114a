//! Sealed segments: where the file system has fs-verity, a segment that is complete and on disk can
//! never be written to again, and the kernel verifies every read of it against a digest.
//!
//! The digests stand in the file `seals`, so that another file in the place of a sealed one is told
//! when the layer is opened: what is refused then counts as absent and is fetched again.
//!
//! **Crash safety.** A segment is sealed after [`Blob::sync`](super::Blob::sync) has made its chunks
//! durable, and noted afterwards: a sealed file without a note is noted when the layer is opened,
//! as it is worth what an unsealed one is. A refused segment is taken from both bitmaps, then
//! unlinked, then its note is dropped: cut off in between, it is refused once more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::bitmap::Bitmap;
use super::blob::lock;
use super::segments::Segments;
use super::summed;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::verity;

/// Stands for the digest of a file that no file has: whatever is found is refused.
const REFUSED: Digest = Digest::from_bytes([0; 32]);
/// Bytes of a segment's number and digest in `seals`.
const NOTE_LEN: usize = 36;

/// What is done about fs-verity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sealing {
    /// The file system has none of it.
    #[default]
    Absent,
    /// What is sealed is verified; no more is sealed.
    Off,
    /// Segments are sealed when they are complete.
    On,
}

/// What was sealed and refused since the daemon's start.
#[derive(Debug, Default)]
pub struct Sealer {
    sealing: Sealing,
    sealed: AtomicU64,
    refused: AtomicU64,
}

impl Sealer {
    pub(super) fn new(sealing: Sealing) -> Self {
        Self {
            sealing,
            ..Self::default()
        }
    }

    /// What is done.
    pub fn sealing(&self) -> Sealing {
        self.sealing
    }

    /// Files that were sealed.
    pub fn sealed(&self) -> u64 {
        self.sealed.load(Ordering::Relaxed)
    }

    /// Files that were not what was sealed, or could not be read.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Whether files below `root` can be sealed: tried, not guessed. The error says what is missing.
///
/// The file stays: what was found to work must not fail at a later start because the disk is full.
pub fn probe(root: &Path) -> Result<(), String> {
    fs::create_dir_all(root).map_err(|error| format!("{}: {error}", root.display()))?;
    let path = root.join("verity");
    if let Ok(Found::Sealed(_)) = find(&path) {
        return Ok(());
    }
    let make = || {
        // Not what an unclean end may have left: that may be sealed in another way.
        super::evict::unless_gone(fs::remove_file(&path))?;
        fs::write(&path, "xebec")?;
        verity::seal(&File::open(&path)?)
    };
    make().map_err(|error| {
        // Of no use; the reason to be told is the first one.
        let _ = fs::remove_file(&path);
        format!(
            "the file system of {} has no fs-verity (ext4 made with -O verity, and btrfs have): {error}",
            root.display()
        )
    })
}

/// What is in the place of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No file, or one that anybody may write to.
    Open,
    /// A sealed one.
    Sealed(Digest),
    /// One that the kernel refuses.
    Broken,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    /// Stays, and its digest is noted.
    Noted(Digest),
    /// A copy of another length, not sealed, has taken its place.
    Copied,
    Refused,
}

fn fate(noted: Option<Digest>, found: Found, is_complete: bool) -> Fate {
    match (noted, found) {
        (None, Found::Open) => Fate::Stays,
        (None, Found::Sealed(digest)) if is_complete => Fate::Noted(digest),
        (Some(noted), Found::Sealed(digest)) if is_complete && noted == digest => Fate::Stays,
        // Also what is sealed without being claimed: it could not be completed.
        _ => Fate::Refused,
    }
}

fn find(path: &Path) -> io::Result<Found> {
    let measured = File::open(path).and_then(|file| verity::measure(&file));
    match measured {
        Ok(Some(digest)) => Ok(Found::Sealed(Digest::from_bytes(digest))),
        Ok(None) => Ok(Found::Open),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Open),
        Err(error) if verity::is_broken(&error) => Ok(Found::Broken),
        Err(error) => Err(error),
    }
}

/// Looks at what is in the place of a segment, and copies a sealed file of another length than is
/// wanted.
fn look(
    segments: &Segments,
    present: &Bitmap,
    segment: u32,
    noted: Option<Digest>,
) -> Result<Fate> {
    let path = segments.path(segment);
    let found = find(&segments.own_path(segment)).map_err(Error::io("open", &path))?;
    if (noted, found) == (None, Found::Open) {
        return Ok(Fate::Stays);
    }
    let is_complete = segments.chunks(segment).all(|chunk| present.has(chunk));
    let fate = fate(noted, found, is_complete);
    if fate == Fate::Refused || segments.has_its_len(segment)? {
        return Ok(fate);
    }
    Ok(match segments.copy_anew(segment) {
        Ok(()) => Fate::Copied,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "copy a sealed file");
            Fate::Refused
        }
    })
}

/// The seals of one layer.
#[derive(Debug)]
pub(super) struct Seals {
    sealer: Arc<Sealer>,
    path: PathBuf,
    noted: Mutex<BTreeMap<u32, Digest>>,
    /// Segments that may be complete and are not sealed.
    due: Mutex<BTreeSet<u32>>,
}

impl Seals {
    /// Looks at what is in the place of each segment; what is refused is absent from now on.
    pub(super) fn open(
        segments: &Segments,
        present: &mut Bitmap,
        boot: &str,
        sealer: &Arc<Sealer>,
    ) -> Result<Self> {
        let path = segments.directory().join("seals");
        let mut noted = read_notes(&path)?;
        let known = noted.clone();
        let mut refused = Vec::new();
        for segment in 0..segments.index().segments() {
            match look(segments, present, segment, noted.get(&segment).copied())? {
                Fate::Stays => {}
                Fate::Noted(digest) => drop(noted.insert(segment, digest)),
                Fate::Copied => drop(noted.remove(&segment)),
                Fate::Refused => refused.push(segment),
            }
        }
        if !refused.is_empty() {
            refuse(segments, present, boot, &refused)?;
            noted.retain(|segment, _| !refused.contains(segment));
            let count = refused.len() as u64;
            sealer.refused.fetch_add(count, Ordering::Relaxed);
        }
        if noted != known {
            write_notes(&path, &noted)?;
        }
        let all = 0..segments.index().segments();
        let due = all.filter(|segment| !noted.contains_key(segment)).collect();
        Ok(Self {
            sealer: Arc::clone(sealer),
            path,
            noted: Mutex::new(noted),
            due: Mutex::new(due),
        })
    }

    /// These segments may be complete by now.
    pub(super) fn expect(&self, segments: BTreeSet<u32>) {
        lock(&self.due).extend(segments);
    }

    /// Seals those segments that may be complete and that `is_ready` says are so, and durable.
    /// What cannot be sealed can be read all the same. Gives the bytes that it took.
    pub(super) fn seal(&self, segments: &Segments, is_ready: impl Fn(u32) -> bool) -> u64 {
        if self.sealer.sealing != Sealing::On {
            return 0;
        }
        let mut due = std::mem::take(&mut *lock(&self.due));
        due.retain(|segment| {
            !lock(&self.noted).contains_key(segment) && segments.len(*segment) > 0
        });
        let mut sealed = Vec::new();
        for segment in due.into_iter().filter(|&segment| is_ready(segment)) {
            match seal(&segments.own_path(segment)) {
                Ok(digest) => sealed.push((segment, digest)),
                // Somebody writes what is there already, or an earlier daemon has left it open.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    lock(&self.due).insert(segment);
                }
                Err(error) => {
                    let path = segments.path(segment);
                    tracing::warn!(path = %path.display(), %error, "a complete file is not sealed");
                }
            }
        }
        if sealed.is_empty() {
            return 0;
        }
        let bytes = sealed
            .iter()
            .map(|(segment, _)| tree_bytes(segments.len(*segment)));
        let bytes = bytes.sum();
        self.sealer
            .sealed
            .fetch_add(sealed.len() as u64, Ordering::Relaxed);
        self.note(&mut lock(&self.noted), sealed);
        bytes
    }

    /// Takes note that a sealed segment could not be read: it is refused when the layer is opened
    /// the next time. Until then nobody gets anything but errors of it.
    pub(super) fn give_up(&self, segment: u32) {
        let mut noted = lock(&self.noted);
        if noted.get(&segment).is_some_and(|digest| *digest != REFUSED) {
            self.note(&mut noted, [(segment, REFUSED)]);
        }
    }

    fn note(
        &self,
        noted: &mut BTreeMap<u32, Digest>,
        more: impl IntoIterator<Item = (u32, Digest)>,
    ) {
        noted.extend(more);
        if let Err(error) = write_notes(&self.path, noted) {
            // What is sealed and not noted is noted when the layer is opened.
            tracing::warn!(%error, "note what is sealed");
        }
    }
}

/// Makes segments absent: in the bitmaps first.
fn refuse(segments: &Segments, present: &mut Bitmap, boot: &str, refused: &[u32]) -> Result<()> {
    let chunks = refused.iter().flat_map(|&segment| segments.chunks(segment));
    present.forget(boot, chunks)?;
    for &segment in refused {
        let path = segments.path(segment);
        tracing::error!(path = %path.display(), "not the file that was sealed; it is fetched again");
        super::evict::remove_if_there(&path)?;
    }
    Ok(())
}

fn seal(path: &Path) -> io::Result<Digest> {
    let file = File::open(path)?;
    match verity::seal(&file) {
        // Before a crash.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        sealed => sealed?,
    }
    let digest = verity::measure(&file)?;
    let digest = digest.ok_or_else(|| io::Error::other("it is sealed and has no digest"))?;
    Ok(Digest::from_bytes(digest))
}

/// What the digests of a file of `len` bytes take at most: one of 32 bytes for each block of 4096,
/// and again for the blocks of digests, up to 8 GiB on three levels; and a block that says so.
fn tree_bytes(len: u64) -> u64 {
    len / 127 + 4 * 4096
}

fn read_notes(path: &Path) -> Result<BTreeMap<u32, Digest>> {
    let content = summed::read(path)?.unwrap_or_default();
    let notes = content.chunks_exact(NOTE_LEN).filter_map(|note| {
        let (number, digest) = note.split_first_chunk()?;
        let digest = digest.try_into().ok()?;
        Some((u32::from_le_bytes(*number), Digest::from_bytes(digest)))
    });
    Ok(notes.collect())
}

fn write_notes(path: &Path, noted: &BTreeMap<u32, Digest>) -> Result<()> {
    let mut content = Vec::with_capacity(noted.len() * NOTE_LEN);
    for (segment, digest) in noted {
        content.extend_from_slice(&segment.to_le_bytes());
        content.extend_from_slice(digest.as_bytes());
    }
    summed::write(path, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_claimed_and_measures_as_noted_stays() {
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let cases = [
            ((None, Found::Open, false), Fate::Stays),
            ((None, Found::Open, true), Fate::Stays),
            // Sealed in the moment of a crash.
            ((None, Found::Sealed(one), true), Fate::Noted(one)),
            // The bitmap is lost: it could not be written to.
            ((None, Found::Sealed(one), false), Fate::Refused),
            ((Some(one), Found::Sealed(one), false), Fate::Refused),
            ((Some(one), Found::Sealed(one), true), Fate::Stays),
            ((Some(one), Found::Sealed(other), true), Fate::Refused),
            // Replaced by one that anybody may write to, or gone.
            ((Some(one), Found::Open, true), Fate::Refused),
            ((Some(one), Found::Broken, true), Fate::Refused),
            ((None, Found::Broken, false), Fate::Refused),
            ((Some(REFUSED), Found::Sealed(one), true), Fate::Refused),
        ];
        for ((noted, found, complete), expected) in cases {
            let what = (noted, found, complete);
            assert_eq!(fate(noted, found, complete), expected, "{what:?}");
        }
    }

    #[test]
    fn notes_are_read_as_they_were_written_and_torn_ones_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seals");
        assert!(read_notes(&path).unwrap().is_empty());
        let noted = BTreeMap::from([(0, Digest::of(b"data")), (4096, REFUSED)]);
        write_notes(&path, &noted).unwrap();
        assert_eq!(read_notes(&path).unwrap(), noted);
        let whole = fs::read(&path).unwrap();
        for torn in [&whole[..whole.len() - 1], &whole[..10], &[]] {
            fs::write(&path, torn).unwrap();
            assert!(read_notes(&path).unwrap().is_empty());
        }
    }

    #[test]
    fn a_file_system_that_cannot_seal_is_named_and_nothing_is_left_there() {
        // A memory file system has no fs-verity.
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let reason = probe(root.path()).unwrap_err();
        assert!(
            reason.contains(&root.path().display().to_string()) && reason.contains("fs-verity"),
            "{reason}"
        );
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_digests_of_a_file_take_no_more_than_is_allowed_for_them() {
        for blocks in [1_u64, 127, 128, 129, 16_384, 1 << 20] {
            let (mut level, mut sum) = (blocks, 1);
            while level > 1 {
                level = level.div_ceil(128);
                sum += level;
            }
            assert!(sum * 4096 <= tree_bytes(blocks * 4096), "{blocks}");
        }
    }
}
