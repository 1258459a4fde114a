//! `mounts` → steps of the mount API.

use std::ffi::{CStr, CString};
use std::path::{Component, Path};

use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::idmaps::{IdMaps, map_text};
use super::options::{self, MountOptions};
use super::{FieldError, c_string};
use crate::sys::MountAttr;

/// One mount, ready to be made.
#[derive(Debug)]
pub(crate) struct MountPlan {
    /// Where, relative to the root, without `.` and `..`.
    pub(crate) target: CString,
    /// The target must not be reached through a symlink (proc and sysfs: CVE-2019-16884).
    pub(crate) plain_target: bool,
    /// What.
    pub(crate) source: MountSource,
    /// Propagation of the new mount.
    pub(crate) propagation: Option<(u64, bool)>,
}

/// Where a mount's tree comes from.
#[derive(Debug)]
pub(crate) enum MountSource {
    /// A new instance of a file system, made by the child inside its namespaces.
    Filesystem(FilesystemPlan),
    /// A tree of the host, cloned by the parent before the child exists.
    Bind(BindPlan),
}

/// A file system to be made by `fsopen` … `fsmount`.
#[derive(Debug)]
pub(crate) struct FilesystemPlan {
    pub(crate) kind: CString,
    pub(crate) params: Vec<FsParam>,
    /// `MOUNT_ATTR_*`.
    pub(crate) attrs: u64,
    /// A tmpfs without a mode of its own takes that of the directory it covers.
    pub(crate) inherit_mode: bool,
}

/// A parameter of `fsconfig`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FsParam {
    Flag(CString),
    Text(CString, CString),
}

/// A tree to be cloned by `open_tree`.
#[derive(Debug)]
pub(crate) struct BindPlan {
    pub(crate) source: CString,
    pub(crate) recursive: bool,
    /// Changes of the top mount of the clone.
    pub(crate) top: MountAttr,
    /// Changes of the whole clone.
    pub(crate) deep: MountAttr,
    /// Id maps of the clone.
    pub(crate) idmap: Option<BindIdmap>,
}

/// An id-mapped bind mount.
#[derive(Debug)]
pub(crate) struct BindIdmap {
    pub(crate) recursive: bool,
    pub(crate) maps: IdMaps,
}

/// What mounts depend on besides their own entry.
pub(crate) struct MountContext<'a> {
    /// The cgroup hierarchy is bound, because a user namespace without a cgroup namespace may not
    /// mount it.
    pub(crate) bind_cgroup: bool,
    /// The container's cgroup as the host sees it.
    pub(crate) cgroup_path: &'a Path,
    /// `linux.mountLabel`.
    pub(crate) label: Option<&'a str>,
    /// Propagation of trees that name none.
    pub(crate) propagation: (u64, bool),
    /// Directory that relative bind sources start at.
    pub(crate) bundle: &'a Path,
    /// Maps of the container's user namespace, for `idmap` without maps of its own.
    pub(crate) id_maps: Option<IdMaps>,
}

/// Longest value that `fsconfig` takes.
const FSCONFIG_MAX: usize = 255;

