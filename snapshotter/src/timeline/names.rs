//! The paths of files that somebody waited for.

use std::collections::{HashMap, HashSet};

use super::{Event, What};
use crate::index::{Kind, Tree};

/// Enters the files' paths into the events that have only a place in the store.
pub fn name_files(events: &mut [Event], tree: &Tree) {
    let numbers: HashMap<_, _> = tree
        .layers()
        .iter()
        .enumerate()
        .map(|(number, layer)| (layer.layer(), number as u16))
        .collect();
    let mut wanted: HashMap<(u16, u32), Vec<(u64, &mut String)>> = HashMap::new();
    for event in events {
        if let What::Wait {
            layer, file, place, ..
        } = &mut event.what
            && let Some(number) = numbers.get(layer)
        {
            let places = wanted.entry((*number, place.0)).or_default();
            places.push((place.1, file));
        }
    }
    if wanted.is_empty() {
        return;
    }
    let mut directories = vec![(0, Vec::new())];
    let mut seen = HashSet::new();
    while let Some((id, path)) = directories.pop() {
        let Some(node) = tree.node(id) else {
            continue;
        };
        for child in tree.children(node) {
            let Some(found) = tree.node(child.node) else {
                continue;
            };
            let mut path = path.clone();
            path.push(b'/');
            path.extend_from_slice(tree.name(child));
            let inode = tree.inode(found);
            match inode.kind() {
                Kind::Directory => directories.push((child.node, path)),
                // The first name of several is as good as the others.
                Kind::File if seen.insert(child.node) => {
                    let Some(places) = wanted.get_mut(&(found.layer, inode.segment)) else {
                        continue;
                    };
                    let inside = inode.base..inode.base + inode.size.max(1);
                    for (place, file) in places {
                        if inside.contains(place) {
                            **file = String::from_utf8_lossy(&path).into_owned();
                        }
                    }
                }
                _ => {}
            }
        }
    }
}
