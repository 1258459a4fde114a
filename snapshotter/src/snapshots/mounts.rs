//! The mounts that containerd is told to make for a snapshot: pure planning.

use std::path::{Path, PathBuf};

use super::record::{Kind, Labels};
use crate::error::{Error, Result};
use crate::rootless::in_user_namespace;

/// Label with the user id mapping of a container in a user namespace.
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// Label with the group id mapping of a container in a user namespace.
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// One mount, in containerd's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// What is mounted.
    pub source: String,
    /// Mount options.
    pub options: Vec<String>,
}

/// What a snapshot consists of on this node.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Active or view; committed snapshots are mounted through those.
    pub kind: Kind,
    /// The snapshot's own directory.
    pub upper: &'a Path,
    /// Overlayfs's scratch directory beside it.
    pub work: &'a Path,
    /// The parents' trees, topmost first.
    pub lower: &'a [PathBuf],
    /// The snapshot's labels; id mappings are among them.
    pub labels: &'a Labels,
}

/// Plans the mount of `parts`; `overlay_options` are what this kernel and host need.
///
/// Overlayfs wants two layers at least, so a single one becomes a bind mount.
pub fn plan(parts: &Parts<'_>, overlay_options: &[String]) -> Vec<Mount> {
    let mut options = id_mappings(parts.labels);
    let active = parts.kind == Kind::Active;
    match (parts.lower, active) {
        ([], _) => return vec![bind(parts.upper, active, options)],
        ([only], false) => return vec![bind(only, false, options)],
        (_, false) => {}
        (_, true) => {
            options.push(format!("workdir={}", parts.work.display()));
            options.push(format!("upperdir={}", parts.upper.display()));
        }
    }
    let lower: Vec<String> = parts
        .lower
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    options.extend_from_slice(overlay_options);
    vec![Mount {
        kind: "overlay",
        source: "overlay".into(),
        options,
    }]
}

fn bind(source: &Path, writable: bool, mut options: Vec<String>) -> Mount {
    options.push(if writable { "rw" } else { "ro" }.into());
    options.push("rbind".into());
    Mount {
        kind: "bind",
        source: source.display().to_string(),
        options,
    }
}

fn id_mappings(labels: &Labels) -> Vec<String> {
    [(UID_MAPPING, "uidmap"), (GID_MAPPING, "gidmap")]
        .into_iter()
        .filter_map(|(label, option)| Some(format!("{option}={}", labels.get(label)?)))
        .collect()
}

/// Owner on the host of the container's root, if the labels map ids.
pub fn mapped_root(labels: &Labels) -> Result<Option<(u32, u32)>> {
    match (labels.get(UID_MAPPING), labels.get(GID_MAPPING)) {
        (None, None) => Ok(None),
        (Some(uids), Some(gids)) => Ok(Some((
            root_of(UID_MAPPING, uids)?,
            root_of(GID_MAPPING, gids)?,
        ))),
        (Some(_), None) | (None, Some(_)) => Err(Error::InvalidArgument(format!(
            "labels {UID_MAPPING} and {GID_MAPPING} must come together"
        ))),
    }
}

/// Host id of container id 0 in a mapping `container:host:length[,…]`.
fn root_of(label: &str, mapping: &str) -> Result<u32> {
    let bad = |why: &str| Error::InvalidArgument(format!("label {label}={mapping:?}: {why}"));
    let mut root = None;
    for range in mapping.split(',') {
        let mut fields = range.split(':').map(str::parse::<u32>);
        let (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(length)), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(bad("ranges are container:host:length"));
        };
        if inside == 0 && length > 0 {
            root = Some(outside);
        }
    }
    root.ok_or_else(|| bad("no range maps id 0"))
}

/// Overlay options that this host needs on every mount.
///
/// `index` is switched off where the kernel knows it, because layers are shared between mounts.
/// `userxattr` is needed where the daemon itself runs in a user namespace (kernel 5.11).
pub fn host_options() -> Vec<String> {
    let mut options = Vec::new();
    if Path::new("/sys/module/overlay/parameters/index").exists() {
        options.push("index=off".to_owned());
    }
    if in_user_namespace() {
        options.push("userxattr".to_owned());
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(kind: Kind, lower: &[&str], labels: &[(&str, &str)]) -> Mount {
        let lower: Vec<PathBuf> = lower.iter().map(PathBuf::from).collect();
        let labels = labels.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        let parts = Parts {
            kind,
            upper: Path::new("/r/9/fs"),
            work: Path::new("/r/9/work"),
            lower: &lower,
            labels: &labels,
        };
        let mut mounts = plan(&parts, &["index=off".to_owned()]);
        assert_eq!(mounts.len(), 1);
        mounts.remove(0)
    }

    #[test]
    fn mounts_follow_kind_and_number_of_parents() {
        type Case<'a> = (Kind, &'a [&'a str], (&'a str, &'a str), &'a [&'a str]);
        let overlay = ("overlay", "overlay");
        let cases: [Case<'_>; 6] = [
            (Kind::Active, &[], ("bind", "/r/9/fs"), &["rw", "rbind"]),
            (Kind::View, &[], ("bind", "/r/9/fs"), &["ro", "rbind"]),
            (
                Kind::Active,
                &["/r/1/fs"],
                overlay,
                &[
                    "workdir=/r/9/work",
                    "upperdir=/r/9/fs",
                    "lowerdir=/r/1/fs",
                    "index=off",
                ],
            ),
            (
                Kind::View,
                &["/r/1/fs"],
                ("bind", "/r/1/fs"),
                &["ro", "rbind"],
            ),
            (
                Kind::Active,
                &["/r/2/fs", "/r/1/fs"],
                overlay,
                &[
                    "workdir=/r/9/work",
                    "upperdir=/r/9/fs",
                    "lowerdir=/r/2/fs:/r/1/fs",
                    "index=off",
                ],
            ),
            (
                Kind::View,
                &["/r/2/fs", "/lazy"],
                overlay,
                &["lowerdir=/r/2/fs:/lazy", "index=off"],
            ),
        ];
        for (kind, lower, (mount, source), options) in cases {
            let planned = planned(kind, lower, &[]);
            assert_eq!((planned.kind, planned.source.as_str()), (mount, source));
            assert_eq!(planned.options, options, "{kind:?} {lower:?}");
        }
    }

    #[test]
    fn id_mappings_come_first_on_every_kind_of_mount() {
        let labels = [(UID_MAPPING, "0:1000:10"), (GID_MAPPING, "0:2000:10")];
        for lower in [&[][..], &["/a"], &["/b", "/a"]] {
            let options = planned(Kind::View, lower, &labels).options;
            assert_eq!(
                options[..2],
                ["uidmap=0:1000:10", "gidmap=0:2000:10"],
                "{lower:?}"
            );
        }
    }

    #[test]
    fn the_mapped_root_is_the_host_id_of_id_0() {
        let root = |uids: Option<&str>, gids: Option<&str>| {
            let pairs = [(UID_MAPPING, uids), (GID_MAPPING, gids)];
            let labels = pairs
                .into_iter()
                .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())))
                .collect();
            mapped_root(&labels)
        };
        assert_eq!(root(None, None).unwrap(), None);
        let both = root(Some("1:5:9,0:1000:1"), Some("0:2000:65536")).unwrap();
        assert_eq!(both, Some((1000, 2000)));
        for bad in ["", "0:1", "0:1:2:3", "a:1:2", "1:1:1", "0:1:0", "0:-1:2"] {
            let error = root(Some(bad), Some("0:1:1")).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{bad:?}");
        }
        assert!(root(Some("0:1:1"), None).is_err());
    }
}
