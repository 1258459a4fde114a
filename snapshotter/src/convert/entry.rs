//! Tar entries as TOC entries.

use bstr::ByteSlice;

use crate::digest::Digest;
use crate::formats::estargz::toc::{EntryType, TocEntry, XattrValue};
use crate::formats::{Flaw, timestamp};

use super::tar::TarEntry;

/// Refuses names and targets of links that no TOC holds, because JSON is UTF-8. Other writers put
/// U+FFFD into them, and the file is there under another name.
pub(super) fn check_names(entries: &[TarEntry]) -> Result<(), Flaw> {
    for entry in entries {
        for (what, text) in [("name", &entry.raw.name), ("link", &entry.raw.link)] {
            if text.to_str().is_err() {
                let reason = format!("its {what} {text:?} is not UTF-8, as the format's table is");
                return Err(Flaw::entry(&entry.name, reason));
            }
        }
    }
    Ok(())
}

/// What a TOC says of `entry`, without the place of its content; [`check_names`] has passed it.
pub(super) fn toc_entry(entry: &TarEntry) -> TocEntry {
    let is_dir = entry.kind == EntryType::Dir;
    let is_device = matches!(entry.kind, EntryType::Char | EntryType::Block);
    let is_link = matches!(entry.kind, EntryType::Symlink | EntryType::Hardlink);
    let is_empty_file = entry.kind == EntryType::Reg && entry.size == 0;
    let xattrs = entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.clone(), XattrValue(value.clone())));
    TocEntry {
        name: if is_dir {
            format!("{}/", entry.name)
        } else {
            entry.name.to_string()
        },
        kind: entry.kind,
        size: entry.size,
        mod_time: timestamp::format(entry.mtime.seconds, entry.mtime.nanos),
        link_name: if is_link {
            entry.link.to_string()
        } else {
            String::new()
        },
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        user_name: entry.user_name.clone(),
        group_name: entry.group_name.clone(),
        dev_major: if is_device { entry.dev_major } else { 0 },
        dev_minor: if is_device { entry.dev_minor } else { 0 },
        xattrs: xattrs.collect(),
        digest: if is_empty_file {
            Digest::of(b"").to_string()
        } else {
            String::new()
        },
        ..TocEntry::default()
    }
}
