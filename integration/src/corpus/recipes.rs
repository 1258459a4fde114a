//! Which images there are and what each is made of.

use crate::hash;

/// Debian's suite of the images: old enough to be stable, other than the hosts' own.
pub(super) const SUITE: &str = "bookworm";

/// Scale of `manyfiles` that tests use; 1.0 is about 1 GiB.
const SMALL: f64 = 0.05;

/// Counts up when the way of building changes, so that caches are not used any more.
const VERSION: u32 = 2;

/// How one image comes about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Its name, also in registries.
    pub name: &'static str,
    /// What its own layer holds.
    pub content: Content,
    /// The command whose first output ends a cold start.
    pub command: &'static [&'static str],
    /// The line that this command prints first, where it is the same everywhere.
    pub prints: Option<&'static str>,
}

/// What an image's own layer holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Content {
    /// Packages, each with its alternatives, on top of the base layer.
    Packages(&'static [&'static [&'static str]]),
    /// Generated files on top of the base layer; the scale is in GiB.
    ManyFiles(f64),
    /// The host's static busybox alone, without a base layer.
    Busybox,
}

/// Every image.
pub const ALL: [Recipe; 10] = [
    Recipe {
        name: "busybox",
        content: Content::Busybox,
        command: &["/bin/sh", "-c", "echo ready"],
        prints: Some("ready"),
    },
    Recipe {
        name: "pause",
        content: Content::Busybox,
        command: &[
            "/bin/sh",
            "-c",
            "trap 'exit 0' TERM INT; sleep infinity & wait",
        ],
        prints: None,
    },
    Recipe {
        name: "python3-numpy",
        content: Content::Packages(&[&["python3"], &["python3-numpy"]]),
        command: &[
            "python3",
            "-c",
            "import numpy as n; print('ready', int(n.dot(n.arange(9), n.arange(9))))",
        ],
        prints: Some("ready 204"),
    },
    Recipe {
        name: "nodejs",
        content: Content::Packages(&[&["nodejs"]]),
        command: &[
            "node",
            "-e",
            "require('http');require('crypto');console.log('ready')",
        ],
        prints: Some("ready"),
    },
    Recipe {
        name: "openjdk",
        content: Content::Packages(&[&["openjdk-17-jre-headless", "openjdk-21-jre-headless"]]),
        command: &["java", "-Xshare:auto", "-version"],
        prints: None,
    },
    Recipe {
        name: "nginx",
        content: Content::Packages(&[&["nginx-light", "nginx"]]),
        command: &["nginx", "-v"],
        prints: None,
    },
    Recipe {
        name: "redis",
        content: Content::Packages(&[&["redis-server"]]),
        command: &["redis-server", "--version"],
        prints: None,
    },
    Recipe {
        name: "ruby",
        content: Content::Packages(&[&["ruby"]]),
        command: &[
            "ruby",
            "-rjson",
            "-ropenssl",
            "-e",
            "puts 'ready ' + {a: 1}.to_json",
        ],
        prints: Some("ready {\"a\":1}"),
    },
    Recipe {
        name: "manyfiles",
        content: Content::ManyFiles(SMALL),
        command: &["sh", "-c", "ls /data/00 | tail -1; echo ready"],
        prints: None,
    },
    Recipe {
        name: "manyfiles-1g",
        content: Content::ManyFiles(1.0),
        command: &["sh", "-c", "ls /data/00 | tail -1; echo ready"],
        prints: None,
    },
];

/// What the demo and a first look need.
pub const FIRST: [&str; 3] = ["busybox", "pause", "python3-numpy"];

/// What tests need: all but the one that is large on purpose.
pub const DEFAULT: [&str; 9] = [
    "busybox",
    "pause",
    "python3-numpy",
    "nodejs",
    "openjdk",
    "nginx",
    "redis",
    "ruby",
    "manyfiles",
];

/// The recipe of an image.
pub fn find(name: &str) -> Option<Recipe> {
    ALL.into_iter().find(|recipe| recipe.name == name)
}

/// Changes whenever a recipe does.
pub(super) fn key() -> String {
    hash::key(&format!("{VERSION} {SUITE} {ALL:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_default_ones_exist() {
        for (at, recipe) in ALL.iter().enumerate() {
            assert_eq!(ALL.iter().position(|it| it.name == recipe.name), Some(at));
        }
        assert!(
            DEFAULT
                .iter()
                .chain(&FIRST)
                .all(|name| find(name).is_some())
        );
    }
}
