//! The eStargz table of contents as JSON: types that are both read and written.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::entry::Entry;
use super::pull::{self, Stop};
use crate::formats::Flaw;

/// Name of the TOC's tar entry.
pub const TOC_NAME: &str = "stargz.index.json";
/// Marks the end of the files that are worth fetching before anyone asks.
pub const PREFETCH_LANDMARK: &str = ".prefetch.landmark";
/// Says that no file is worth fetching before anyone asks.
pub const NO_PREFETCH_LANDMARK: &str = ".no.prefetch.landmark";
/// Both landmarks hold this one byte.
pub const LANDMARK_CONTENT: [u8; 1] = [0xf];
/// Layer annotation that holds the digest of the TOC's JSON.
pub const TOC_DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";
/// What an image's tag is followed by in the name of the image that holds its layers' TOCs.
pub const TOC_IMAGE_SUFFIX: &str = "-esgztoc";
/// Annotation of a layer of that image: digest of the layer that it is the TOC of.
pub const TOC_OF_LAYER_ANNOTATION: &str = "containerd.io/snapshot/stargz/layer.digest";
/// Layer annotation that holds the size of the uncompressed layer in bytes.
pub const UNCOMPRESSED_SIZE_ANNOTATION: &str = "io.containers.estargz.uncompressed-size";

/// The whole document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toc {
    /// Always 1.
    pub version: u32,
    /// One entry per tar entry, and one per further chunk of a file, in the blob's order.
    pub entries: Vec<TocEntry>,
    /// Digest of the packed tar-split; only in zstd:chunked.
    #[serde(
        default,
        rename = "tarSplitDigest",
        skip_serializing_if = "String::is_empty"
    )]
    pub tar_split_digest: String,
}

/// Kind of an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryType {
    /// A directory.
    Dir,
    /// A regular file, and its first chunk.
    #[default]
    Reg,
    /// A symbolic link.
    Symlink,
    /// Another name of a file in the same layer.
    Hardlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A further chunk of the file before it.
    Chunk,
}

/// One entry; the field names are the format's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TocEntry {
    /// Path without leading slash; directories end in one.
    pub name: String,
    /// Kind.
    #[serde(rename = "type")]
    pub kind: EntryType,
    /// Size of the regular file in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Modification time, RFC 3339.
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    pub mod_time: String,
    /// Access time; only in zstd:chunked, for tools only.
    #[serde(rename = "accesstime", skip_serializing_if = "String::is_empty")]
    pub access_time: String,
    /// Change time; only in zstd:chunked, for tools only.
    #[serde(rename = "changetime", skip_serializing_if = "String::is_empty")]
    pub change_time: String,
    /// Target of a symbolic or hard link.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub link_name: String,
    /// Permission bits with setuid, setgid and sticky, as in the tar header; other bits are ignored.
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: u64,
    /// Owner.
    #[serde(skip_serializing_if = "is_zero")]
    pub uid: u64,
    /// Group.
    #[serde(skip_serializing_if = "is_zero")]
    pub gid: u64,
    /// Owner's name, for tools only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_name: String,
    /// Group's name, for tools only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group_name: String,
    /// Offset in the blob of the gzip member that holds the chunk.
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: u64,
    /// Offset of the chunk in what the member decompresses to.
    #[serde(skip_serializing_if = "is_zero")]
    pub inner_offset: u64,
    /// Major device number.
    #[serde(skip_serializing_if = "is_zero")]
    pub dev_major: u64,
    /// Minor device number.
    #[serde(skip_serializing_if = "is_zero")]
    pub dev_minor: u64,
    /// Written by old tools; never read here, link counts are counted.
    #[serde(rename = "NumLink", skip_serializing_if = "is_zero")]
    pub num_link: u64,
    /// Extended attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, XattrValue>,
    /// Digest of the whole file's content.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Offset of the chunk in the file.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_offset: u64,
    /// Length of the chunk; 0 means up to the end of the file.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_size: u64,
    /// Digest of the chunk's content.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chunk_digest: String,
    /// First byte of the blob behind the file's last chunk; only in zstd:chunked.
    #[serde(skip_serializing_if = "is_zero")]
    pub end_offset: u64,
    /// Empty or [`ZEROS`]; only in zstd:chunked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chunk_type: String,
}

/// Type of a chunk that holds nothing but zeros.
pub const ZEROS: &str = "zeros";

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Bytes that JSON holds as base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XattrValue(pub Vec<u8>);

