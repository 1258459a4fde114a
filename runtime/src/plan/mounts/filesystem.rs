//! New file systems: parameters for `fsconfig`, or one line for `mount(2)`.

use std::ffi::{CStr, CString};
use std::path::Path;

use oci_spec::runtime::Mount;

use super::super::options::MountOptions;
use super::super::{FieldError, c_string};
use super::bind::{BindPlan, MountIdmap, SourceSymlink, TopAttr, plan_idmap};
use super::label::takes_label;
use super::{MountContext, ProcTarget};
use crate::sys::MountAttr;

/// A file system to be made by `fsopen` … `fsmount`.
#[derive(Debug)]
pub(crate) struct FilesystemPlan {
    pub(crate) kind: CString,
    pub(crate) params: Vec<FsParam>,
    /// `MOUNT_ATTR_*`.
    pub(crate) attrs: u64,
    /// It becomes read-only when everything below it is in place.
    pub(crate) late_readonly: bool,
    /// A tmpfs without a mode of its own takes that of the directory it covers.
    pub(crate) inherit_mode: bool,
    /// It starts with what the directory that it covers holds.
    pub(crate) copy_up: bool,
    /// SELinux label of its root directory, where the file system takes none as an option.
    pub(crate) root_label: Option<CString>,
    /// Options too long for `fsconfig`: the older call makes it.
    pub(crate) old_call: Option<OldMount>,
    pub(crate) idmap: Option<MountIdmap>,
    /// The parent makes it, since the root of a user namespace could not map its ids.
    pub(crate) made_by_parent: bool,
    /// The host's tree that stands in when the kernel refuses the file system to a user namespace
    /// which does not own what it shows.
    pub(crate) instead: Option<BindPlan>,
}

/// A parameter of `fsconfig`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FsParam {
    pub(crate) key: CString,
    /// None for a flag.
    pub(crate) value: Option<CString>,
    /// The mount and the option, for errors.
    pub(crate) words: Vec<u8>,
}

/// Arguments of `mount(2)`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OldMount {
    pub(crate) source: CString,
    /// `MS_*`.
    pub(crate) flags: u32,
    pub(crate) data: CString,
}

/// Longest value that `fsconfig` takes.
const FSCONFIG_MAX: usize = 255;
/// `mount(2)` copies one page of options.
const OLD_DATA_MAX: usize = 4095;

/// Options of the cgroup hierarchy. Other words that come with its mount are version 1's.
const OF_THE_HIERARCHY: [&str; 6] = [
    "nsdelegate",
    "favordynmods",
    "memory_localevents",
    "memory_recursiveprot",
    "memory_hugetlb_accounting",
    "pids_localevents",
];

/// What a file system depends on besides its options.
pub(super) struct Around<'a> {
    pub(super) context: &'a MountContext<'a>,
    pub(super) target: &'a CStr,
    pub(super) in_proc: ProcTarget,
    /// The mount, for errors.
    pub(super) place: &'a str,
}

pub(super) fn plan_filesystem(
    kind: &str,
    mount: &Mount,
    options: &MountOptions,
    around: &Around<'_>,
) -> Result<FilesystemPlan, FieldError> {
    refuse_impossible(kind, options)?;
    let Around { context, place, .. } = *around;
    // Version 1's name in a configuration means "the cgroup hierarchy", which is version 2 here.
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let source = mount.source().as_deref().unwrap_or_else(|| Path::new(kind));
    let source = c_string("source", source.as_os_str().as_encoded_bytes())?;
    let data = words_for(kind, options, context);
    let too_long = data.iter().any(|word| value_of(word).len() > FSCONFIG_MAX);
    let (attrs, late_readonly) = attributes(kind, options, around.target);
    let idmap = plan_idmap(mount, options, context)?;
    let made_by_parent = idmap.is_some() && context.in_user_namespace();
    if made_by_parent && too_long {
        let reason = "idmap in a user namespace takes no option longer than 255 bytes";
        return Err(FieldError::new("options", reason));
    }
    let (params, old_call) = if too_long {
        (Vec::new(), Some(old_mount(source, options, attrs, &data)?))
    } else {
        (params(Some(&source), &options.flags, &data, place)?, None)
    };
    let root_label = context.label.filter(|_| kind == "mqueue");
    Ok(FilesystemPlan {
        kind: c_string("type", kind.as_bytes())?,
        params,
        attrs,
        late_readonly,
        inherit_mode: kind == "tmpfs" && !data.iter().any(|o| o.starts_with("mode=")),
        copy_up: options.copy_up,
        root_label: root_label
            .map(|label| c_string("linux.mountLabel", label.text.as_bytes()))
            .transpose()?,
        old_call,
        idmap,
        made_by_parent,
        instead: host_tree(kind, options, context, around.in_proc)?,
    })
}

