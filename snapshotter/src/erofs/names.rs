//! Directories: blocks of entries and names, sorted by bytes, `.` and `..` among them.
//!
//! The kernel searches first among blocks, then among the entries of one, so the order must hold
//! over all of them.

use super::disk::{BLOCK, Cursor, DIRENT};
use crate::index::{Kind, Node, Tree};

/// An entry: its name and the node it leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) node: u32,
}

/// All entries of directory `id`, in the order of the image.
pub(super) fn entries(tree: &Tree, id: u32, node: Node) -> impl Iterator<Item = Entry<'_>> {
    let named = |name, node| Entry { name, node };
    let mut own = [named(&b"."[..], id), named(&b".."[..], node.parent)]
        .into_iter()
        .peekable();
    let mut children = tree
        .children(node)
        .map(move |child| named(tree.name(child), child.node))
        .peekable();
    std::iter::from_fn(move || match (own.peek(), children.peek()) {
        (Some(dot), Some(child)) if child.name < dot.name => children.next(),
        (Some(_), _) => own.next(),
        (None, _) => children.next(),
    })
}

/// How many bytes the directory's data has: whole blocks, and a last one as far as it is used.
pub(super) fn len<'a>(entries: impl Iterator<Item = Entry<'a>>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for entry in entries {
        let need = DIRENT + entry.name.len();
        if used + need > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += need;
    }
    (blocks * BLOCK + used) as u64
}

/// The directory's data, as long as [`len`] says. `nid` gives the id and type of a node.
pub(super) fn data<'a>(
    entries: impl Iterator<Item = Entry<'a>>,
    nid: impl Fn(u32) -> (u64, Kind),
    out: &mut Vec<u8>,
) {
    out.clear();
    let (mut block, mut used): (Vec<Entry<'_>>, usize) = (Vec::new(), 0);
    for entry in entries {
        let need = DIRENT + entry.name.len();
        if used + need > BLOCK {
            put_block(&block, &nid, out);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
            block.clear();
            used = 0;
        }
        used += need;
        block.push(entry);
    }
    put_block(&block, &nid, out);
}

fn put_block(block: &[Entry<'_>], nid: &impl Fn(u32) -> (u64, Kind), out: &mut Vec<u8>) {
    let start = out.len();
    let names = block.len() * DIRENT;
    out.resize(start + names, 0);
    let mut name = names;
    for (n, entry) in block.iter().enumerate() {
        let (nid, kind) = nid(entry.node);
        let mut at = Cursor::new(&mut out[start + n * DIRENT..]);
        at.u64(nid);
        at.u16(name as u16);
        at.u8(file_type(kind));
        out.extend_from_slice(entry.name);
        name += entry.name.len();
    }
}

/// The type as directories state it.
const fn file_type(kind: Kind) -> u8 {
    match kind {
        Kind::File => 1,
        Kind::Directory => 2,
        Kind::CharDevice => 3,
        Kind::BlockDevice => 4,
        Kind::Fifo => 5,
        Kind::Symlink => 7,
    }
}