impl Serialize for XattrValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for XattrValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// Parses the TOC's JSON and hands each entry to `each`, so that a TOC of a million entries never
/// lies in memory as a whole. Stops at the first entry that `each` refuses.
pub fn for_each_entry(
    json: &[u8],
    mut each: impl FnMut(&Entry<'_>) -> Result<(), Flaw>,
) -> Result<(), Flaw> {
    let mut passed = 0;
    if let Ok(text) = std::str::from_utf8(json) {
        let pulled = pull::entries(text, |entry| {
            each(entry)?;
            passed += 1;
            Ok(())
        });
        match pulled {
            Ok(()) => return Ok(()),
            Err(Stop::Refused(flaw)) => return Err(flaw),
            Err(Stop::Odd) => {}
        }
    }
    // The general parser gives the same entries, as far as the other one came.
    for_each_entry_of_any(json, |entry| {
        if passed == 0 {
            return each(entry);
        }
        passed -= 1;
        Ok(())
    })
}

/// What [`for_each_entry`] does, for whatever JSON holds a TOC: this is what decides which do.
pub fn for_each_entry_of_any(
    json: &[u8],
    mut each: impl FnMut(&Entry<'_>) -> Result<(), Flaw>,
) -> Result<(), Flaw> {
    let mut refused = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let document = Document {
        each: &mut each,
        refused: &mut refused,
    };
    let version = document
        .deserialize(&mut deserializer)
        .and_then(|version| deserializer.end().map(|()| version));
    if let Some(flaw) = refused {
        return Err(flaw);
    }
    match version {
        Ok(1) => Ok(()),
        Ok(other) => Err(Flaw::new(format!("TOC: version {other} is not known"))),
        Err(error) => Err(Flaw::new(format!("TOC: {error}"))),
    }
}

struct Document<'a, F> {
    each: &'a mut F,
    refused: &'a mut Option<Flaw>,
}

impl<'de, F: FnMut(&Entry<'_>) -> Result<(), Flaw>> DeserializeSeed<'de> for Document<'_, F> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&Entry<'_>) -> Result<(), Flaw>> Visitor<'de> for Document<'_, F> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with version and entries")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<u64, M::Error> {
        let mut version = 0;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => version = map.next_value()?,
                "entries" => map.next_value_seed(Entries(&mut self))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(version)
    }
}

struct Entries<'a, 'b, F>(&'a mut Document<'b, F>);

impl<'de, F: FnMut(&Entry<'_>) -> Result<(), Flaw>> DeserializeSeed<'de> for Entries<'_, '_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(&Entry<'_>) -> Result<(), Flaw>> Visitor<'de> for Entries<'_, '_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut entries: S) -> Result<(), S::Error> {
        while let Some(entry) = entries.next_element::<TocEntry>()? {
            if let Err(flaw) = (self.0.each)(&Entry::from(&entry)) {
                *self.0.refused = Some(flaw);
                return Err(serde::de::Error::custom("entry refused"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let entry = TocEntry {
            name: "bin/ping".into(),
            size: 3,
            mode: 0o4755,
            offset: 77,
            inner_offset: 5,
            mod_time: "2020-01-02T03:04:05Z".into(),
            xattrs: [(
                "security.capability".to_owned(),
                XattrValue(vec![1, 0, 255]),
            )]
            .into(),
            ..TocEntry::default()
        };
        let toc = Toc {
            version: 1,
            entries: vec![entry.clone()],
            ..Toc::default()
        };
        let json = serde_json::to_string(&toc).unwrap();
        assert!(json.contains(r#""innerOffset":5"#), "{json}");
        assert!(json.contains(r#""type":"reg""#), "{json}");
        assert!(json.contains(r#""security.capability":"AQD/""#), "{json}");
        assert!(!json.contains("devMajor"), "{json}");
        let mut seen = Vec::new();
        for_each_entry(json.as_bytes(), |entry| {
            seen.push(entry.name.clone().into_owned());
            assert_eq!(entry, &Entry::from(&toc.entries[0]));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [entry.name]);
    }

    #[test]
    fn a_toc_that_is_cut_or_of_another_version_is_refused() {
        for (json, word) in [
            (r#"{"version":1,"entries":[{"name":"a""#, "EOF"),
            (r#"{"version":2,"entries":[]}"#, "version 2"),
            (r#"{"entries":[]}"#, "version 0"),
            (r#"{"version":1,"entries":[]} x"#, "trailing"),
            (
                r#"{"version":1,"entries":[{"name":"a","type":"door"}]}"#,
                "door",
            ),
            (r#"{"version":1,"entries":[{"name":"a","size":-1}]}"#, "-1"),
        ] {
            let error = for_each_entry(json.as_bytes(), |_| Ok(())).unwrap_err();
            assert!(error.to_string().contains(word), "{json}: {error}");
        }
    }

    #[test]
    fn a_refused_entry_stops_the_parser_with_its_own_words() {
        let json = r#"{"version":1,"entries":[{"name":"a"},{"name":"b"}]}"#;
        let mut seen = 0;
        let error = for_each_entry(json.as_bytes(), |entry| {
            seen += 1;
            Err(Flaw::new(format!("no {}", entry.name)))
        })
        .unwrap_err();
        assert_eq!((seen, error.to_string().as_str()), (1, "no a"));
    }
}
