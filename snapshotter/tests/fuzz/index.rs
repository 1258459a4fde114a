//! What must hold of every index that a parser makes.

use std::sync::Arc;

use xebec_snapshotter::index::{Kind, LayerIndex, Tree};

/// Follows every reference inside the index, and merges it into a tree as a mount would.
pub(crate) fn check(index: LayerIndex) {
    let sizes: Vec<u64> = index.blobs().map(|(_, size)| size).collect();
    for id in 0..index.chunks() {
        let chunk = index.chunk(id);
        let (segment, position) = index.position(&chunk);
        assert!(position + u64::from(chunk.len) <= index.segment_len(segment));
        let unit = index.unit(chunk.unit);
        assert!(unit.end() <= sizes[usize::from(unit.blob)]);
        assert!(index.unit_chunks(&unit).any(|other| other == id));
    }
    for id in 0..index.inodes() {
        let inode = index.inode(id);
        assert!(index.xattrs(&inode).all(|(name, _)| !name.is_empty()));
        match inode.kind() {
            Kind::File => {
                let chunks = index.file_chunks(&inode);
                assert!(chunks.end <= index.chunks());
            }
            Kind::Symlink => assert_eq!(index.link_target(&inode).len() as u64, inode.size),
            _ => {}
        }
    }
    let Ok(tree) = Tree::merge(vec![Arc::new(index)]) else {
        return;
    };
    for id in 0..tree.len() as u32 {
        let node = tree.node(id).expect("nodes are counted");
        for child in tree.children(node) {
            let name = tree.name(child);
            assert!(!name.is_empty() && name != b"." && name != b"..");
            assert!(!name.contains(&b'/') && !name.contains(&0));
        }
    }
}
