//! Reading FlatBuffers without trusting them.
//!
//! A table begins with the distance back to its vtable, which holds for each field where in the
//! table it lies (u16; 0: absent). Strings and vectors are a u32 distance forward to a u32 length
//! and the elements. Everything is little-endian. Distances may lead anywhere, also for many fields
//! to the same place, so that what is handed out is counted: a small buffer must not become a
//! large one.

use std::cell::Cell;

use crate::formats::Flaw;

/// How many times the buffer's length may be handed out in strings and bytes.
const SHARING: usize = 4;

/// A buffer and how much of it may still be handed out.
pub(super) struct Buffer<'a> {
    bytes: &'a [u8],
    left: Cell<usize>,
}

/// A table in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    buffer: &'a Buffer<'a>,
    at: usize,
    vtable: usize,
    fields: usize,
}

/// A vector of distances to other things.
#[derive(Clone, Copy)]
pub(super) struct Vector<'a> {
    buffer: &'a Buffer<'a>,
    at: usize,
    len: usize,
}

fn broken() -> Flaw {
    Flaw::new("ztoc: an offset leads out of it")
}

impl<'a> Buffer<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            left: Cell::new(bytes.len().saturating_mul(SHARING)),
        }
    }

    /// The table that everything begins with.
    pub(super) fn root(&'a self) -> Result<Table<'a>, Flaw> {
        self.table(self.follow(0)?)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Flaw> {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        bytes.copied().ok_or_else(broken)
    }

    fn u16(&self, at: usize) -> Result<u16, Flaw> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Flaw> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// Where the distance at `at` leads.
    fn follow(&self, at: usize) -> Result<usize, Flaw> {
        at.checked_add(self.u32(at)? as usize).ok_or_else(broken)
    }

    fn table(&'a self, at: usize) -> Result<Table<'a>, Flaw> {
        let back = i64::from(i32::from_le_bytes(self.array(at)?));
        let vtable = usize::try_from(at as i64 - back).map_err(|_| broken())?;
        let len = usize::from(self.u16(vtable)?);
        Ok(Table {
            buffer: self,
            at,
            vtable,
            fields: len.saturating_sub(4) / 2,
        })
    }

    /// The bytes of the string or byte vector whose length is at `at`.
    fn bytes(&self, at: usize) -> Result<&'a [u8], Flaw> {
        let len = self.u32(at)? as usize;
        let bytes = self.bytes.get(at + 4..).and_then(|rest| rest.get(..len));
        let bytes = bytes.ok_or_else(broken)?;
        let left = self.left.get().checked_sub(len);
        let left = left.ok_or_else(|| Flaw::new("ztoc: its strings overlap"))?;
        self.left.set(left);
        Ok(bytes)
    }

    fn string(&self, at: usize) -> Result<&'a str, Flaw> {
        std::str::from_utf8(self.bytes(at)?).map_err(|_| Flaw::new("ztoc: a string is not UTF-8"))
    }
}

impl<'a> Table<'a> {
    /// Where a field lies, if it is there.
    fn field(&self, number: usize) -> Result<Option<usize>, Flaw> {
        if number >= self.fields {
            return Ok(None);
        }
        let offset = self.buffer.u16(self.vtable + 4 + 2 * number)?;
        Ok((offset != 0).then_some(self.at + usize::from(offset)))
    }

    pub(super) fn byte(&self, number: usize) -> Result<Option<u8>, Flaw> {
        let field = self.field(number)?;
        let byte = |at| self.buffer.array::<1>(at).map(|[byte]| byte);
        field.map(byte).transpose()
    }

    pub(super) fn u32(&self, number: usize) -> Result<u32, Flaw> {
        let field = self.field(number)?;
        Ok(field
            .map(|at| self.buffer.u32(at))
            .transpose()?
            .unwrap_or(0))
    }

    /// A `long` that must not be negative.
    pub(super) fn size(&self, number: usize) -> Result<u64, Flaw> {
        let Some(at) = self.field(number)? else {
            return Ok(0);
        };
        let number = i64::from_le_bytes(self.buffer.array(at)?);
        u64::try_from(number).map_err(|_| Flaw::new("ztoc: a negative number"))
    }

    pub(super) fn string(&self, number: usize) -> Result<&'a str, Flaw> {
        match self.field(number)? {
            Some(at) => self.buffer.string(self.buffer.follow(at)?),
            None => Ok(""),
        }
    }

    pub(super) fn bytes(&self, number: usize) -> Result<&'a [u8], Flaw> {
        match self.field(number)? {
            Some(at) => self.buffer.bytes(self.buffer.follow(at)?),
            None => Ok(&[]),
        }
    }

    pub(super) fn table(&self, number: usize) -> Result<Option<Table<'a>>, Flaw> {
        let field = self.field(number)?;
        let table = |at| self.buffer.table(self.buffer.follow(at)?);
        field.map(table).transpose()
    }

    pub(super) fn vector(&self, number: usize) -> Result<Option<Vector<'a>>, Flaw> {
        let Some(field) = self.field(number)? else {
            return Ok(None);
        };
        let at = self.buffer.follow(field)?;
        let len = self.buffer.u32(at)? as usize;
        if len > self.buffer.bytes.len() / 4 {
            return Err(broken());
        }
        Ok(Some(Vector {
            buffer: self.buffer,
            at: at + 4,
            len,
        }))
    }
}

impl<'a> Vector<'a> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn tables(self) -> impl Iterator<Item = Result<Table<'a>, Flaw>> {
        self.places().map(move |at| self.buffer.table(at?))
    }

    pub(super) fn strings(self) -> impl Iterator<Item = Result<&'a str, Flaw>> {
        self.places().map(move |at| self.buffer.string(at?))
    }

    fn places(self) -> impl Iterator<Item = Result<usize, Flaw>> {
        (0..self.len).map(move |i| self.buffer.follow(self.at + 4 * i))
    }
}
