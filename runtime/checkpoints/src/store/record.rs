//! The record of one checkpoint: a head that anyone may read who may read the store, as it counts what
//! refers to a chunk; the contents, which a sealed checkpoint has sealed; and a code by the store's
//! secret over both.

use serde::{Deserialize, Serialize};

use super::chunk::{CHUNK_MAX, Word};
use crate::error::{Error, Result};
use crate::flat;
use crate::keys::{Identities, Recipients};

const MAGIC: &[u8; 16] = b"xebec-checkpoint";
const VERSION: u32 = 1;
/// Bytes of the largest record, and of the largest contents.
const SIZE_MAX: usize = 512 << 20;
const MAC: usize = 32;

/// What is known of a checkpoint without opening it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    version: u32,
    pub(crate) name: String,
    /// Which container it was made of.
    pub(crate) container: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Bytes of its images.
    pub(crate) size: u64,
    pub(crate) sealed: bool,
    /// Every chunk once.
    pub(crate) chunks: Vec<Stored>,
}

/// A chunk on the disk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    pub(crate) id: Word,
    /// Bytes of its file.
    pub(crate) bytes: u32,
}

/// How the images are made of chunks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contents {
    /// Which head they belong to.
    head: Word,
    /// In the order of the head's.
    pub(crate) chunks: Vec<Content>,
    pub(crate) files: Vec<Assembled>,
}

/// What is in a chunk.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Content {
    /// Bytes.
    pub(crate) length: u32,
    /// What opens it, if it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<Word>,
}

/// A file of chunks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Assembled {
    pub(crate) name: String,
    /// Numbers of chunks, one after the other.
    pub(crate) chunks: Vec<u32>,
}

/// Who a checkpoint is and when it was made.
#[derive(Clone, Debug)]
pub struct Label {
    /// Its name in the store.
    pub name: String,
    /// The container's.
    pub container: String,
    /// Seconds since 1970.
    pub created: u64,
}

impl Head {
    pub(crate) fn new(label: Label, size: u64, sealed: bool, chunks: Vec<Stored>) -> Self {
        Self {
            version: VERSION,
            name: label.name,
            container: label.container,
            created: label.created,
            size,
            sealed,
            chunks,
        }
    }
}

/// Writes a record.
pub(crate) fn encode(
    head: &Head,
    (chunks, files): (Vec<Content>, Vec<Assembled>),
    recipients: Option<&Recipients>,
    secret: &Word,
) -> Result<Vec<u8>> {
    let failed = |e: serde_json::Error| Error::Invalid(format!("record of {}: {e}", head.name));
    let head_text = serde_json::to_vec(head).map_err(failed)?;
    let contents = Contents {
        head: Word::of_hash(blake3::hash(&head_text)),
        chunks,
        files,
    };
    let contents = serde_json::to_vec(&contents).map_err(failed)?;
    let mut body = zstd::encode_all(&*contents, 3).map_err(Error::os("zstd"))?;
    if let Some(recipients) = recipients {
        let mut sealed = recipients.seal(Vec::new())?;
        std::io::Write::write_all(&mut sealed, &body).map_err(Error::os("seal"))?;
        body = sealed.finish().map_err(Error::os("seal"))?;
    }
    let mut record = MAGIC.to_vec();
    record.extend((head_text.len() as u64).to_le_bytes());
    record.extend(head_text);
    record.extend(body);
    let code = blake3::keyed_hash(&secret.0, &record);
    record.extend(code.as_bytes());
    Ok(record)
}

/// A record whose code is right.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) head: Head,
    head_hash: Word,
    body: Vec<u8>,
}

impl Record {
    /// Reads the record of a name.
    pub(crate) fn decode(name: &str, record: &[u8], secret: &Word) -> Result<Self> {
        let bad = |reason: &str| Error::malformed(format!("checkpoint {name:?}"), reason);
        if record.len() > SIZE_MAX {
            return Err(bad("its record is too large"));
        }
        let short = || bad("its record is cut off");
        let end = record.len().checked_sub(MAC).ok_or_else(short)?;
        let (content, code) = record.split_at(end);
        // In constant time.
        if blake3::keyed_hash(&secret.0, content) != *code {
            return Err(bad("its record is not what was written"));
        }
        Self::parse(name, content)
    }

    /// Reads what a right code is said to belong to.
    pub(crate) fn parse(name: &str, content: &[u8]) -> Result<Self> {
        let bad = |reason: &str| Error::malformed(format!("checkpoint {name:?}"), reason);
        let short = || bad("its record is cut off");
        let rest = content
            .strip_prefix(MAGIC)
            .ok_or_else(|| bad("not a record"))?;
        let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| short())?;
        let (text, body) = rest.split_at_checked(length).ok_or_else(short)?;
        let head: Head = serde_json::from_slice(text).map_err(|e| bad(&e.to_string()))?;
        if head.version != VERSION {
            return Err(bad(&format!("version {} is not known here", head.version)));
        }
        if head.name != name {
            return Err(bad(&format!("its record is that of {:?}", head.name)));
        }
        Ok(Self {
            head,
            head_hash: Word::of_hash(blake3::hash(text)),
            body: body.to_vec(),
        })
    }

    /// Opens the contents.
    pub(crate) fn contents(&self, identities: &Identities) -> Result<Contents> {
        let what = format!("checkpoint {:?}", self.head.name);
        let opened = if self.head.sealed {
            let mut stream = identities.open(&what, &*self.body)?;
            let mut opened = Vec::new();
            std::io::Read::read_to_end(&mut stream, &mut opened)
                .map_err(|e| Error::malformed(&what, e))?;
            opened
        } else {
            self.body.clone()
        };
        let bad = |reason: String| Error::malformed(&what, reason);
        let text = decompress(&opened).map_err(|e| bad(e.to_string()))?;
        let contents: Contents = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if contents.head != self.head_hash {
            return Err(bad("its contents belong to another head".to_owned()));
        }
        contents.check(&self.head).map_err(bad)?;
        Ok(contents)
    }
}

fn decompress(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut decoder = zstd::Decoder::new(packed)?;
    decoder.window_log_max(27)?;
    let mut limited = std::io::Read::take(decoder, SIZE_MAX as u64);
    std::io::Read::read_to_end(&mut limited, &mut text)?;
    Ok(text)
}

impl Contents {
    /// Whether all of it holds together.
    fn check(&self, head: &Head) -> std::result::Result<(), String> {
        if self.chunks.len() != head.chunks.len() {
            return Err("its chunks are not those of its head".to_owned());
        }
        for chunk in &self.chunks {
            let is_sealed = chunk.digest.is_some();
            if chunk.length == 0 || chunk.length as usize > CHUNK_MAX || is_sealed != head.sealed {
                return Err("a chunk that cannot be".to_owned());
            }
        }
        let mut size = 0_u64;
        for file in &self.files {
            if !flat::is_name(&file.name) {
                return Err(format!("file {:?} has no name of an image", file.name));
            }
            for number in &file.chunks {
                let chunk = self.chunks.get(*number as usize);
                let chunk =
                    chunk.ok_or_else(|| format!("file {:?} has a chunk too many", file.name))?;
                size += u64::from(chunk.length);
            }
        }
        if size != head.size {
            return Err(format!("{size} bytes, not {}", head.size));
        }
        Ok(())
    }
}
