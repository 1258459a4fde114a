//! The order of a layer's entries: what starts the container first, then the landmark.

use std::collections::{HashMap, HashSet};

use bstr::{BStr, ByteSlice};

use crate::formats::estargz::toc::EntryType;

use super::tar::TarEntry;

/// Indices of all `entries`: first those that `wanted` names (paths without leading slash, in the
/// order of their use) with the directories they lie in and the files they are links to, then the
/// rest as it was. The second value is how many come before the landmark.
pub(super) fn order(entries: &[TarEntry], wanted: &[String]) -> (Vec<usize>, usize) {
    let by_name: HashMap<&BStr, usize> = entries
        .iter()
        .enumerate()
        .map(|(at, entry)| (entry.name.as_ref(), at))
        .collect();
    let mut plan = Plan {
        entries,
        by_name,
        order: Vec::new(),
        placed: HashSet::new(),
    };
    for name in wanted {
        plan.place(name.as_bytes().as_bstr());
    }
    let first = plan.order.len();
    let rest: Vec<_> = (0..entries.len())
        .filter(|at| !plan.placed.contains(at))
        .collect();
    plan.order.extend(rest);
    (plan.order, first)
}

struct Plan<'a> {
    entries: &'a [TarEntry],
    by_name: HashMap<&'a BStr, usize>,
    order: Vec<usize>,
    placed: HashSet<usize>,
}

impl Plan<'_> {
    /// Directories of a name that this layer does not have are another layer's affair.
    fn place(&mut self, name: &BStr) {
        let Some(&at) = self.by_name.get(name) else {
            return;
        };
        for slash in name.find_iter("/") {
            self.push_by_name(&name[..slash]);
        }
        let entry = &self.entries[at];
        // A link's target must be there before the link; a link to a link does not exist in tar.
        if entry.kind == EntryType::Hardlink && !self.placed.contains(&at) {
            let target: &BStr = entry.link.as_ref();
            for slash in target.find_iter("/") {
                self.push_by_name(&target[..slash]);
            }
            self.push_by_name(target);
        }
        self.push(at);
    }

    fn push_by_name(&mut self, name: &BStr) {
        if let Some(&at) = self.by_name.get(name) {
            self.push(at);
        }
    }

    fn push(&mut self, at: usize) {
        if self.placed.insert(at) {
            self.order.push(at);
        }
    }
}

/// Paths from the text of a priority list: one a line, `#` for comments, leading slash or not.
pub fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let components = line.split('/').filter(|part| !matches!(*part, "" | "."));
            components.collect::<Vec<_>>().join("/")
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tar::reader::{Raw, Time};
    use super::*;

    pub(in crate::convert) fn entry(name: &str, kind: EntryType, link: &str) -> TarEntry {
        TarEntry {
            name: name.into(),
            kind,
            link: link.into(),
            mode: 0,
            uid: 0,
            gid: 0,
            user_name: String::new(),
            group_name: String::new(),
            mtime: Time::default(),
            dev_major: 0,
            dev_minor: 0,
            xattrs: [].into(),
            header_at: 0,
            data_at: 0,
            raw: Raw::default(),
            size: 0,
        }
    }

    fn layer() -> Vec<TarEntry> {
        vec![
            entry("bin", EntryType::Dir, ""),
            entry("bin/a", EntryType::Reg, ""),
            entry("bin/b", EntryType::Hardlink, "lib/x/y"),
            entry("lib", EntryType::Dir, ""),
            entry("lib/x", EntryType::Dir, ""),
            entry("lib/x/y", EntryType::Reg, ""),
        ]
    }

    fn ordered(wanted: &[&str]) -> (Vec<usize>, usize) {
        let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        order(&layer(), &wanted)
    }

    #[test]
    fn without_wishes_nothing_moves() {
        assert_eq!(ordered(&[]), (vec![0, 1, 2, 3, 4, 5], 0));
        assert_eq!(ordered(&["not/here"]), (vec![0, 1, 2, 3, 4, 5], 0));
    }

    #[test]
    fn wanted_files_come_first_with_their_directories() {
        assert_eq!(ordered(&["lib/x/y", "bin/a"]), (vec![3, 4, 5, 0, 1, 2], 5));
        assert_eq!(ordered(&["bin/a", "bin/a"]), (vec![0, 1, 2, 3, 4, 5], 2));
    }

    #[test]
    fn a_hard_link_brings_its_target() {
        assert_eq!(ordered(&["bin/b"]), (vec![0, 3, 4, 5, 2, 1], 5));
    }

    #[test]
    fn lists_are_read_leniently() {
        assert_eq!(
            parse_list("# c\n/bin/sh\n\n ./lib//x \n"),
            ["bin/sh", "lib/x"]
        );
    }
}
