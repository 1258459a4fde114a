//! A tar stream, member by member, in bounded memory. What is said of a member is checked before it
//! is given to anyone.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use tar::{EntryType, Header, PaxExtensions};

use super::name::relative;
use crate::error::{Error, Result};

const BLOCK: usize = 512;
/// Longest extended name, and set of extended attributes, that is read.
const EXTENSION_MAX: u64 = 1 << 20;

/// What an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Members.
    pub members: usize,
    /// Bytes of all their contents.
    pub bytes: u64,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink.
    Symlink,
    /// Another name of a member.
    HardLink,
    /// A device.
    Device {
        /// A block device, not a character device.
        block: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A fifo.
    Fifo,
}

impl Kind {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::HardLink => "hard link",
            Self::Device { .. } => "device",
            Self::Fifo => "fifo",
        }
    }
}

/// One member.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name, relative, without `..`; empty for the archive's own directory.
    pub name: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Bytes of its content; zero for all but files.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of its last change, in seconds since 1970.
    pub mtime: i64,
    /// Where a link leads, as it is written there; a hard link's is a member's name.
    pub target: PathBuf,
    /// Extended attributes.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// Calls `visit` with each member of the uncompressed tar stream `input`, which `file` names in
/// errors, and with its content.
///
/// # Errors
/// What `visit` says; the stream is damaged, ends early, goes beyond the limits, has a member twice
/// or one that leads upwards.
pub fn read_members(
    input: &mut dyn Read,
    file: &str,
    limits: Limits,
    visit: &mut dyn FnMut(&Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut stream = Stream { input, file };
    let mut left = limits;
    let mut seen = HashSet::new();
    let mut extensions = Extensions::default();
    while let Some(header) = stream.header()? {
        let size = header
            .entry_size()
            .map_err(|_| Error::malformed(file, "a member's size is not a number"))?;
        if extensions.take(&mut stream, &header, size)? {
            continue;
        }
        let (member, content) = std::mem::take(&mut extensions).member(file, &header, size)?;
        let refuse =
            |reason: String| Err(Error::refused(file, member.name.to_string_lossy(), reason));
        left.members = match left.members.checked_sub(1) {
            Some(members) => members,
            None => return refuse(format!("there are more than {} members", limits.members)),
        };
        left.bytes = match left.bytes.checked_sub(content) {
            Some(bytes) => bytes,
            None => return refuse(format!("there are more than {} bytes", limits.bytes)),
        };
        if !seen.insert(member.name.clone()) {
            return refuse("it is there twice".to_owned());
        }
        let mut body = Body {
            stream: &mut stream,
            left: content,
        };
        visit(&member, &mut body)?;
        let rest = body.left;
        stream.skip(rest)?;
        stream.skip(padding(content))?;
    }
    Ok(())
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

struct Stream<'a> {
    input: &'a mut dyn Read,
    file: &'a str,
}

impl Stream<'_> {
    fn failed(&self, error: &io::Error) -> Error {
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ends early".to_owned(),
            _ => error.to_string(),
        };
        Error::malformed(self.file, reason)
    }

    /// The next header; none at the end.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.failed(&io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(&e)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The sum is over the block with spaces in the place of itself.
        let own = 148..156;
        let sum: u32 = block[..own.start]
            .iter()
            .chain(&block[own.end..])
            .map(|byte| u32::from(*byte))
            .sum();
        let sum = sum + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(sum) {
            return Err(Error::malformed(self.file, "not a tar file, or damaged"));
        }
        Ok(Some(header))
    }

    /// A small content.
    fn content(&mut self, size: u64, what: &str) -> Result<Vec<u8>> {
        if size > EXTENSION_MAX {
            return Err(Error::malformed(
                self.file,
                format!("{what} of {size} bytes"),
            ));
        }
        let mut content = vec![0; size as usize];
        self.input
            .read_exact(&mut content)
            .map_err(|e| self.failed(&e))?;
        self.skip(padding(size))?;
        Ok(content)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let skipped = io::copy(&mut self.input.take(count), &mut io::sink());
        match skipped {
            Ok(skipped) if skipped == count => Ok(()),
            Ok(_) => Err(self.failed(&io::ErrorKind::UnexpectedEof.into())),
            Err(e) => Err(self.failed(&e)),
        }
    }
}

/// The content of one member.
struct Body<'a, 'b> {
    stream: &'a mut Stream<'b>,
    left: u64,
}

