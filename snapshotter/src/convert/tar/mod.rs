//! Tar archives as image layers use them: POSIX ustar and PAX, and GNU's long names.
//!
//! An entry is described, not rewritten: its header blocks stay where they are in the archive and
//! are copied from there, so nothing that this reader does not know is lost.

mod header;
mod pax;
pub(crate) mod reader;

pub(super) use header::{BLOCK, encode_regular, padding};
pub(crate) use reader::{Raw, ReadError, Reader, Tap, TarEntry, Time};
