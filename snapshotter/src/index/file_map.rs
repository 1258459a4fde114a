//! Which files lie where in the segments: the index knows it the other way round.

use super::layer::LayerIndex;
use super::layout::{Inode, Kind};

/// The files of a layer by their place in the store.
#[derive(Debug)]
pub struct FileMap {
    /// Files of segment 0 in the order in which they lie there.
    shared: Vec<u32>,
    /// The file of each other segment.
    objects: Vec<u32>,
}

/// Some bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The file.
    pub file: Inode,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl FileMap {
    /// Looks once at every file of `index`.
    pub fn of(index: &LayerIndex) -> Self {
        let mut map = Self {
            shared: Vec::new(),
            objects: vec![0; index.segments().saturating_sub(1) as usize],
        };
        for id in 0..index.inodes() {
            let inode = index.inode(id);
            if inode.kind() != Kind::File || inode.size == 0 {
                continue;
            }
            match inode.segment {
                0 => map.shared.push(id),
                object => map.objects[object as usize - 1] = id,
            }
        }
        // Places are given in the order of the inodes, so that this is one look at each.
        map.shared.sort_by_key(|&id| index.inode(id).base);
        map.shared.shrink_to_fit();
        map
    }

    /// The parts of files that lie in the `len` bytes at `offset` of a segment; what else lies
    /// there belongs to no file.
    pub fn pieces<'a>(
        &'a self,
        index: &'a LayerIndex,
        segment: u32,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = Piece> + 'a {
        let end = offset.saturating_add(len);
        let piece = move |id: u32| {
            let file = index.inode(id);
            let start = offset.max(file.base);
            let end = end.min(file.base + file.size);
            (start < end).then(|| Piece {
                file,
                offset: start - file.base,
                len: end - start,
            })
        };
        let (shared, object) = match segment {
            0 => (self.shared_from(index, offset), None),
            object => (&[][..], self.objects.get(object as usize - 1).copied()),
        };
        let shared = shared.iter().copied();
        let shared = shared.take_while(move |&id| index.inode(id).base < end);
        shared.chain(object).filter_map(piece)
    }

    /// The files of segment 0 from the one that may hold `offset` on.
    fn shared_from(&self, index: &LayerIndex, offset: u64) -> &[u32] {
        let begins = |&id: &u32| index.inode(id).base <= offset;
        let behind = self.shared.partition_point(begins);
        &self.shared[behind.saturating_sub(1)..]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ChunkSpec, Codec, LayerBuilder, Meta, OBJECT_MIN};
    use super::*;
    use crate::digest::Digest;

    fn index(sizes: &[u64]) -> LayerIndex {
        let mut builder = LayerBuilder::new(Digest::of(b"l"), Digest::of(b"t"), 1 << 40);
        let mut at = 0;
        for (n, &size) in sizes.iter().enumerate() {
            let file = builder.file(format!("{n:03}"), &Meta::default(), size);
            if size > 0 {
                let spec = ChunkSpec {
                    file_offset: 0,
                    len: size,
                    unit_offset: at,
                    unit_len: size,
                    codec: Codec::Plain,
                    inner: 0,
                    digest: Digest::of(b""),
                };
                builder.chunk(file.unwrap().unwrap(), spec).unwrap();
                at += size;
            }
        }
        builder.finish().unwrap()
    }

    #[test]
    fn a_range_of_a_segment_is_parts_of_files() {
        let index = index(&[100, 5000, 0, OBJECT_MIN, 4096, OBJECT_MIN + 1]);
        let map = FileMap::of(&index);
        let found = |segment, offset, len| -> Vec<(u64, u64, u64)> {
            let pieces = map.pieces(&index, segment, offset, len);
            pieces.map(|p| (p.file.size, p.offset, p.len)).collect()
        };
        // Files of segment 0 begin at 0, 4096 and 12288.
        assert_eq!(found(0, 0, 4096), [(100, 0, 100)]);
        assert_eq!(found(0, 50, 10), [(100, 50, 10)]);
        assert_eq!(found(0, 200, 10), []);
        assert_eq!(found(0, 8192, 4096), [(5000, 4096, 904)]);
        assert_eq!(
            found(0, 0, u64::MAX),
            [(100, 0, 100), (5000, 0, 5000), (4096, 0, 4096)]
        );
        assert_eq!(found(0, 1 << 30, 4096), []);
        assert_eq!(found(1, 4096, 4096), [(OBJECT_MIN, 4096, 4096)]);
        assert_eq!(
            found(2, OBJECT_MIN, 4096),
            [(OBJECT_MIN + 1, OBJECT_MIN, 1)]
        );
        assert_eq!(found(3, 0, 4096), []);
    }

    #[test]
    fn a_layer_without_data_has_no_pieces() {
        let index = index(&[0]);
        assert_eq!(FileMap::of(&index).pieces(&index, 0, 0, 9).count(), 0);
    }
}
