//! Chunks: what they are called, and how they lie on the disk.

use std::fmt;

use blake3::Hash;
use chacha20poly1305::aead::{AeadInPlace as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce, Tag};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest chunk in bytes.
pub(crate) const CHUNK_MAX: usize = 256 << 10;
/// zstd's level.
const LEVEL: i32 = 1;
const TAG: usize = 16;

/// 32 bytes, which are written as 64 digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Word(pub(crate) [u8; 32]);

impl Word {
    fn derived(self, purpose: &str) -> Self {
        Self(*blake3::keyed_hash(&self.0, purpose.as_bytes()).as_bytes())
    }

    pub(crate) fn of_hash(hash: Hash) -> Self {
        Self(*hash.as_bytes())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Hash::from_hex(text).ok().map(Self::of_hash)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may be a key.
        f.write_str("Word")
    }
}

impl Serialize for Word {
    fn serialize<S: serde::Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not 64 hexadecimal digits"))
    }
}

/// What a chunk's content comes to under the key of those who may share it. Who has it can open
/// the sealed chunk; the chunk's name does not tell it.
pub(crate) fn digest(key: &Word, plain: &[u8]) -> Word {
    Word::of_hash(blake3::keyed_hash(&key.0, plain))
}

/// Name of a chunk.
pub(crate) fn id(digest: Word) -> Word {
    digest.derived("xebec chunk: name")
}

/// Turns contents into chunks; one for each thread.
pub(crate) struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub(crate) fn new() -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(Error::os("zstd"))?;
        Ok(Self(compressor))
    }

    /// The chunk as it is written; sealed by a key that only its own content gives.
    pub(crate) fn pack(&mut self, plain: &[u8], digest: Word, sealed: bool) -> Result<Vec<u8>> {
        let mut packed = self.0.compress(plain).map_err(Error::os("zstd"))?;
        if sealed {
            let tag = cipher(digest)
                .encrypt_in_place_detached(&Nonce::default(), &id(digest).0, &mut packed)
                .map_err(|_| Error::Invalid("a chunk is too large to be sealed".to_owned()))?;
            packed.extend_from_slice(&tag);
        }
        Ok(packed)
    }
}

/// A key seals one content and no other, so one nonce is enough.
fn cipher(digest: Word) -> ChaCha20Poly1305 {
    let key = digest.derived("xebec chunk: key");
    ChaCha20Poly1305::new(Key::from_slice(&key.0))
}

/// How a content is recognised.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Proof {
    /// It has this name under the store's key.
    Plain { key: Word, id: Word },
    /// It was sealed under this digest.
    Sealed { digest: Word },
}

impl Proof {
    pub(crate) fn id(self) -> Word {
        match self {
            Self::Plain { id, .. } => id,
            Self::Sealed { digest } => id(digest),
        }
    }

    /// The content, verified, of `length` bytes.
    pub(crate) fn unpack(self, mut packed: Vec<u8>, length: usize) -> Result<Vec<u8>> {
        let bad = |reason: &str| Error::malformed(format!("chunk {}", self.id()), reason);
        if length > CHUNK_MAX {
            return Err(bad("too long"));
        }
        if let Self::Sealed { digest } = self {
            let end = packed
                .len()
                .checked_sub(TAG)
                .ok_or_else(|| bad("cut off"))?;
            let tag = packed.split_off(end);
            cipher(digest)
                .decrypt_in_place_detached(
                    &Nonce::default(),
                    &id(digest).0,
                    &mut packed,
                    Tag::from_slice(&tag),
                )
                .map_err(|_| bad("not what was sealed"))?;
        }
        let plain =
            zstd::bulk::decompress(&packed, length).map_err(|_| bad("cannot be unpacked"))?;
        let same = match self {
            Self::Plain { key, id: name } => id(digest(&key, &plain)) == name,
            Self::Sealed { .. } => true,
        };
        if !same || plain.len() != length {
            return Err(bad("not what was written"));
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Word = Word([7; 32]);

    fn packed(plain: &[u8], sealed: bool) -> (Proof, Vec<u8>) {
        let sum = digest(&KEY, plain);
        let chunk = Packer::new()
            .expect("zstd")
            .pack(plain, sum, sealed)
            .expect("packed");
        let proof = if sealed {
            Proof::Sealed { digest: sum }
        } else {
            Proof::Plain {
                key: KEY,
                id: id(sum),
            }
        };
        (proof, chunk)
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_chunk_is_noticed() {
        let plain = b"some memory, and some more memory".repeat(9);
        for sealed in [false, true] {
            let (proof, chunk) = packed(&plain, sealed);
            assert_eq!(
                proof.unpack(chunk.clone(), plain.len()).expect("whole"),
                plain
            );
            for bit in 0..chunk.len() * 8 {
                let mut other = chunk.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                // Some bits of a plain frame mean nothing: then the content has to be right.
                if let Ok(read) = proof.unpack(other, plain.len()) {
                    assert!(!sealed && read == plain, "bit {bit}");
                }
            }
            for length in 0..chunk.len() {
                assert!(
                    proof.unpack(chunk[..length].to_vec(), plain.len()).is_err(),
                    "{length}"
                );
            }
            assert!(proof.unpack(chunk, plain.len() - 1).is_err());
        }
    }

    #[test]
    fn a_chunk_in_the_place_of_another_is_noticed() {
        for sealed in [false, true] {
            let (proof, _) = packed(b"one", sealed);
            let (_, other) = packed(b"two", sealed);
            assert!(proof.unpack(other, 3).is_err());
        }
    }

    #[test]
    fn a_sealed_chunk_shows_neither_its_content_nor_a_name_without_the_key() {
        let plain = b"the secret".repeat(100);
        let (proof, chunk) = packed(&plain, true);
        assert!(!chunk.windows(6).any(|bytes| bytes == b"secret"));
        assert_ne!(id(digest(&Word([8; 32]), &plain)), proof.id());
    }
}
