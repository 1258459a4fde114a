//! What of an image's layers nobody can see any more.

use std::collections::BTreeMap;

use serde::Serialize;

use super::listing::{Entry, Listing, What};

/// A file that an image carries for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wasted {
    /// Its path.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Number of the layer that holds it, the bottom one being 0.
    pub layer: usize,
    /// Number of the layer that hides it.
    pub hidden_by: usize,
    /// How.
    pub how: How,
}

/// How a file is hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// An upper layer has another file of this name.
    Overwritten,
    /// An upper layer says that it is gone.
    Removed,
}

/// A file that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Its path.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Number of the layer that holds it, the bottom one being 0.
    pub layer: usize,
    /// Whether a start reads any of it, where a profile says what a start reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_up: Option<bool>,
}

/// The files that are seen, with their inodes, and those that are not.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) seen: Vec<(Seen, Option<u32>)>,
    pub(super) wasted: Vec<Wasted>,
}

/// A name in the tree so far; no size for what is no regular file.
struct Known {
    size: Option<u64>,
    is_directory: bool,
    layer: usize,
    inode: Option<u32>,
}

/// Puts layers upon each other, bottom first. A layer that could not be listed hides nothing.
pub(super) fn merge(layers: &[Option<&Listing>]) -> Merged {
    let mut tree: BTreeMap<String, Known> = BTreeMap::new();
    let mut wasted = Vec::new();
    for (number, listing) in layers.iter().enumerate() {
        let entries = || listing.iter().flat_map(|listing| &listing.entries);
        // What a layer takes away are lower layers' files, wherever it says so.
        for entry in entries() {
            let with_itself = match entry.what {
                What::Whiteout => true,
                What::Opaque => false,
                _ => continue,
            };
            hide(&mut tree, &entry.path, with_itself, number, &mut wasted);
        }
        for entry in entries() {
            add(&mut tree, entry, number, &mut wasted);
        }
    }
    let seen = tree.into_iter().filter_map(|(path, known)| {
        let (size, layer, start_up) = (known.size?, known.layer, None);
        let seen = Seen {
            path,
            size,
            layer,
            start_up,
        };
        Some((seen, known.inode))
    });
    let seen = seen.collect();
    wasted.sort_by(|one: &Wasted, other| (other.size, &one.path).cmp(&(one.size, &other.path)));
    Merged { seen, wasted }
}

/// Removes what lies below `path`, and `path` itself if it is to go, unless layer `by` holds it.
fn hide(
    tree: &mut BTreeMap<String, Known>,
    path: &str,
    with_itself: bool,
    by: usize,
    wasted: &mut Vec<Wasted>,
) {
    let mut gone: Vec<String> = Vec::new();
    if with_itself && tree.contains_key(path) {
        gone.push(path.to_owned());
    }
    let below = if path.is_empty() {
        tree.range(String::new()..)
    } else {
        // '0' is the character after '/'.
        tree.range(format!("{path}/")..format!("{path}0"))
    };
    gone.extend(
        below
            .map(|(path, _)| path.clone())
            .filter(|it| !it.is_empty()),
    );
    for path in gone {
        if tree.get(&path).is_some_and(|known| known.layer < by)
            && let Some(known) = tree.remove(&path)
        {
            wasted.extend(waste(path, &known, by, How::Removed));
        }
    }
}

fn add(tree: &mut BTreeMap<String, Known>, entry: &Entry, layer: usize, wasted: &mut Vec<Wasted>) {
    let (size, is_directory) = match entry.what {
        What::File(size) => (Some(size), false),
        What::Directory => (None, true),
        What::Other => (None, false),
        What::Whiteout | What::Opaque => return,
    };
    if !is_directory
        && tree
            .get(&entry.path)
            .is_some_and(|known| known.is_directory)
    {
        hide(tree, &entry.path, false, layer, wasted);
    }
    let known = Known {
        size,
        is_directory,
        layer,
        inode: entry.inode,
    };
    if let Some(old) = tree.insert(entry.path.clone(), known) {
        wasted.extend(waste(entry.path.clone(), &old, layer, How::Overwritten));
    }
}

/// Only files take place.
fn waste(path: String, known: &Known, hidden_by: usize, how: How) -> Option<Wasted> {
    Some(Wasted {
        path,
        size: known.size?,
        layer: known.layer,
        hidden_by,
        how,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(entries: &[(&str, What)]) -> Listing {
        let entry = |&(path, what): &(&str, What)| Entry {
            path: path.to_owned(),
            what,
            inode: None,
        };
        Listing {
            entries: entries.iter().map(entry).collect(),
            index: None,
        }
    }

    fn merged(layers: &[Listing]) -> Merged {
        merge(&layers.iter().map(Some).collect::<Vec<_>>())
    }

    #[track_caller]
    fn assert_seen(merged: &Merged, expected: &[(&str, usize)]) {
        let seen = merged.seen.iter();
        let seen: Vec<_> = seen
            .map(|(seen, _)| (seen.path.as_str(), seen.layer))
            .collect();
        assert_eq!(seen, expected);
    }

    #[track_caller]
    fn assert_wasted(merged: &Merged, expected: &[(&str, u64, How)]) {
        let wasted = merged.wasted.iter();
        let wasted: Vec<_> = wasted
            .map(|it| (it.path.as_str(), it.size, it.how))
            .collect();
        assert_eq!(wasted, expected);
    }

    #[test]
    fn what_upper_layers_overwrite_remove_or_make_opaque_is_wasted() {
        let base = listing(&[
            ("a", What::File(1)),
            ("d", What::Directory),
            ("d/x", What::File(20)),
            ("d/y", What::File(30)),
            ("d-other", What::File(5)),
            ("e", What::Directory),
            ("e/z", What::File(400)),
            ("l", What::Other),
        ]);
        let top = listing(&[
            ("a", What::File(2)),
            ("d/new", What::File(7)),
            ("d", What::Opaque),
            ("e", What::Whiteout),
            ("l", What::Whiteout),
            ("d", What::Directory),
        ]);
        let merged = merged(&[base, top]);
        assert_seen(&merged, &[("a", 1), ("d-other", 0), ("d/new", 1)]);
        let expected = [
            ("e/z", 400, How::Removed),
            ("d/y", 30, How::Removed),
            ("d/x", 20, How::Removed),
            ("a", 1, How::Overwritten),
        ];
        assert_wasted(&merged, &expected);
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_hides_all_of_it_and_a_directory_again_nothing() {
        let base = listing(&[("d", What::Directory), ("d/x", What::File(3))]);
        let again = listing(&[("d", What::Directory)]);
        let file = listing(&[("d", What::File(1))]);
        let merged = merged(&[base, again, file]);
        assert_seen(&merged, &[("d", 2)]);
        assert_wasted(&merged, &[("d/x", 3, How::Removed)]);
    }

    #[test]
    fn a_whiteout_spares_what_its_own_layer_has_under_the_name() {
        let base = listing(&[("f", What::File(3))]);
        let top = listing(&[("f", What::File(4)), ("f", What::Whiteout)]);
        let merged = merged(&[base, top]);
        assert_seen(&merged, &[("f", 1)]);
        assert_wasted(&merged, &[("f", 3, How::Removed)]);
    }
}
