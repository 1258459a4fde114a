//! Reads an archive from a stream and says where everything lies in it.

use std::collections::BTreeMap;
use std::io::{self, Read};

use bstr::{BStr, BString, ByteSlice};

use crate::formats::Flaw;
use crate::formats::estargz::toc::EntryType;

use super::header::{BLOCK, Header, Kind, padding};
use super::pax::{self, Records};

/// Largest extended header that is read into memory: names and xattrs are far smaller.
const MAX_EXTENDED: u64 = 1 << 20;

/// Time stamp of an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    /// Seconds since 1970.
    pub(crate) seconds: i64,
    /// And this many nanoseconds.
    pub(crate) nanos: u32,
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarEntry {
    /// Path without leading `/` or `./` and trailing `/`; empty for the root directory.
    pub(crate) name: BString,
    pub(crate) kind: EntryType,
    /// Target of a symbolic link as it stands; of a hard link in the form of `name`.
    pub(crate) link: BString,
    pub(crate) mode: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) user_name: String,
    pub(crate) group_name: String,
    pub(crate) mtime: Time,
    pub(crate) dev_major: u64,
    pub(crate) dev_minor: u64,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// Offset in the archive of the entry's first header block.
    pub(crate) header_at: u64,
    /// Offset in the archive of the content.
    pub(crate) data_at: u64,
    /// What the header says to the letter.
    pub(crate) raw: Raw,
    /// Length of the content; 0 for all but regular files.
    pub(crate) size: u64,
}

/// An entry's header as other tar readers show it, where [`TarEntry`] has cleaned it up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) name: BString,
    pub(crate) link: BString,
    pub(crate) mode: u64,
    pub(crate) access_time: Option<Time>,
    pub(crate) change_time: Option<Time>,
    /// Records for all entries to come apply to it.
    pub(crate) has_globals: bool,
}

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The stream itself failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The archive is not well-formed.
    #[error(transparent)]
    Flaw(#[from] Flaw),
}

/// Walks an archive.
pub(crate) struct Reader<R> {
    stream: R,
    at: u64,
    /// Content and padding of the last entry, not read yet.
    pending: u64,
    global: Records,
    /// The stream has header blocks only: contents are skipped without being read.
    headers_only: bool,
    /// Gets every header block.
    tap: Option<Tap>,
    has_globals: bool,
}

/// Takes bytes as they are read.
pub(crate) type Tap = Box<dyn FnMut(&[u8]) + Send>;

