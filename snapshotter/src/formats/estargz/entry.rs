//! An entry of the TOC as the index needs it: borrowed from the JSON where that is possible.

use std::borrow::Cow;

use super::toc::{EntryType, TocEntry};

/// What of a [`TocEntry`] is part of the index; the fields are described there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry<'a> {
    /// See [`TocEntry::name`].
    pub name: Cow<'a, str>,
    /// See [`TocEntry::kind`].
    pub kind: EntryType,
    /// See [`TocEntry::size`].
    pub size: u64,
    /// See [`TocEntry::mod_time`].
    pub mod_time: Cow<'a, str>,
    /// See [`TocEntry::link_name`].
    pub link_name: Cow<'a, str>,
    /// See [`TocEntry::mode`].
    pub mode: u64,
    /// See [`TocEntry::uid`].
    pub uid: u64,
    /// See [`TocEntry::gid`].
    pub gid: u64,
    /// See [`TocEntry::offset`].
    pub offset: u64,
    /// See [`TocEntry::inner_offset`].
    pub inner_offset: u64,
    /// See [`TocEntry::dev_major`].
    pub dev_major: u64,
    /// See [`TocEntry::dev_minor`].
    pub dev_minor: u64,
    /// See [`TocEntry::xattrs`]; sorted by name, each name once.
    pub xattrs: Vec<(Cow<'a, str>, Cow<'a, [u8]>)>,
    /// See [`TocEntry::digest`].
    pub digest: Cow<'a, str>,
    /// See [`TocEntry::chunk_offset`].
    pub chunk_offset: u64,
    /// See [`TocEntry::chunk_size`].
    pub chunk_size: u64,
    /// See [`TocEntry::chunk_digest`].
    pub chunk_digest: Cow<'a, str>,
    /// See [`TocEntry::end_offset`].
    pub end_offset: u64,
    /// See [`TocEntry::chunk_type`].
    pub chunk_type: Cow<'a, str>,
}

impl<'a> From<&'a TocEntry> for Entry<'a> {
    fn from(entry: &'a TocEntry) -> Self {
        let xattrs = entry.xattrs.iter();
        Self {
            name: entry.name.as_str().into(),
            kind: entry.kind,
            size: entry.size,
            mod_time: entry.mod_time.as_str().into(),
            link_name: entry.link_name.as_str().into(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            offset: entry.offset,
            inner_offset: entry.inner_offset,
            dev_major: entry.dev_major,
            dev_minor: entry.dev_minor,
            xattrs: xattrs
                .map(|(name, value)| (name.as_str().into(), value.0.as_slice().into()))
                .collect(),
            digest: entry.digest.as_str().into(),
            chunk_offset: entry.chunk_offset,
            chunk_size: entry.chunk_size,
            chunk_digest: entry.chunk_digest.as_str().into(),
            end_offset: entry.end_offset,
            chunk_type: entry.chunk_type.as_str().into(),
        }
    }
}
