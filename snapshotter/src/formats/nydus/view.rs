//! Bounded little-endian reads out of bytes that may be hostile.

use crate::formats::Flaw;

/// Bytes of a document, with its name for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    name: &'static str,
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    pub(super) const fn new(name: &'static str, bytes: &'a [u8]) -> Self {
        Self { name, bytes }
    }

    pub(super) const fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The `len` bytes at `offset`; `what` names them in the error.
    pub(super) fn slice(&self, offset: u64, len: u64, what: &str) -> Result<&'a [u8], Flaw> {
        offset
            .checked_add(len)
            .filter(|end| *end <= self.len())
            .map(|end| &self.bytes[offset as usize..end as usize])
            .ok_or_else(|| {
                self.flaw(format_args!(
                    "{what} of {len} bytes at {offset} is outside of its {} bytes",
                    self.len()
                ))
            })
    }

    /// The same as a view of its own, in which offsets begin at 0.
    pub(super) fn part(&self, offset: u64, len: u64, what: &str) -> Result<Self, Flaw> {
        Ok(Self::new(self.name, self.slice(offset, len, what)?))
    }

    /// A flaw of this document.
    pub(super) fn flaw(&self, reason: impl std::fmt::Display) -> Flaw {
        Flaw::new(format!("{}: {reason}", self.name))
    }

    pub(super) fn array<const N: usize>(&self, offset: u64, what: &str) -> Result<[u8; N], Flaw> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(offset, N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u8(&self, offset: u64, what: &str) -> Result<u8, Flaw> {
        self.array(offset, what).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&self, offset: u64, what: &str) -> Result<u16, Flaw> {
        self.array(offset, what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, offset: u64, what: &str) -> Result<u32, Flaw> {
        self.array(offset, what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, offset: u64, what: &str) -> Result<u64, Flaw> {
        self.array(offset, what).map(u64::from_le_bytes)
    }
}
