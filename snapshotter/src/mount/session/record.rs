//! What is written down of a session for whoever goes on with it: in memory that a file stands
//! for, so that it is as it was left, however this process ends.
//!
//! It begins with how the session was set up. A table follows with a slot for each node: how a
//! large file is open, which the kernel takes care to be asked about consistently.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::super::LayerId;

/// Raised when nodes are numbered in another way or what is written here means something else.
const EDITION: u8 = 1;
/// Where the table begins.
const TABLE: u64 = 64 << 10;
/// Bytes of a slot: how often the file is open, and by which backing file (0: none).
const SLOT: u64 = 8;

/// How a session was set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setup {
    edition: u8,
    /// The layers, bottom first.
    pub(super) chain: Vec<LayerId>,
    /// What the tree was made of: it gives the nodes their numbers.
    pub(super) tree: String,
    /// Device number of the mount.
    pub(super) device: (u32, u32),
    /// The kernel's first request.
    pub(super) init: Vec<u8>,
    /// The kernel reads complete files by itself.
    pub(super) passthrough: bool,
}

impl Setup {
    pub(super) fn new(chain: &[LayerId], tree: String, device: (u32, u32)) -> Self {
        Self {
            edition: EDITION,
            chain: chain.to_owned(),
            tree,
            device,
            init: Vec::new(),
            passthrough: false,
        }
    }
}

/// How a large file is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mount) struct Slot {
    /// So many times.
    pub(in crate::mount) count: u32,
    /// The number of the backing file that the kernel reads.
    pub(in crate::mount) backing: Option<u32>,
}

/// A record without anything in it.
pub(super) fn create() -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create(
        "xebec-session",
        MemfdFlags::CLOEXEC,
    )?)
}

/// Writes the setup down.
pub(super) fn write(record: impl AsFd, setup: &Setup) -> io::Result<()> {
    let text = serde_json::to_vec(setup)?;
    let mut bytes = (text.len() as u64).to_ne_bytes().to_vec();
    bytes.extend(text);
    if bytes.len() as u64 > TABLE {
        return Err(io::Error::other("a chain of too many layers"));
    }
    write_all(record, &bytes, 0)
}

/// Reads the setup, and every file that is open, by node.
pub(super) fn read(record: impl AsFd) -> io::Result<(Setup, Vec<(u32, Slot)>)> {
    let size = rustix::fs::fstat(&record)?.st_size as usize;
    let mut bytes = vec![0; size];
    let mut read = 0;
    while read < size {
        match rustix::io::pread(&record, &mut bytes[read..], read as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => read += more,
        }
    }
    let (text, table) = bytes.split_at(size.min(TABLE as usize));
    let malformed = || io::Error::other("the record of a session is not readable");
    let (len, text) = text.split_first_chunk().ok_or_else(malformed)?;
    let text = text
        .get(..u64::from_ne_bytes(*len) as usize)
        .ok_or_else(malformed)?;
    let setup: Setup = serde_json::from_slice(text)?;
    if setup.edition != EDITION {
        return Err(io::Error::other(format!(
            "the session is of edition {}, this program goes on with {EDITION}",
            setup.edition
        )));
    }
    let slots = table.chunks_exact(SLOT as usize).zip(0..);
    let open = slots.filter_map(|(bytes, node)| Some((node, parse(bytes)?)));
    Ok((setup, open.collect()))
}

/// Notes how `node` is open; with a count of 0, not at all.
pub(in crate::mount) fn note(record: impl AsFd, node: u32, slot: Slot) -> io::Result<()> {
    let backing = slot.backing.map_or(0, |id| id.wrapping_add(1));
    let mut bytes = [0; SLOT as usize];
    bytes[..4].copy_from_slice(&slot.count.to_ne_bytes());
    bytes[4..].copy_from_slice(&backing.to_ne_bytes());
    write_all(record, &bytes, TABLE + SLOT * u64::from(node))
}

fn parse(bytes: &[u8]) -> Option<Slot> {
    let half = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let count = half(0)?;
    (count > 0).then_some(Slot {
        count,
        backing: half(4)?.checked_sub(1),
    })
}

fn write_all(record: impl AsFd, bytes: &[u8], offset: u64) -> io::Result<()> {
    match rustix::io::pwrite(record, bytes, offset)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn setup() -> Setup {
        let chain = [Digest::of(b"a").into(), Digest::of(b"b").into()];
        let mut setup = Setup::new(&chain, "tree".to_owned(), (0, 77));
        setup.init = (0..104).collect();
        setup
    }

    #[test]
    fn what_is_written_is_read() {
        let record = create().unwrap();
        write(&record, &setup()).unwrap();
        assert_eq!(read(&record).unwrap(), (setup(), Vec::new()));
        let cached = Slot {
            count: 2,
            backing: None,
        };
        let passed = Slot {
            count: 1,
            backing: Some(0),
        };
        note(&record, 70_000, passed).unwrap();
        note(&record, 3, cached).unwrap();
        note(&record, 4, cached).unwrap();
        note(&record, 4, Slot { count: 0, ..cached }).unwrap();
        let open = read(&record).unwrap().1;
        assert_eq!(open, [(3, cached), (70_000, passed)]);
    }

    #[test]
    fn another_edition_and_nonsense_are_refused() {
        let record = create().unwrap();
        assert!(read(&record).is_err());
        let other = Setup {
            edition: EDITION + 1,
            ..setup()
        };
        write(&record, &other).unwrap();
        assert!(read(&record).unwrap_err().to_string().contains("edition"));
        write_all(&record, &u64::MAX.to_ne_bytes(), 0).unwrap();
        assert!(read(&record).is_err());
    }
}
