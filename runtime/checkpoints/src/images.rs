//! CRIU's image files (criu.org/Images): a magic number or two, then messages, each after its
//! length.

use prost::Message;

use crate::archive::CHECKPOINT;
use crate::error::{Error, Result};
use crate::files::Files;

/// First word of the images that belong together as one checkpoint; that of the inventory is its own.
const COMMON: u32 = 0x5456_4319;

/// A kind of image: its magic number and the messages in it.
pub(crate) struct Kind(u32);

pub(crate) const INVENTORY: Kind = Kind(0x5831_3116);
pub(crate) const PSTREE: Kind = Kind(0x5027_3030);
pub(crate) const IDS: Kind = Kind(0x5443_2030);
pub(crate) const CORE: Kind = Kind(0x5505_3847);
pub(crate) const MM: Kind = Kind(0x5749_2820);
pub(crate) const PAGEMAP: Kind = Kind(0x5608_4025);
pub(crate) const MOUNTS: Kind = Kind(0x5556_3928);
pub(crate) const FILES: Kind = Kind(0x5630_3138);
pub(crate) const FDINFO: Kind = Kind(0x5621_3732);

/// The messages of an image, one after the other.
pub(crate) struct Entries<'a> {
    file: String,
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Checks the magic numbers of `content`; `file` names it in errors.
    pub(crate) fn new(content: &'a [u8], file: String, kind: &Kind) -> Result<Self> {
        let words = if kind.0 == INVENTORY.0 {
            vec![kind.0]
        } else {
            vec![COMMON, kind.0]
        };
        let mut rest = content;
        for word in words {
            match split_word(rest) {
                Some((found, after)) if found == word => rest = after,
                _ => return Err(Error::malformed(file, "not an image of this kind")),
            }
        }
        Ok(Self { file, rest })
    }

    /// The next message; none at the end.
    pub(crate) fn next<M: Message + Default>(&mut self) -> Result<Option<M>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let short = || Error::malformed(&self.file, "it ends early");
        let (length, after) = split_word(self.rest).ok_or_else(short)?;
        let length = length as usize;
        let message = after.get(..length).ok_or_else(short)?;
        self.rest = &after[length..];
        let decoded = M::decode(message);
        decoded
            .map(Some)
            .map_err(|e| Error::malformed(&self.file, e))
    }

    /// A refusal of the image.
    pub(crate) fn damaged(&self, reason: &str) -> Error {
        Error::malformed(&self.file, reason)
    }

    /// All messages that are left.
    pub(crate) fn all<M: Message + Default>(mut self) -> Result<Vec<M>> {
        let mut all = Vec::new();
        while let Some(entry) = self.next()? {
            all.push(entry);
        }
        Ok(all)
    }
}

fn split_word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}

/// Opens the image `name` (without `.img`) of a checkpoint; none if there is no such image.
pub(crate) fn open<'a>(files: &'a Files, name: &str, kind: &Kind) -> Result<Option<Entries<'a>>> {
    let name = format!("{CHECKPOINT}/{name}.img");
    let content = files.get(&name)?;
    let entries = content.map(|content| Entries::new(content, shown(files, &name), kind));
    entries.transpose()
}

/// How a file of a checkpoint is called in errors.
pub(crate) fn shown(files: &Files, name: &str) -> String {
    format!("{}: {name}", files.shown())
}

/// All messages of an image; none if there is no such image.
pub(crate) fn read<M: Message + Default>(files: &Files, name: &str, kind: &Kind) -> Result<Vec<M>> {
    match open(files, name, kind)? {
        Some(entries) => entries.all(),
        None => Ok(Vec::new()),
    }
}

/// The one message of an image that has to be there.
pub(crate) fn single<M: Message + Default>(files: &Files, name: &str, kind: &Kind) -> Result<M> {
    let missing = || {
        Error::malformed(
            shown(files, &format!("{CHECKPOINT}/{name}.img")),
            "it is missing",
        )
    };
    let mut entries = open(files, name, kind)?.ok_or_else(missing)?;
    entries.next()?.ok_or_else(missing)
}

#[cfg(test)]
pub(crate) mod forge {
    //! Images for tests.

    use prost::Message;

    use super::{COMMON, INVENTORY, Kind};

    pub(crate) fn image(kind: &Kind, entries: &[&dyn Encoded]) -> Vec<u8> {
        let mut bytes = Vec::new();
        if kind.0 != INVENTORY.0 {
            bytes.extend(COMMON.to_le_bytes());
        }
        bytes.extend(kind.0.to_le_bytes());
        for entry in entries {
            let message = entry.bytes();
            bytes.extend((message.len() as u32).to_le_bytes());
            bytes.extend(message);
        }
        bytes
    }

    pub(crate) trait Encoded {
        fn bytes(&self) -> Vec<u8>;
    }

    impl<M: Message> Encoded for M {
        fn bytes(&self) -> Vec<u8> {
            self.encode_to_vec()
        }
    }
}