/// Plans one entry of `mounts`.
pub(crate) fn plan_mount(
    mount: &Mount,
    context: &MountContext<'_>,
) -> Result<MountPlan, FieldError> {
    let options = options::parse(mount.options().as_deref().unwrap_or_default());
    if options.remount {
        return Err(FieldError::new(
            "options",
            "remount is not supported; give the final options",
        ));
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    let bind = options.bind || kind == "bind";
    let target = relative_target(mount.destination())?;
    let plain_target = !bind && matches!(kind, "proc" | "sysfs");
    refuse_over_proc(&target, bind, kind, mount.source().as_deref())?;
    let propagation = options.propagation;
    let source = if bind {
        MountSource::Bind(plan_bind(mount, &options, context)?)
    } else if matches!(kind, "cgroup" | "cgroup2") && context.bind_cgroup {
        MountSource::Bind(BindPlan {
            source: c_string("source", context.cgroup_path.as_os_str().as_encoded_bytes())?,
            recursive: true,
            top: options.top,
            deep: options.deep,
            idmap: None,
        })
    } else {
        MountSource::Filesystem(plan_filesystem(kind, mount, &options, context)?)
    };
    let propagation = match source {
        MountSource::Bind(_) => Some(propagation.unwrap_or(context.propagation)),
        MountSource::Filesystem(_) => propagation,
    };
    Ok(MountPlan {
        target,
        plain_target,
        source,
        propagation,
    })
}

fn plan_bind(
    mount: &Mount,
    options: &MountOptions,
    context: &MountContext<'_>,
) -> Result<BindPlan, FieldError> {
    let source = mount
        .source()
        .as_deref()
        .ok_or_else(|| FieldError::new("source", "a bind mount needs a source"))?;
    let source = context.bundle.join(source);
    let some = |maps: &Option<Vec<LinuxIdMapping>>| maps.clone().filter(|m| !m.is_empty());
    let own_maps = match (some(mount.uid_mappings()), some(mount.gid_mappings())) {
        (Some(uid), Some(gid)) => Some(IdMaps {
            uid: map_text(&uid),
            gid: map_text(&gid),
        }),
        (None, None) => context.id_maps.clone().filter(|_| options.idmap.is_some()),
        _ => {
            let reason = "uidMappings and gidMappings must be given together";
            return Err(FieldError::new("uidMappings", reason));
        }
    };
    if options.idmap.is_some() && own_maps.is_none() {
        return Err(FieldError::new(
            "options",
            "idmap needs mappings or a user namespace",
        ));
    }
    let recursive = options.idmap == Some(true);
    let idmap = own_maps.map(|maps| BindIdmap { recursive, maps });
    // "rw" leaves a mount as it is; only "rro" and its like were asked to change what they find.
    let mut top = options.top;
    top.clear &= !libc::MOUNT_ATTR_RDONLY;
    Ok(BindPlan {
        source: c_string("source", source.as_os_str().as_encoded_bytes())?,
        recursive: options.recursive,
        top,
        deep: options.deep,
        idmap,
    })
}

fn plan_filesystem(
    kind: &str,
    mount: &Mount,
    options: &MountOptions,
    context: &MountContext<'_>,
) -> Result<FilesystemPlan, FieldError> {
    if kind.is_empty() {
        return Err(FieldError::new("type", "is missing"));
    }
    if options.copy_up {
        return Err(FieldError::new(
            "options",
            "tmpcopyup is not supported by this version",
        ));
    }
    // Version 1's name in a configuration means "the cgroup hierarchy", which is version 2 here.
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let mut params = Vec::with_capacity(options.data.len() + options.flags.len() + 2);
    let source = mount.source().as_deref().unwrap_or_else(|| Path::new(kind));
    params.push(FsParam::Text(
        c"source".to_owned(),
        c_string("source", source.as_os_str().as_encoded_bytes())?,
    ));
    for flag in &options.flags {
        params.push(FsParam::Flag(c_string("options", flag.as_bytes())?));
    }
    if kind != "cgroup2" {
        for word in &options.data {
            params.push(fs_param(word)?);
        }
    }
    if let Some(label) = context
        .label
        .filter(|_| !matches!(kind, "proc" | "sysfs" | "cgroup2"))
    {
        params.push(FsParam::Text(
            c"context".to_owned(),
            c_string("mountLabel", label.as_bytes())?,
        ));
    }
    Ok(FilesystemPlan {
        kind: c_string("type", kind.as_bytes())?,
        params,
        attrs: options.top.set | options.deep.set,
        inherit_mode: kind == "tmpfs" && !options.data.iter().any(|o| o.starts_with("mode=")),
    })
}

fn fs_param(word: &str) -> Result<FsParam, FieldError> {
    if word.len() > FSCONFIG_MAX {
        return Err(FieldError::new(
            "options",
            &format!("{word:.40}… is longer than 255 bytes"),
        ));
    }
    Ok(match word.split_once('=') {
        Some((key, value)) => FsParam::Text(
            c_string("options", key.as_bytes())?,
            c_string("options", value.as_bytes())?,
        ),
        None => FsParam::Flag(c_string("options", word.as_bytes())?),
    })
}

/// `/a/./b/../c` → `a/c`: what is left can only name something below the root.
pub(crate) fn relative_target(path: &Path) -> Result<CString, FieldError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.as_encoded_bytes()),
            Component::ParentDir => drop(parts.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    c_string("destination", &parts.join(&b'/'))
}