fn refuse_impossible(kind: &str, options: &MountOptions) -> Result<(), FieldError> {
    if kind.is_empty() {
        return Err(FieldError::new("type", "is missing"));
    }
    if options.copy_up && kind != "tmpfs" {
        let reason = "tmpcopyup can be used only with tmpfs";
        return Err(FieldError::new("options", reason));
    }
    Ok(())
}

/// `MOUNT_ATTR_*` to begin with, and whether it becomes read-only later: where the mounts, nodes
/// and links below have to be made first.
fn attributes(kind: &str, options: &MountOptions, target: &CStr) -> (u64, bool) {
    let asked = options.top.set | options.deep.set;
    let is_filled = kind == "tmpfs" || target == c"dev";
    if is_filled && asked & libc::MOUNT_ATTR_RDONLY != 0 {
        (asked & !libc::MOUNT_ATTR_RDONLY, true)
    } else {
        (asked, false)
    }
}

/// Options for the file system itself, with the label that SELinux has it carry: not those that
/// label their files themselves.
fn words_for(kind: &str, options: &MountOptions, context: &MountContext<'_>) -> Vec<String> {
    if kind == "cgroup2" {
        // Nowhere but in the host's namespace do they count, and there they are the hierarchy's: a
        // mount without those that the host has takes them from the host.
        let counts = !context.namespaces.has(libc::CLONE_NEWCGROUP as u64);
        let is_one = |word: &&String| counts && OF_THE_HIERARCHY.contains(&word.as_str());
        return options.data.iter().filter(is_one).cloned().collect();
    }
    let mut words = options.data.clone();
    if let Some(label) = context
        .label
        .filter(|_| !matches!(kind, "proc" | "sysfs" | "mqueue"))
    {
        words.push(format!("{}={}", label.option, label.text));
    }
    words
}

fn value_of(word: &str) -> &str {
    word.split_once('=').map_or("", |(_, value)| value)
}

/// Parameters in their order: the source, flags, and the words that only the file system knows.
pub(super) fn params(
    source: Option<&CString>,
    flags: &[&str],
    data: &[String],
    place: &str,
) -> Result<Vec<FsParam>, FieldError> {
    let mut params = Vec::with_capacity(1 + flags.len() + data.len());
    params.extend(source.map(|source| FsParam {
        key: c"source".to_owned(),
        value: Some(source.clone()),
        words: place.as_bytes().to_vec(),
    }));
    for word in flags.iter().copied().chain(data.iter().map(String::as_str)) {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        };
        params.push(FsParam {
            key: c_string("options", key.as_bytes())?,
            value: value
                .map(|value| c_string("options", value.as_bytes()))
                .transpose()?,
            words: format!("{place}: option {word}").into_bytes(),
        });
    }
    Ok(params)
}

fn old_mount(
    source: CString,
    options: &MountOptions,
    attrs: u64,
    data: &[String],
) -> Result<OldMount, FieldError> {
    let flags = options
        .flags
        .iter()
        .fold(mount_flags(attrs), |flags, word| {
            flags | super_flag(word.as_bytes())
        });
    let data = data
        .iter()
        .map(|word| quoted(word))
        .collect::<Vec<_>>()
        .join(",");
    if data.len() > OLD_DATA_MAX {
        let reason = format!("are longer than {OLD_DATA_MAX} bytes");
        return Err(FieldError::new("options", &reason));
    }
    Ok(OldMount {
        source,
        // All of them are below 2^32.
        flags: u32::try_from(flags).unwrap_or_default(),
        data: c_string("options", data.as_bytes())?,
    })
}

