//! Bind mounts: which tree of the host, and with which attributes.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::super::idmaps::{self, IdMaps};
use super::super::options::MountOptions;
use super::super::{FieldError, c_string};
use super::target::relative_target;
use super::{MountContext, MountPlan, MountSource};
use crate::sys::MountAttr;

/// A tree to be cloned by `open_tree`.
#[derive(Debug)]
pub(crate) struct BindPlan {
    pub(crate) source: CString,
    /// The source relative to the root, where an earlier mount brings it: only inside is it there.
    pub(crate) inside: Option<CString>,
    pub(crate) recursive: bool,
    /// A source that is a symlink.
    pub(crate) symlink: SourceSymlink,
    /// The tree has to be a whole proc file system, for it covers `/proc`.
    pub(crate) must_be_proc: bool,
    /// Changes of the top mount of the clone.
    pub(crate) top: TopAttr,
    /// Changes of the whole clone.
    pub(crate) deep: MountAttr,
    /// Id maps of the clone.
    pub(crate) idmap: Option<MountIdmap>,
}

/// What to do with a source that is a symlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceSymlink {
    /// Bind what it leads to.
    Follow,
    /// Bind the link itself (`src-nofollow`).
    Bind,
    /// Make the same link at the target (`copy-symlink`).
    Copy,
}

/// Id maps that a mount is seen through.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MountIdmap {
    pub(crate) recursive: bool,
    pub(crate) from: IdmapSource,
}

/// Where the user namespace of an id-mapped mount comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IdmapSource {
    /// It is made for these maps.
    Maps(IdMaps),
    /// It is the one that the container joins.
    Namespace(CString),
}

/// Attributes that the kernel locks on a mount that comes from another user namespace.
const LOCKABLE: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC;
/// Attributes that a bind mount with options has only if they were asked for.
const EXACT: u64 = LOCKABLE | libc::MOUNT_ATTR_NOSYMFOLLOW;
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// Changes of the top mount of a bind, as `mount --bind -o …` and a remount would make them: with
/// any option at all, the mount has just the attributes of its own options and none of the
/// source's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopAttr {
    /// What the options say, word by word.
    asked: MountAttr,
    /// The mount goes to a user namespace, which must not take from it what the host's has.
    pub(crate) locked: bool,
}

impl TopAttr {
    pub(super) fn new(asked: MountAttr, locked: bool) -> Self {
        Self { asked, locked }
    }

    /// What to change when nothing is locked.
    pub(crate) fn exact(&self) -> MountAttr {
        let mut attr = self.asked;
        if !attr.is_noop() {
            attr.clear |= EXACT & !attr.set;
        }
        attr
    }

    /// What to change when attributes `source` of the source's mount are locked; nothing when the
    /// options contradict them.
    pub(crate) fn beside_locked(&self, source: u64) -> Option<MountAttr> {
        let asked = self.asked;
        let wants_atime = asked.clear & ATIME != 0;
        let contradicts = asked.clear & source & LOCKABLE != 0
            || wants_atime && asked.set & ATIME != source & ATIME;
        let mut attr = self.exact();
        attr.clear &= !(source & LOCKABLE);
        (!contradicts).then_some(attr)
    }
}

pub(super) fn plan_bind(
    mount: &Mount,
    options: &MountOptions,
    context: &MountContext<'_>,
) -> Result<BindPlan, FieldError> {
    let source = mount
        .source()
        .as_deref()
        .ok_or_else(|| FieldError::new("source", "a bind mount needs a source"))?;
    let source = context.bundle.join(source);
    if let Some(word) = options.data.first() {
        let reason = format!(
            "bind mounts cannot have any filesystem-specific options applied, such as {word}"
        );
        return Err(FieldError::new("options", &reason));
    }
    let symlink = match (options.copy_symlink, options.src_nofollow) {
        (true, true) => return Err(exclusive()),
        (true, false) if options.dest_nofollow => return Err(exclusive()),
        (true, false) => SourceSymlink::Copy,
        (false, true) => SourceSymlink::Bind,
        (false, false) => SourceSymlink::Follow,
    };
    Ok(BindPlan {
        source: c_string("source", source.as_os_str().as_encoded_bytes())?,
        inside: None,
        recursive: options.recursive,
        symlink,
        must_be_proc: false,
        top: TopAttr::new(options.top, context.in_user_namespace()),
        deep: options.deep,
        idmap: plan_idmap(mount, options, context)?,
    })
}

/// Finds the sources below `root` that an earlier mount covers: by their path on the host, what is
/// under that mount would be seen.
pub(in crate::plan) fn find_sources_inside(mounts: &mut [MountPlan], root: &Path) {
    for index in 1..mounts.len() {
        let (earlier, rest) = mounts.split_at_mut(index);
        if let MountSource::Bind(bind) = &mut rest[0].source {
            bind.inside = below(bind, root)
                .filter(|path| earlier.iter().any(|mount| covers(&mount.target, path)));
        }
    }
}