/// What extended headers said about the entry that follows them.
#[derive(Default)]
struct Extended {
    records: Records,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    has_globals: bool,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self {
            stream,
            at: 0,
            pending: 0,
            global: Records::new(),
            has_globals: false,
            headers_only: false,
            tap: None,
        }
    }

    /// Reads an archive and gives its header blocks, one after the other, to `tap`.
    pub(crate) fn tapped(stream: R, tap: Tap) -> Self {
        Self {
            tap: Some(tap),
            ..Self::new(stream)
        }
    }

    /// Reads what [`Reader::tapped`] gave: the entries are those of the whole archive.
    pub(crate) fn of_headers(stream: R) -> Self {
        Self {
            headers_only: true,
            ..Self::new(stream)
        }
    }

    /// The next entry, or none at the archive's end. The stream is then not read to its end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<TarEntry>, ReadError> {
        self.skip_pending()?;
        let header_at = self.at;
        let mut extended = Extended {
            has_globals: self.has_globals,
            records: self.global.clone(),
            ..Extended::default()
        };
        loop {
            let mut block = [0; BLOCK as usize];
            if !self.read_block(&mut block)? {
                // An archive may end without its end mark, but not within an entry.
                return if self.at == header_at {
                    Ok(None)
                } else {
                    Err(truncated(self.at).into())
                };
            }
            let header = Header(&block);
            if header.is_zero() {
                return Ok(None);
            }
            let at = self.at - BLOCK;
            if !header.checksum_fits() {
                return Err(Flaw::new(format!("tar header at {at}: wrong checksum")).into());
            }
            let kind = header.kind().map_err(|flag| {
                Flaw::new(format!(
                    "tar header at {at}: type {flag:?} is not supported"
                ))
            })?;
            match kind {
                Kind::Object(kind) => {
                    let entry = Self::describe(&header, kind, extended, header_at, self.at)?;
                    self.pending = entry.size + padding(entry.size);
                    return Ok(Some(entry));
                }
                extension => self.read_extension(&header, extension, &mut extended, at)?,
            }
        }
    }

    /// Reads the next bytes of the last entry's content into all of `buffer`; there must be as many
    /// left.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        debug_assert!(buffer.len() as u64 <= self.pending, "within the content");
        self.read_exact(buffer)?;
        self.pending -= buffer.len() as u64;
        Ok(())
    }

    /// The stream behind the archive's end mark.
    pub(crate) fn into_inner(self) -> R {
        self.stream
    }

    fn read_extension(
        &mut self,
        header: &Header<'_>,
        kind: Kind,
        extended: &mut Extended,
        at: u64,
    ) -> Result<(), ReadError> {
        let bad = |reason: &str| Flaw::new(format!("tar header at {at}: {reason}"));
        let size = header
            .field("size")
            .and_then(|size| u64::try_from(size).ok());
        let size = size.filter(|size| *size <= MAX_EXTENDED);
        let size = size.ok_or_else(|| bad("extended header too large"))?;
        let mut data = vec![0; (size + padding(size)) as usize];
        self.read_exact(&mut data)?;
        if let Some(tap) = &mut self.tap {
            tap(&data);
        }
        data.truncate(size as usize);
        let malformed = || bad("malformed PAX records");
        match kind {
            Kind::PaxGlobal => {
                (self.has_globals, extended.has_globals) = (true, true);
                pax::parse_into(&mut self.global, &data).ok_or_else(malformed)?;
                extended.records.extend(self.global.clone());
            }
            Kind::Pax => pax::parse_into(&mut extended.records, &data).ok_or_else(malformed)?,
            Kind::GnuName => extended.name = Some(up_to_nul(data)),
            Kind::GnuLink => extended.link = Some(up_to_nul(data)),
            Kind::Object(_) => {}
        }
        Ok(())
    }

    fn describe(
        header: &Header<'_>,
        kind: EntryType,
        mut extended: Extended,
        header_at: u64,
        data_at: u64,
    ) -> Result<TarEntry, Flaw> {
        let records = &mut extended.records;
        let name = records
            .remove("path")
            .or(extended.name)
            .unwrap_or_else(|| header.name());
        let bad = |reason: &str| Flaw::entry(&name, reason);
        if records.keys().any(|key| key.starts_with("GNU.sparse.")) {
            return Err(bad("sparse files are not supported"));
        }
        let mut number = |key: &str| match records.remove(key) {
            Some(value) => std::str::from_utf8(&value)
                .ok()
                .and_then(|text| text.parse().ok()),
            None => header
                .field(key)
                .and_then(|value| u64::try_from(value).ok()),
        };
        let mut field = |key: &'static str| number(key).ok_or_else(|| bad(&format!("bad {key}")));
        let (uid, gid, size) = (field("uid")?, field("gid")?, field("size")?);
        let (mode, dev_major, dev_minor) = (field("mode")?, field("devmajor")?, field("devminor")?);
        let mtime = match records.remove("mtime") {
            Some(value) => pax::parse_time(&value),
            None => header.field("mtime").map(|seconds| (seconds, 0)),
        };
        let (seconds, nanos) = mtime.ok_or_else(|| bad("bad mtime"))?;
        let link = records
            .remove("linkpath")
            .or(extended.link)
            .unwrap_or_else(|| header.link());
        // No file system keeps these, so that what is not text in them is no reason to refuse.
        let mut text = |key: &str, field: &[u8]| match records.remove(key) {
            Some(bytes) => bytes.to_str_lossy().into_owned(),
            None => field.to_str_lossy().into_owned(),
        };
        let user_name = text("uname", header.user_name());
        let group_name = text("gname", header.group_name());
        let [access_time, change_time] = other_times(header, records);
        // Everything but a regular file has no content, whatever its size field says; a link's says
        // what it links to.
        let size = if kind == EntryType::Reg { size } else { 0 };
        if size > i64::MAX as u64 {
            return Err(bad("bad size"));
        }
        let raw = Raw {
            name: name.into(),
            link: link.into(),
            mode,
            access_time,
            change_time,
            has_globals: extended.has_globals,
        };
        Ok(TarEntry {
            name: clean(raw.name.as_ref())?,
            link: if kind == EntryType::Hardlink {
                clean(raw.link.as_ref())?
            } else {
                raw.link.clone()
            },
            raw,
            kind,
            mode: mode & 0o7777,
            uid,
            gid,
            user_name,
            group_name,
            mtime: Time { seconds, nanos },
            dev_major,
            dev_minor,
            xattrs: xattrs(records),
            header_at,
            data_at,
            size,
        })
    }

    fn skip_pending(&mut self) -> Result<(), ReadError> {
        if self.headers_only {
            let end = self.at.checked_add(self.pending);
            self.at = end.ok_or_else(|| Flaw::new("the archive exceeds 2^64 bytes"))?;
            self.pending = 0;
            return Ok(());
        }
        let skipped = io::copy(&mut (&mut self.stream).take(self.pending), &mut io::sink())?;
        self.at += skipped;
        if skipped < self.pending {
            return Err(truncated(self.at).into());
        }
        self.pending = 0;
        Ok(())
    }

    /// Reads one block; false at the clean end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<bool, ReadError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(truncated(self.at + filled as u64).into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += BLOCK;
        if let Some(tap) = &mut self.tap {
            tap(block);
        }
        Ok(true)
    }

    fn read_exact(&mut self, data: &mut [u8]) -> Result<(), ReadError> {
        self.stream
            .read_exact(data)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => ReadError::Flaw(truncated(self.at)),
                _ => ReadError::Io(error),
            })?;
        self.at += data.len() as u64;
        Ok(())
    }
}

