//! Device rules as a list of what is allowed, for who cannot express exceptions.

use super::rules::{Kind, MKNOD, READ, Rule, WRITE};

/// What is allowed at least; the program on the cgroup may allow less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AllowList {
    /// Any device, but for exceptions.
    Everything,
    /// These, in systemd's notation: a node by its numbers or a class of them, and the access.
    Only(Vec<(String, String)>),
}

/// One kind of nodes; rules for both kinds are two.
#[derive(Clone, Copy)]
struct Entry {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// Reads rules from the first to the last: each adds to what is allowed or takes away from it.
pub(super) fn from_rules(rules: &[Rule]) -> AllowList {
    let mut everything = false;
    let mut entries: Vec<Entry> = Vec::new();
    for rule in rules {
        if rule.is_universal() {
            everything = rule.allow;
            entries.clear();
            continue;
        }
        let kinds = [Kind::Block, Kind::Char]
            .into_iter()
            .filter(|kind| rule.kind.is_none_or(|wanted| wanted == *kind));
        for kind in kinds {
            if rule.allow {
                allow(&mut entries, kind, rule);
            } else {
                deny(&mut entries, kind, rule);
            }
        }
    }
    if everything {
        return AllowList::Everything;
    }
    AllowList::Only(entries.into_iter().map(Entry::text).collect())
}

fn allow(entries: &mut Vec<Entry>, kind: Kind, rule: &Rule) {
    let (major, minor, access) = (rule.major, rule.minor, rule.access);
    let same = |entry: &&mut Entry| (entry.kind, entry.major, entry.minor) == (kind, major, minor);
    match entries.iter_mut().find(same) {
        Some(entry) => entry.access |= access,
        None => entries.push(Entry {
            kind,
            major,
            minor,
            access,
        }),
    }
}

/// What is denied as a whole goes; an exception from a class cannot be said.
fn deny(entries: &mut Vec<Entry>, kind: Kind, rule: &Rule) {
    let covers = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
    for entry in entries.iter_mut() {
        if entry.kind == kind && covers(rule.major, entry.major) && covers(rule.minor, entry.minor)
        {
            entry.access &= !rule.access;
        }
    }
    entries.retain(|entry| entry.access != 0);
}

impl Entry {
    fn text(self) -> (String, String) {
        let kind = match self.kind {
            Kind::Block => "block",
            Kind::Char => "char",
        };
        let device = match (self.major, self.minor) {
            (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
            (Some(major), None) => format!("{kind}-{major}"),
            // One minor of every driver cannot be said either.
            (None, _) => format!("{kind}-*"),
        };
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        let access = letters
            .into_iter()
            .filter(|(bit, _)| self.access & bit != 0);
        (device, access.map(|(_, letter)| letter).collect())
    }
}