/// A mount over `/proc` or into it could fake what the runtime writes to (CVE-2019-16884); only
/// single files that such tools as lxcfs provide are allowed.
fn refuse_over_proc(
    target: &CStr,
    bind: bool,
    kind: &str,
    source: Option<&Path>,
) -> Result<(), FieldError> {
    const ALLOWED: [&[u8]; 12] = [
        b"cpuinfo",
        b"diskstats",
        b"meminfo",
        b"stat",
        b"swaps",
        b"uptime",
        b"loadavg",
        b"slabinfo",
        b"net/dev",
        b"sys/kernel/ns_last_pid",
        b"sys/crypto/fips_enabled",
        b"sys/kernel/random/boot_id",
    ];
    let target = target.to_bytes();
    let fine = match target.strip_prefix(b"proc") {
        Some(b"") => kind == "proc" || bind && source == Some(Path::new("/proc")),
        Some([b'/', inside @ ..]) => ALLOWED.contains(&inside),
        _ => true,
    };
    if fine {
        return Ok(());
    }
    let target = String::from_utf8_lossy(target);
    let reason = format!("\"/{target}\" cannot be mounted because it is inside /proc");
    Err(FieldError::new("destination", &reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<MountPlan, FieldError> {
        let mount: Mount = serde_json::from_str(json).expect("well formed");
        let context = MountContext {
            bind_cgroup: false,
            cgroup_path: Path::new("/sys/fs/cgroup/c"),
            label: None,
            propagation: (libc::MS_SLAVE, true),
            bundle: Path::new("/b"),
            id_maps: None,
        };
        plan_mount(&mount, &context)
    }

    #[test]
    fn a_file_system_gets_its_source_parameters_and_attributes() {
        let plan = plan(
            r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs",
                "options":["nosuid","strictatime","mode=755","size=65536k"]}"#,
        )
        .expect("valid");
        assert_eq!(plan.target.as_c_str(), c"dev");
        let MountSource::Filesystem(fs) = plan.source else {
            panic!("not a file system")
        };
        assert_eq!(
            fs.attrs,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME
        );
        let texts = [
            (c"source", c"tmpfs"),
            (c"mode", c"755"),
            (c"size", c"65536k"),
        ];
        let texts: Vec<_> = texts
            .iter()
            .map(|(k, v)| FsParam::Text((*k).into(), (*v).into()))
            .collect();
        assert_eq!(fs.params, texts);
    }

    #[test]
    fn a_relative_bind_source_starts_at_the_bundle() {
        let plan = plan(r#"{"destination":"/d","source":"data","options":["rbind","ro"]}"#)
            .expect("valid");
        let MountSource::Bind(bind) = plan.source else {
            panic!("not a bind")
        };
        assert_eq!(bind.source.as_c_str(), c"/b/data");
        assert!(bind.recursive);
        assert_eq!(bind.top.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(plan.propagation, Some((libc::MS_SLAVE, true)));
    }

    #[test]
    fn targets_cannot_leave_the_root() {
        for (from, to) in [
            ("/../../etc", c"etc"),
            ("a//b/./c/..", c"a/b"),
            ("/", c""),
            ("..", c""),
        ] {
            assert_eq!(
                relative_target(Path::new(from)).expect("valid").as_c_str(),
                to
            );
        }
    }

    #[test]
    fn proc_is_not_covered() {
        for bad in [
            r#"{"destination":"/proc","type":"tmpfs"}"#,
            r#"{"destination":"/proc/sys","type":"tmpfs"}"#,
            r#"{"destination":"/x/../proc/self","source":"/a","options":["bind"]}"#,
        ] {
            assert_eq!(
                plan(bad).map_err(|e| e.field).err().as_deref(),
                Some("destination")
            );
        }
        for good in [
            r#"{"destination":"/proc","type":"proc"}"#,
            r#"{"destination":"/proc/meminfo","source":"/a","options":["bind"]}"#,
            r#"{"destination":"/procs","type":"tmpfs"}"#,
        ] {
            assert!(plan(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn entries_that_cannot_work_name_their_field() {
        for (bad, field) in [
            (r#"{"destination":"/a","options":["bind"]}"#, "source"),
            (r#"{"destination":"/a"}"#, "type"),
            (
                r#"{"destination":"/a","type":"tmpfs","options":["remount"]}"#,
                "options",
            ),
            (
                r#"{"destination":"/a\u0000b","type":"tmpfs"}"#,
                "destination",
            ),
        ] {
            assert_eq!(
                plan(bad).map_err(|e| e.field).err().as_deref(),
                Some(field),
                "{bad}"
            );
        }
    }
}