/// Access and change time, where the entry has them.
fn other_times(header: &Header<'_>, records: &Records) -> [Option<Time>; 2] {
    let [access, change] = header.gnu_times();
    [("atime", access), ("ctime", change)].map(|(key, in_header)| {
        let recorded = records.get(key).and_then(|value| pax::parse_time(value));
        let time = recorded.or_else(|| in_header.map(|seconds| (seconds, 0)));
        time.map(|(seconds, nanos)| Time { seconds, nanos })
    })
}

fn truncated(at: u64) -> Flaw {
    Flaw::new(format!("tar archive ends within an entry, at byte {at}"))
}

fn up_to_nul(mut data: Vec<u8>) -> Vec<u8> {
    let end = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());
    data.truncate(end);
    data
}

fn xattrs(records: &Records) -> BTreeMap<String, Vec<u8>> {
    records
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(pax::XATTR)?.to_owned(), value.clone())))
        .collect()
}

/// The path without empty and `.` components; one with `..` could lead out of the layer.
fn clean(name: &BStr) -> Result<BString, Flaw> {
    if name.contains(&0) || name.split_str("/").any(|component| component == b"..") {
        return Err(Flaw::entry(name, "unsafe path"));
    }
    let components = name
        .split_str("/")
        .filter(|component| !matches!(*component, b"" | b"."));
    Ok(bstr::join("/", components).into())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::super::encode_regular;
    use super::*;

    fn read_all(archive: &[u8]) -> Result<Vec<TarEntry>, ReadError> {
        let mut reader = Reader::new(archive);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    fn archive(build: impl FnOnce(&mut tar::Builder<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut builder = tar::Builder::new(&mut bytes);
        build(&mut builder);
        builder.finish().unwrap();
        drop(builder);
        bytes
    }

    fn header(kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o4755);
        header.set_uid(3_000_000);
        header.set_gid(7);
        header.set_mtime(1_700_000_000);
        header
    }

    #[test]
    fn entries_and_their_places_are_found() {
        let long = format!("{}/file", "d".repeat(200));
        let bytes = archive(|tar| {
            let dir = &mut header(tar::EntryType::Directory, 0);
            tar.append_data(dir, "./dir/", io::empty()).unwrap();
            let mut pax = header(tar::EntryType::Regular, 3);
            tar.append_pax_extensions([
                ("SCHILY.xattr.user.a", b"b\0c".as_slice()),
                ("mtime", b"1.5"),
            ])
            .unwrap();
            tar.append_data(&mut pax, "dir/x", &b"abc"[..]).unwrap();
            let mut plain = header(tar::EntryType::Regular, 600);
            tar.append_data(&mut plain, &long, &[7; 600][..]).unwrap();
            let mut link = header(tar::EntryType::Link, 0);
            tar.append_link(&mut link, "./hard", "./dir/x").unwrap();
            let mut link = header(tar::EntryType::Symlink, 0);
            tar.append_link(&mut link, "soft", "../dir/x").unwrap();
            let mut device = header(tar::EntryType::Char, 0);
            device.set_device_major(1).unwrap();
            device.set_device_minor(3).unwrap();
            tar.append_data(&mut device, "null", io::empty()).unwrap();
        });
        let entries = read_all(&bytes).unwrap();
        let names: Vec<_> = entries.iter().map(|entry| entry.name.to_string()).collect();
        assert_eq!(names, ["dir", "dir/x", &*long, "hard", "soft", "null"]);
        let x = &entries[1];
        assert_eq!((x.mode, x.uid, x.gid, x.size), (0o4755, 3_000_000, 7, 3));
        assert_eq!(
            x.mtime,
            Time {
                seconds: 1,
                nanos: 500_000_000
            }
        );
        assert_eq!(x.xattrs["user.a"], b"b\0c");
        assert_eq!(&bytes[x.data_at as usize..][..3], b"abc");
        // The extended header belongs to the entry, and nothing lies between two entries.
        assert_eq!(x.header_at, entries[0].data_at);
        assert_eq!(x.data_at - x.header_at, 3 * BLOCK);
        assert_eq!(entries[2].header_at, x.data_at + BLOCK);
        assert!(entries[2].xattrs.is_empty());
        let links = [&entries[3], &entries[4]].map(|entry| (entry.kind, entry.link.to_string()));
        assert_eq!(links[0], (EntryType::Hardlink, "dir/x".to_owned()));
        assert_eq!(links[1], (EntryType::Symlink, "../dir/x".to_owned()));
        assert_eq!((entries[5].dev_major, entries[5].dev_minor), (1, 3));
    }

    #[test]
    fn names_of_any_bytes_are_kept_and_names_of_owners_are_read_as_well_as_they_can_be() {
        let bytes = archive(|tar| {
            let mut link = header(tar::EntryType::Link, 0);
            link.as_gnu_mut().unwrap().uname[..4].copy_from_slice(b"M\xfcl.");
            let (name, target) = (b"./caf\xe9//x", b"./\xff");
            let [name, target] = [&name[..], target].map(OsStr::from_bytes);
            tar.append_link(&mut link, name, target).unwrap();
        });
        let entries = read_all(&bytes).unwrap();
        assert_eq!(entries[0].name, b"caf\xe9/x".as_bstr());
        assert_eq!(entries[0].link, b"\xff".as_bstr());
        assert_eq!(entries[0].user_name, "M\u{fffd}l.");
    }

    #[test]
    fn an_archive_cut_anywhere_within_an_entry_is_refused() {
        let bytes = archive(|tar| {
            let mut file = header(tar::EntryType::Regular, 700);
            tar.append_data(&mut file, "f".repeat(150), &[1; 700][..])
                .unwrap();
        });
        let end = bytes.len() - 1024;
        for cut in [1, 511, 512, 700, 1024, 1500, end - 1] {
            let error = read_all(&bytes[..cut]).unwrap_err();
            assert!(matches!(error, ReadError::Flaw(_)), "{cut}: {error}");
        }
        assert_eq!(read_all(&bytes[..end]).unwrap().len(), 1);
        assert_eq!(read_all(&[]).unwrap().len(), 0);
    }

    #[test]
    fn hostile_archives_are_refused_by_entry() {
        let with = |change: &dyn Fn(&mut tar::Header)| {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..4].copy_from_slice(b"name");
            header.set_size(0);
            change(&mut header);
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        let escape = with(&|header| header.as_mut_bytes()[..8].copy_from_slice(b"a/../../"));
        let sparse = with(&|header| header.as_mut_bytes()[156] = b'S');
        let huge = with(&|header| {
            header.as_mut_bytes()[124..136]
                .copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]);
        });
        let pax = with(&|header| {
            header.as_mut_bytes()[156] = b'x';
            header.set_size(1 << 30);
        });
        let mut damaged = encode_regular("x", 0);
        damaged[3] = 1;
        for (bytes, reason) in [
            (escape, "unsafe path"),
            (sparse, "'S'"),
            (huge, "bad size"),
            (pax, "too large"),
            (damaged.to_vec(), "checksum"),
        ] {
            let error = read_all(&bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }
}