/// A label with several categories has commas, which would end the option.
fn quoted(word: &str) -> String {
    match word.split_once('=') {
        Some((option, label)) if takes_label(option.as_bytes()) => format!("{option}=\"{label}\""),
        _ => word.to_owned(),
    }
}

/// `MS_*` that say the same as `MOUNT_ATTR_*`.
pub(crate) fn mount_flags(attrs: u64) -> libc::c_ulong {
    const ATTRS: [(u64, libc::c_ulong); 6] = [
        (libc::MOUNT_ATTR_RDONLY, libc::MS_RDONLY),
        (libc::MOUNT_ATTR_NOSUID, libc::MS_NOSUID),
        (libc::MOUNT_ATTR_NODEV, libc::MS_NODEV),
        (libc::MOUNT_ATTR_NOEXEC, libc::MS_NOEXEC),
        (libc::MOUNT_ATTR_NODIRATIME, libc::MS_NODIRATIME),
        (libc::MOUNT_ATTR_NOSYMFOLLOW, MS_NOSYMFOLLOW),
    ];
    const MS_NOSYMFOLLOW: libc::c_ulong = 256;
    let atime = match attrs & libc::MOUNT_ATTR__ATIME {
        libc::MOUNT_ATTR_NOATIME => libc::MS_NOATIME,
        libc::MOUNT_ATTR_STRICTATIME => libc::MS_STRICTATIME,
        _ => libc::MS_RELATIME,
    };
    ATTRS
        .iter()
        .filter(|(attr, _)| attrs & attr != 0)
        .fold(atime, |flags, (_, flag)| flags | flag)
}

/// `MS_*` of a file system's own flag; 0 for any other word.
pub(crate) fn super_flag(word: &[u8]) -> libc::c_ulong {
    match word {
        b"sync" => libc::MS_SYNCHRONOUS,
        b"dirsync" => libc::MS_DIRSYNC,
        b"lazytime" => libc::MS_LAZYTIME,
        b"mand" => libc::MS_MANDLOCK,
        _ => 0,
    }
}

/// Such file systems show what belongs to a namespace; a user namespace that does not own that
/// one may not mount them, and gets the host's view of the same.
fn host_tree(
    kind: &str,
    options: &MountOptions,
    context: &MountContext<'_>,
    in_proc: ProcTarget,
) -> Result<Option<BindPlan>, FieldError> {
    let (owner, source) = match kind {
        "cgroup2" if context.namespaces.has(libc::CLONE_NEWCGROUP as u64) => {
            (libc::CLONE_NEWCGROUP, context.cgroup_path)
        }
        "cgroup2" => (libc::CLONE_NEWCGROUP, context.cgroup_mount),
        "sysfs" => (libc::CLONE_NEWNET, Path::new("/sys")),
        "mqueue" => (libc::CLONE_NEWIPC, Path::new("/dev/mqueue")),
        "proc" => (libc::CLONE_NEWPID, Path::new("/proc")),
        _ => return Ok(None),
    };
    let owned = context.namespaces.create & owner as u64 != 0;
    if owned || !context.in_user_namespace() {
        return Ok(None);
    }
    // What lies below the host's own /sys stays out of reach of writes.
    let mut deep = options.deep;
    if kind == "sysfs" {
        deep.set |= libc::MOUNT_ATTR_RDONLY;
    }
    Ok(Some(BindPlan {
        source: c_string("source", source.as_os_str().as_encoded_bytes())?,
        inside: None,
        recursive: true,
        symlink: SourceSymlink::Follow,
        must_be_proc: in_proc == ProcTarget::Itself,
        top: TopAttr::new(
            MountAttr {
                set: options.top.set,
                ..MountAttr::default()
            },
            true,
        ),
        deep,
        idmap: None,
    }))
}
