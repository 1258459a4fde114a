//! Where a scope is: unit, slice and cgroup from `linux.cgroupsPath`.

use std::path::PathBuf;

use crate::cgroup::error::{CgroupError, Result};

/// A scope and the slice it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Name of the slice's unit.
    pub(crate) slice: String,
    /// Name of the scope's unit.
    pub(crate) unit: String,
}

impl Place {
    /// Reads `slice:prefix:name`; without a path, and for an empty slice, the defaults are runc's.
    pub(crate) fn parse(cgroups_path: Option<&str>, id: &str, user: bool) -> Result<Self> {
        let default = if user { "user.slice" } else { "system.slice" };
        let Some(path) = cgroups_path.filter(|path| !path.is_empty()) else {
            return Ok(Self {
                slice: default.to_owned(),
                unit: format!("xebec-{id}.scope"),
            });
        };
        let refuse = |reason| CgroupError::Path {
            path: path.to_owned(),
            reason,
        };
        let parts: Vec<_> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(refuse(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups",
            ));
        };
        if has_suffix(name, ".slice") {
            return Err(refuse(
                "a slice has no processes: the name must be that of a scope",
            ));
        }
        let place = Self {
            slice: if slice.is_empty() { default } else { slice }.to_owned(),
            unit: if prefix.is_empty() {
                format!("{name}.scope")
            } else {
                format!("{prefix}-{name}.scope")
            },
        };
        if name.is_empty() || place.unit.contains('/') || expand(&place.slice).is_none() {
            return Err(refuse("invalid slice name or scope name"));
        }
        Ok(place)
    }

    /// The scope's cgroup, from the manager's own on.
    pub(crate) fn cgroup(&self) -> PathBuf {
        let mut path = expand(&self.slice).unwrap_or_default();
        path.push(&self.unit);
        path
    }
}

fn has_suffix(name: &str, suffix: &str) -> bool {
    name.len() >= suffix.len() && name.ends_with(suffix)
}

/// `a-b.slice` is in `a.slice`: systemd reads the hierarchy from the name.
fn expand(slice: &str) -> Option<PathBuf> {
    let stem = slice
        .strip_suffix(".slice")
        .filter(|stem| !stem.contains('/'))?;
    let mut path = PathBuf::new();
    if stem == "-" {
        return Some(path);
    }
    let mut prefix = String::new();
    for component in stem.split('-') {
        if component.is_empty() {
            return None;
        }
        prefix.push_str(component);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(path: Option<&str>, user: bool) -> Option<String> {
        let place = Place::parse(path, "web", user).ok()?;
        Some(place.cgroup().to_string_lossy().into_owned())
    }

    #[test]
    fn the_path_names_slice_and_scope() {
        let table = [
            (None, false, "system.slice/xebec-web.scope"),
            (None, true, "user.slice/xebec-web.scope"),
            (
                Some("system.slice:docker:1"),
                false,
                "system.slice/docker-1.scope",
            ),
            (Some(":libpod:1"), true, "user.slice/libpod-1.scope"),
            (Some("-.slice:a:b"), false, "a-b.scope"),
            (
                Some("kubepods-burstable-pod1.slice:cri-containerd:2"),
                false,
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/\
                 cri-containerd-2.scope",
            ),
            (Some("a.slice::b"), false, "a.slice/b.scope"),
        ];
        for (path, user, expected) in table {
            assert_eq!(cgroup(path, user).as_deref(), Some(expected), "{path:?}");
        }
    }

    #[test]
    fn what_names_no_scope_is_refused() {
        for path in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a:b:c",
            "a--b.slice:c:d",
            "-a.slice:c:d",
            "a/b.slice:c:d",
            ".slice:c:d",
            "a.slice:b:",
            "a.slice:b:c/d",
            "a.slice:b:c.slice",
        ] {
            assert_eq!(cgroup(Some(path), false), None, "{path}");
        }
    }
}
