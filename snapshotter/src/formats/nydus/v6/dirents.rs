//! The entries of an EROFS directory block.

use super::super::view::View;
use crate::formats::Flaw;

/// Length of an entry's record; the name lies behind all records of its block.
pub(crate) const RECORD: u64 = 12;

/// Calls `each` with the inode's number and the name of every entry of a block, `.` and `..` left
/// out.
pub(super) fn for_each<'a>(
    block: &'a [u8],
    mut each: impl FnMut(u64, &'a [u8]) -> Result<(), Flaw>,
) -> Result<(), Flaw> {
    let view = View::new("bootstrap: a directory", block);
    let what = "an entry";
    let names = u64::from(view.u16(8, what)?);
    let count = names / RECORD;
    if count == 0 || !names.is_multiple_of(RECORD) {
        return Err(view.flaw(format_args!("the first name is at {names}")));
    }
    for i in 0..count {
        let at = i * RECORD;
        let number = view.u64(at, what)?;
        let start = u64::from(view.u16(at + 8, what)?);
        let end = if i + 1 < count {
            u64::from(view.u16(at + RECORD + 8, what)?)
        } else {
            view.len()
        };
        let len = end.checked_sub(start).filter(|_| start >= names);
        let len = len.ok_or_else(|| view.flaw(format_args!("a name from {start} to {end}")))?;
        let name = view.slice(start, len, "a name")?;
        // The last name of a block may be followed by zeros up to the block's end.
        let name = match name.iter().position(|byte| *byte == 0) {
            Some(end) if i + 1 == count => &name[..end],
            _ => name,
        };
        if !matches!(name, b"." | b"..") {
            each(number, name)?;
        }
    }
    Ok(())
}