/// The source relative to `root`, if it can be told without looking.
fn below(bind: &BindPlan, root: &Path) -> Option<CString> {
    let source = Path::new(OsStr::from_bytes(bind.source.to_bytes()));
    let path = source.strip_prefix(root).ok()?;
    let is_plain = !path.components().any(|part| part == Component::ParentDir);
    if is_plain && bind.symlink != SourceSymlink::Copy {
        relative_target(path).ok()
    } else {
        None
    }
}

fn covers(target: &CStr, path: &CStr) -> bool {
    let rest = path.to_bytes().strip_prefix(target.to_bytes());
    !target.is_empty() && rest.is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
}

fn exclusive() -> FieldError {
    let reason = "copy-symlink excludes src-nofollow and dest-nofollow";
    FieldError::new("options", reason)
}

/// Id maps of a mount: its own, those of its option, or those of the container.
pub(super) fn plan_idmap(
    mount: &Mount,
    options: &MountOptions,
    context: &MountContext<'_>,
) -> Result<Option<MountIdmap>, FieldError> {
    let list = |maps: &Option<Vec<LinuxIdMapping>>| maps.clone().unwrap_or_default();
    let (uid, gid) = (list(mount.uid_mappings()), list(mount.gid_mappings()));
    let from = match (&options.idmap, uid.is_empty(), gid.is_empty()) {
        (_, false, false) => IdmapSource::Maps(IdMaps {
            uid: idmaps::checked_text("uidMappings", &idmaps::extents(&uid))?,
            gid: idmaps::checked_text("gidMappings", &idmaps::extents(&gid))?,
        }),
        (_, true, false) => return Err(both_needed("uidMappings")),
        (_, false, true) => return Err(both_needed("gidMappings")),
        (None, true, true) => return Ok(None),
        (Some(option), true, true) => match (&option.maps, context.joined_user) {
            (Some(text), _) => {
                let uid = idmaps::extents(context.uid_mappings);
                let gid = idmaps::extents(context.gid_mappings);
                IdmapSource::Maps(idmaps::parse_option(text, (&uid, &gid))?)
            }
            (None, Some(path)) => IdmapSource::Namespace(c_string(
                "linux.namespaces",
                path.as_os_str().as_encoded_bytes(),
            )?),
            (None, None) if context.uid_mappings.is_empty() => {
                let reason = "idmap needs mappings or a user namespace";
                return Err(FieldError::new("options", reason));
            }
            (None, None) => IdmapSource::Maps(IdMaps {
                uid: idmaps::map_text(context.uid_mappings),
                gid: idmaps::map_text(context.gid_mappings),
            }),
        },
    };
    let recursive = options.idmap.as_ref().is_some_and(|idmap| idmap.recursive);
    Ok(Some(MountIdmap { recursive, from }))
}

fn both_needed(field: &str) -> FieldError {
    FieldError::new(
        field,
        "id-mapped mounts must have both uid and gid mappings specified",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    const NODEV: u64 = libc::MOUNT_ATTR_NODEV;

    fn top(words: &[&str]) -> TopAttr {
        let words: Vec<_> = words.iter().map(|w| (*w).to_owned()).collect();
        TopAttr::new(super::super::super::options::parse(&words).top, true)
    }

    #[test]
    fn a_bind_with_options_has_no_others() {
        assert!(top(&["rbind"]).exact().is_noop());
        let exact = top(&["bind", "nodev"]).exact();
        assert_eq!((exact.set, exact.clear), (NODEV, EXACT & !NODEV));
        assert_eq!(top(&["bind", "rw"]).exact().clear, EXACT);
    }

    #[test]
    fn a_target_covers_itself_and_what_is_below() {
        for (target, path, covered) in [
            (c"a/b", c"a/b", true),
            (c"a/b", c"a/b/c", true),
            (c"a/b", c"a/bc", false),
            (c"a/b", c"a", false),
            (c"", c"a", false),
        ] {
            assert_eq!(covers(target, path), covered, "{target:?} {path:?}");
        }
    }

    #[test]
    fn what_is_locked_stays_or_is_refused() {
        let kept = top(&["nodev"])
            .beside_locked(RDONLY | NOSUID)
            .expect("fine");
        assert_eq!(kept.set, NODEV);
        assert_eq!(kept.clear & (RDONLY | NOSUID), 0);
        for (words, source) in [
            (["rw"], RDONLY),
            (["suid"], NOSUID),
            (["relatime"], libc::MOUNT_ATTR_NOATIME),
        ] {
            assert_eq!(top(&words).beside_locked(source), None, "{words:?}");
        }
        assert!(top(&["relatime"]).beside_locked(NOSUID).is_some());
    }
}
