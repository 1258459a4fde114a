//! Sets of cgroup v2 controllers.

use std::fmt;

/// Names of the controllers, by bit.
const NAMES: [&str; 9] = [
    "cpu", "cpuset", "memory", "io", "pids", "hugetlb", "rdma", "misc", "dmem",
];

/// A set of cgroup v2 controllers; unknown names in kernel files are ignored.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Controllers(u16);

impl Controllers {
    /// No controller.
    pub const NONE: Self = Self(0);
    /// `cpu`
    pub const CPU: Self = Self(1);
    /// `cpuset`
    pub const CPUSET: Self = Self(1 << 1);
    /// `memory`
    pub const MEMORY: Self = Self(1 << 2);
    /// `io`
    pub const IO: Self = Self(1 << 3);
    /// `pids`
    pub const PIDS: Self = Self(1 << 4);
    /// `hugetlb`
    pub const HUGETLB: Self = Self(1 << 5);
    /// `rdma`
    pub const RDMA: Self = Self(1 << 6);
    /// Controllers that can tell the threads of a process apart.
    pub(super) const THREADED: Self = Self(Self::CPU.0 | Self::CPUSET.0 | Self::PIDS.0);
    /// Controllers every container gets where the host has them, as runc gives it: metrics and OOM
    /// events need some of them even when no limit is set, and a later update may need any.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// Parses the content of `cgroup.controllers` or `cgroup.subtree_control`.
    pub fn parse(text: &str) -> Self {
        text.split_whitespace()
            .filter_map(Self::by_name)
            .fold(Self::NONE, Self::union)
    }

    /// The controller of that name, if it is one this runtime knows.
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .position(|known| *known == name)
            .map(|bit| Self(1 << bit))
    }

    /// All members of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Members of both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Members of `self` that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is no member.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all members of `other` are members of `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Names of the members.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES
            .iter()
            .enumerate()
            .filter(move |(bit, _)| self.0 & (1 << bit) != 0)
            .map(|(_, n)| *n)
    }

    /// The text that enables all members in `cgroup.subtree_control`.
    pub(super) fn enable_text(self) -> String {
        let mut text = String::new();
        for name in self.names() {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push('+');
            text.push_str(name);
        }
        text
    }
}

impl fmt::Display for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.names().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_round_trip_and_unknown_ones_are_ignored() {
        let set = Controllers::parse("cpuset cpu io memory hugetlb pids rdma misc future\n");
        assert_eq!(
            set.enable_text(),
            "+cpu +cpuset +memory +io +pids +hugetlb +rdma +misc"
        );
        assert!(Controllers::ALL.contains(set));
        assert_eq!(Controllers::parse("\n"), Controllers::NONE);
    }
}
