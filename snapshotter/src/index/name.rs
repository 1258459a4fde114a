//! Paths and names as layers hold them, checked before they become directory entries.

use crate::formats::Flaw;

/// Longest file name on Linux.
const MAX_NAME: usize = 255;
/// Longest path, and longest target of a symbolic link.
pub(super) const MAX_PATH: usize = 4095;
/// Prefix of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of what AUFS kept for itself; never part of a file system.
const AUFS: &[u8] = b".wh..wh.";

/// What the last component of an entry's path says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role<'a> {
    /// An ordinary name.
    Name(&'a [u8]),
    /// A whiteout of this name.
    Whiteout(&'a [u8]),
    /// The directory is opaque.
    Opaque,
    /// Something to leave out.
    Ignored,
}

/// Splits the last component off and says what it is.
pub(super) fn role(name: &[u8]) -> Role<'_> {
    if name == OPAQUE {
        Role::Opaque
    } else if name.starts_with(AUFS) {
        Role::Ignored
    } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        Role::Whiteout(hidden)
    } else {
        Role::Name(name)
    }
}

/// The path without `./` before and `/` behind; the empty path is the root directory.
///
/// Tar archives made by `tar -C dir .` begin names with `./`; everything else that is not plain
/// (absolute, empty component, `.`, `..`, NUL) is refused rather than interpreted.
pub(super) fn clean(path: &[u8]) -> Result<&[u8], Flaw> {
    if path.len() > MAX_PATH {
        return Err(Flaw::entry(path, "the path is longer than 4095 bytes"));
    }
    let mut rest = path;
    while let Some(stripped) = rest.strip_prefix(b"./") {
        rest = stripped;
    }
    let rest = rest.strip_suffix(b"/").unwrap_or(rest);
    if rest == b"." || (rest.is_empty() && matches!(path, b"./" | b".")) {
        return Ok(b"");
    }
    for component in components(rest) {
        check(component).map_err(|reason| Flaw::entry(path, reason))?;
    }
    Ok(rest)
}

fn check(component: &[u8]) -> Result<(), &'static str> {
    match component {
        b"" => Err("the path is absolute or has an empty component"),
        b"." | b".." => Err("the path has a component . or .."),
        _ if component.contains(&0) => Err("the path has a NUL byte"),
        _ if component.len() > MAX_NAME => Err("a component is longer than 255 bytes"),
        _ => Ok(()),
    }
}

/// Checks the name that a whiteout hides.
pub(super) fn check_hidden(path: &[u8], hidden: &[u8]) -> Result<(), Flaw> {
    check(hidden).map_err(|_| Flaw::entry(path, "the whiteout hides no valid name"))
}

/// The components of a path, empty ones among them.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

/// Parent path and last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths_are_cleaned() {
        for (path, clean_path) in [
            ("usr/bin/", "usr/bin"),
            ("./usr/bin", "usr/bin"),
            ("././a", "a"),
            ("./", ""),
            (".", ""),
            ("a", "a"),
            (".hidden", ".hidden"),
            ("..a", "..a"),
        ] {
            assert_eq!(clean(path.as_bytes()), Ok(clean_path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn hostile_paths_are_refused_by_name() {
        let long_name = "n".repeat(256);
        let long_path = "d/".repeat(2100);
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "a//b",
            "a/./b",
            "a\0b",
            ".//a",
            &long_name,
            &long_path,
        ] {
            let error = clean(path.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("entry \""), "{path}: {error}");
        }
    }

    #[test]
    fn whiteouts_are_told_from_names() {
        for (name, expected) in [
            (&b"a"[..], Role::Name(b"a")),
            (b".wh.a", Role::Whiteout(b"a")),
            (b".wh..a", Role::Whiteout(b".a")),
            (b".wh.\xe9", Role::Whiteout(b"\xe9")),
            (b".wh..wh..opq", Role::Opaque),
            (b".wh..wh.plnk", Role::Ignored),
            (b".who", Role::Name(b".who")),
        ] {
            assert_eq!(role(name), expected);
        }
        assert!(check_hidden(b".wh...", b"..").is_err());
        assert!(check_hidden(b".wh.", b"").is_err());
    }
}
