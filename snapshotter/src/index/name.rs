//! Paths and names as layers hold them, checked before they become directory entries.

use crate::formats::Flaw;

/// Longest file name on Linux.
const MAX_NAME: usize = 255;
/// Longest path, and longest target of a symbolic link.
pub(super) const MAX_PATH: usize = 4095;
/// Prefix of a whiteout.
const WHITEOUT: &str = ".wh.";
/// Makes its directory opaque.
const OPAQUE: &str = ".wh..wh..opq";
/// Prefix of what AUFS kept for itself; never part of a file system.
const AUFS: &str = ".wh..wh.";

/// What the last component of an entry's path says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role<'a> {
    /// An ordinary name.
    Name(&'a str),
    /// A whiteout of this name.
    Whiteout(&'a str),
    /// The directory is opaque.
    Opaque,
    /// Something to leave out.
    Ignored,
}

/// Splits the last component off and says what it is.
pub(super) fn role(name: &str) -> Role<'_> {
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
pub(super) fn clean(path: &str) -> Result<&str, Flaw> {
    if path.len() > MAX_PATH {
        return Err(Flaw::entry(path, "the path is longer than 4095 bytes"));
    }
    let mut rest = path;
    while let Some(stripped) = rest.strip_prefix("./") {
        rest = stripped;
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest == "." || (rest.is_empty() && matches!(path, "./" | ".")) {
        return Ok("");
    }
    for component in rest.split('/') {
        check(component).map_err(|reason| Flaw::entry(path, reason))?;
    }
    Ok(rest)
}

fn check(component: &str) -> Result<(), &'static str> {
    match component {
        "" => Err("the path is absolute or has an empty component"),
        "." | ".." => Err("the path has a component . or .."),
        _ if component.contains('\0') => Err("the path has a NUL byte"),
        _ if component.len() > MAX_NAME => Err("a component is longer than 255 bytes"),
        _ => Ok(()),
    }
}

/// Checks the name that a whiteout hides.
pub(super) fn check_hidden(path: &str, hidden: &str) -> Result<(), Flaw> {
    check(hidden).map_err(|_| Flaw::entry(path, "the whiteout hides no valid name"))
}

/// Parent path and last component.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
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
            assert_eq!(clean(path), Ok(clean_path), "{path}");
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
            let error = clean(path).unwrap_err().to_string();
            assert!(error.starts_with("entry \""), "{path}: {error}");
        }
    }

    #[test]
    fn whiteouts_are_told_from_names() {
        for (name, expected) in [
            ("a", Role::Name("a")),
            (".wh.a", Role::Whiteout("a")),
            (".wh..a", Role::Whiteout(".a")),
            (".wh..wh..opq", Role::Opaque),
            (".wh..wh.plnk", Role::Ignored),
            (".who", Role::Name(".who")),
        ] {
            assert_eq!(role(name), expected);
        }
        assert!(check_hidden(".wh...", "..").is_err());
        assert!(check_hidden(".wh.", "").is_err());
    }
}