impl Read for Body<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.stream.input.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// What precedes a member whose header has too little room.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

const XATTR: &str = "SCHILY.xattr.";

impl Extensions {
    /// Takes what belongs to the next member; whether there was any such thing.
    fn take(&mut self, stream: &mut Stream<'_>, header: &Header, size: u64) -> Result<bool> {
        let text = |mut bytes: Vec<u8>| {
            while bytes.last() == Some(&0) {
                bytes.pop();
            }
            bytes
        };
        match header.entry_type() {
            EntryType::GNULongName => self.name = Some(text(stream.content(size, "a name")?)),
            EntryType::GNULongLink => self.target = Some(text(stream.content(size, "a link")?)),
            EntryType::XHeader => {
                let records = stream.content(size, "a header")?;
                self.read_pax(stream.file, &records)?;
            }
            // It holds for all members, and says nothing that is of use here.
            EntryType::XGlobalHeader => drop(stream.content(size, "a header")?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_pax(&mut self, file: &str, records: &[u8]) -> Result<()> {
        let damaged = || Error::malformed(file, "a damaged extended header");
        for record in PaxExtensions::new(records) {
            let record = record.map_err(|_| damaged())?;
            let key = record.key().map_err(|_| damaged())?;
            let value = record.value_bytes();
            let number = || record.value().ok()?.parse().ok();
            let small = || u32::try_from(number()?).ok();
            match key {
                "path" => self.name = Some(value.to_vec()),
                "linkpath" => self.target = Some(value.to_vec()),
                "size" => self.size = Some(number().ok_or_else(damaged)?),
                "uid" => self.uid = Some(small().ok_or_else(damaged)?),
                "gid" => self.gid = Some(small().ok_or_else(damaged)?),
                "mtime" => {
                    let whole = record.value().unwrap_or_default().split('.').next();
                    let whole = whole.and_then(|text| text.parse().ok());
                    self.mtime = Some(whole.ok_or_else(damaged)?);
                }
                _ if key.starts_with("GNU.sparse.") => {
                    return Err(Error::malformed(file, "sparse members are not supported"));
                }
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        let name = OsString::from_vec(name.as_bytes().to_vec());
                        self.xattrs.push((name, value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The member that a header is about, and how many bytes follow the header.
    fn member(self, file: &str, header: &Header, size: u64) -> Result<(Member, u64)> {
        let raw = self
            .name
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let refuse = |reason: &str| Error::refused(file, shown.as_str(), reason);
        let name = relative(&raw).map_err(refuse)?;
        let kind = kind(header).ok_or_else(|| refuse("it is of an unknown kind"))?;
        let size = self.size.unwrap_or(size);
        // Beyond it offsets are negative.
        if size > i64::MAX as u64 {
            return Err(refuse("its size is negative"));
        }
        if size > 0 && matches!(kind, Kind::Directory | Kind::Device { .. } | Kind::Fifo) {
            return Err(refuse("only files have a content"));
        }
        let owner = |long: Option<u32>, short: io::Result<u64>| {
            long.or_else(|| u32::try_from(short.ok()?).ok())
                .ok_or_else(|| refuse("its owner is not a number"))
        };
        let target = self
            .target
            .or_else(|| Some(header.link_name_bytes()?.into_owned()));
        let member = Member {
            kind,
            size: if kind == Kind::File { size } else { 0 },
            mode: header
                .mode()
                .map_err(|_| refuse("its mode is not a number"))?
                & 0o7777,
            uid: owner(self.uid, header.uid())?,
            gid: owner(self.gid, header.gid())?,
            mtime: self.mtime.unwrap_or_else(|| {
                let time = header.mtime().ok();
                time.and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
            }),
            target: PathBuf::from(OsString::from_vec(target.unwrap_or_default())),
            xattrs: self.xattrs,
            name,
        };
        let content = if kind == Kind::File { size } else { 0 };
        Ok((member, content))
    }
}

fn kind(header: &Header) -> Option<Kind> {
    let device = |block| {
        let major = header.device_major().ok()??;
        let minor = header.device_minor().ok()??;
        Some(Kind::Device {
            block,
            major,
            minor,
        })
    };
    Some(match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char => device(false)?,
        EntryType::Block => device(true)?,
        EntryType::Fifo => Kind::Fifo,
        _ => return None,
    })
}
