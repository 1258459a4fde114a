//! `mounts` → steps of the mount API.

mod bind;
mod filesystem;
mod label;
mod target;

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, Mount};

pub(super) use bind::find_sources_inside;
pub(crate) use bind::{BindPlan, IdmapSource, MountIdmap, SourceSymlink, TopAttr};
pub(crate) use filesystem::{FilesystemPlan, FsParam, OldMount, mount_flags, super_flag};
pub(crate) use label::{MountLabel, takes_label};
pub(crate) use target::{ProcTarget, relative_target};

use super::FieldError;
use super::options::{self, MountOptions};
use crate::spec::Namespaces;
use crate::sys::MountAttr;
use filesystem::Around;

/// One mount, ready to be made.
#[derive(Debug)]
pub(crate) struct MountPlan {
    /// Where, relative to the root, without `.` and `..`.
    pub(crate) target: CString,
    pub(crate) reach: Reach,
    pub(crate) in_proc: ProcTarget,
    /// `"tmpfs" to rootfs at "/tmp"`, for errors.
    pub(crate) place: Vec<u8>,
    /// What.
    pub(crate) source: MountSource,
    /// Changes of propagation, in their order.
    pub(crate) propagation: Vec<(u64, bool)>,
}

/// How the target is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Symlinks are followed inside the root; what is missing is made.
    Follow,
    /// Not through any symlink (proc and sysfs: CVE-2019-16884); what is missing is made.
    Plain,
    /// It exists; should it be a symlink, it is what is mounted over (`dest-nofollow`).
    Existing,
}

/// Where a mount's tree comes from.
#[derive(Debug)]
pub(crate) enum MountSource {
    /// A new instance of a file system, made by the child inside its namespaces.
    Filesystem(FilesystemPlan),
    /// A tree of the host, cloned by the parent before the child exists.
    Bind(BindPlan),
    /// What is mounted there already gets other options.
    Remount(RemountPlan),
}

/// Other options for an existing mount.
#[derive(Debug)]
pub(crate) struct RemountPlan {
    /// Changes of the mount.
    pub(crate) attr: MountAttr,
    /// Parameters of its file system; none at all when only the mount is to change.
    pub(crate) reconfigure: Option<Vec<FsParam>>,
}

/// What mounts depend on besides their own entry.
pub(crate) struct MountContext<'a> {
    pub(crate) namespaces: &'a Namespaces,
    /// The container's cgroup as the host sees it.
    pub(crate) cgroup_path: &'a Path,
    /// Where the hierarchy of cgroups is mounted.
    pub(crate) cgroup_mount: &'a Path,
    /// `linux.mountLabel`.
    pub(crate) label: Option<MountLabel<'a>>,
    /// `linux.rootfsPropagation`.
    pub(crate) propagation: (u64, bool),
    /// Directory that relative bind sources start at.
    pub(crate) bundle: &'a Path,
    /// Maps of the container's user namespace, for an idmap without maps of its own.
    pub(crate) uid_mappings: &'a [LinuxIdMapping],
    pub(crate) gid_mappings: &'a [LinuxIdMapping],
    /// The user namespace that the container joins.
    pub(crate) joined_user: Option<&'a Path>,
}

impl MountContext<'_> {
    fn in_user_namespace(&self) -> bool {
        self.namespaces.has(libc::CLONE_NEWUSER as u64)
    }
}

/// Plans one entry of `mounts`.
pub(crate) fn plan_mount(
    mount: &Mount,
    context: &MountContext<'_>,
) -> Result<MountPlan, FieldError> {
    let options = options::parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or_default();
    let bind = options.bind || kind == "bind";
    let target = relative_target(mount.destination())?;
    let in_proc = target::proc_target(&target, bind, kind)?;
    let named = mount.source().as_deref().unwrap_or_else(|| Path::new(kind));
    let place = format!(
        "\"{}\" to rootfs at \"{}\"",
        named.display(),
        mount.destination().display()
    );
    let source = if options.remount {
        MountSource::Remount(plan_remount(bind, &options, &place)?)
    } else if bind {
        let mut plan = bind::plan_bind(mount, &options, context)?;
        plan.must_be_proc = in_proc == ProcTarget::Itself;
        MountSource::Bind(plan)
    } else {
        let around = Around {
            context,
            target: &target,
            in_proc,
            place: &place,
        };
        MountSource::Filesystem(filesystem::plan_filesystem(kind, mount, &options, &around)?)
    };
    Ok(MountPlan {
        target,
        reach: if options.dest_nofollow || options.remount {
            Reach::Existing
        } else if !bind && matches!(kind, "proc" | "sysfs") {
            Reach::Plain
        } else {
            Reach::Follow
        },
        in_proc,
        place: place.into_bytes(),
        propagation: plan_propagation(&source, options.propagation, context.propagation),
        source,
    })
}

/// A tree of the host keeps its own propagation unless the root's is for whole trees.
fn plan_propagation(
    source: &MountSource,
    own: Vec<(u64, bool)>,
    root: (u64, bool),
) -> Vec<(u64, bool)> {
    let decisive = [(libc::MS_PRIVATE, true), (libc::MS_UNBINDABLE, true)];
    let inherits = matches!(source, MountSource::Bind(_)) && root.1;
    if !inherits || own.first().is_some_and(|first| decisive.contains(first)) {
        return own;
    }
    let mut changes = vec![root];
    changes.extend(own);
    changes
}

/// As `mount -o remount` and, for the mount alone, `mount -o remount,bind`.
fn plan_remount(
    bind: bool,
    options: &MountOptions,
    place: &str,
) -> Result<RemountPlan, FieldError> {
    let mut attr = TopAttr::new(options.top, false).exact();
    attr.set |= options.deep.set;
    attr.clear = (attr.clear | options.deep.clear) & !attr.set;
    let reconfigure = if bind {
        None
    } else {
        let readonly = if attr.set & libc::MOUNT_ATTR_RDONLY != 0 {
            "ro"
        } else {
            "rw"
        };
        let mut flags = options.flags.clone();
        flags.push(readonly);
        Some(filesystem::params(None, &flags, &options.data, place)?)
    };
    Ok(RemountPlan { attr, reconfigure })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<MountPlan, FieldError> {
        let mount: Mount = serde_json::from_str(json).expect("well formed");
        plan_mount(&mount, &context(&Namespaces::default()))
    }

    fn context(namespaces: &Namespaces) -> MountContext<'_> {
        MountContext {
            namespaces,
            cgroup_path: Path::new("/sys/fs/cgroup/c"),
            cgroup_mount: Path::new("/sys/fs/cgroup"),
            label: None,
            propagation: (libc::MS_SLAVE, true),
            bundle: Path::new("/b"),
            uid_mappings: &[],
            gid_mappings: &[],
            joined_user: None,
        }
    }

    fn filesystem(json: &str) -> FilesystemPlan {
        match plan(json).expect("valid").source {
            MountSource::Filesystem(plan) => plan,
            other => panic!("not a file system: {other:?}"),
        }
    }

    #[test]
    fn the_hierarchy_keeps_its_options_where_the_host_has_it_and_knows_no_others() {
        let json = r#"{"destination":"/c","type":"cgroup","source":"cgroup",
            "options":["nosuid","nsdelegate","memory_recursiveprot","xattr","name=systemd"]}"#;
        let mount: Mount = serde_json::from_str(json).expect("well formed");
        for (create, expected) in [
            (0, &["source", "nsdelegate", "memory_recursiveprot"][..]),
            (libc::CLONE_NEWCGROUP as u64, &["source"]),
        ] {
            let namespaces = Namespaces {
                create,
                ..Namespaces::default()
            };
            let plan = plan_mount(&mount, &context(&namespaces)).expect("valid");
            let MountSource::Filesystem(fs) = plan.source else {
                panic!("not a file system")
            };
            let keys: Vec<_> = fs
                .params
                .iter()
                .map(|it| it.key.to_str().unwrap())
                .collect();
            assert_eq!(keys, expected);
        }
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
        let params: Vec<_> = fs
            .params
            .iter()
            .map(|p| (p.key.to_str(), p.value.as_ref().map(|v| v.to_str())))
            .collect();
        assert_eq!(
            params,
            [
                (Ok("source"), Some(Ok("tmpfs"))),
                (Ok("mode"), Some(Ok("755"))),
                (Ok("size"), Some(Ok("65536k"))),
            ]
        );
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
        assert_eq!(bind.top.exact().set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(plan.propagation, [(libc::MS_SLAVE, true)]);
    }

    #[test]
    fn what_has_mounts_below_becomes_read_only_last() {
        let fs = filesystem(r#"{"destination":"/x","type":"tmpfs","options":["ro","nosuid"]}"#);
        assert!(fs.late_readonly && fs.attrs == libc::MOUNT_ATTR_NOSUID);
        let fs = filesystem(r#"{"destination":"/sys","type":"sysfs","options":["ro"]}"#);
        assert!(!fs.late_readonly && fs.attrs == libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn long_options_take_the_older_call() {
        let long = format!("lowerdir=/{}", "l".repeat(300));
        let fs = filesystem(&format!(
            r#"{{"destination":"/o","type":"overlay","options":["{long}","ro","noatime"]}}"#
        ));
        assert!(fs.params.is_empty());
        let old = fs.old_call.expect("the older call");
        assert_eq!(old.data.to_str(), Ok(long.as_str()));
        let flags = u64::from(old.flags);
        assert_eq!(flags, libc::MS_RDONLY | libc::MS_NOATIME);
    }

    #[test]
    fn labels_go_where_the_file_system_takes_them() {
        let labelled = |kind: &str| {
            let namespaces = Namespaces::default();
            let mut context = context(&namespaces);
            context.label = Some(MountLabel {
                text: "system_u:object_r:container_file_t:s0:c1,c2",
                option: "context",
            });
            let json = format!(r#"{{"destination":"/x","type":"{kind}"}}"#);
            let mount = serde_json::from_str(&json).expect("well formed");
            match plan_mount(&mount, &context).expect("valid").source {
                MountSource::Filesystem(fs) => {
                    let option = fs.params.iter().any(|p| p.key.as_c_str() == c"context");
                    (option, fs.root_label.is_some())
                }
                other => panic!("not a file system: {other:?}"),
            }
        };
        assert_eq!(labelled("tmpfs"), (true, false));
        assert_eq!(labelled("devpts"), (true, false));
        assert_eq!(labelled("mqueue"), (false, true));
        assert_eq!(labelled("sysfs"), (false, false));
        assert_eq!(labelled("cgroup"), (false, false));
    }

    #[test]
    fn propagation_follows_the_root_unless_the_mount_decides() {
        let bind = |words: &str| {
            let json = format!(r#"{{"destination":"/x","source":"/a","options":[{words}]}}"#);
            plan(&json).expect("valid").propagation
        };
        let slave = (libc::MS_SLAVE, true);
        assert_eq!(bind(r#""rbind""#), [slave]);
        assert_eq!(bind(r#""rbind","rprivate""#), [(libc::MS_PRIVATE, true)]);
        assert_eq!(
            bind(r#""rbind","shared""#),
            [slave, (libc::MS_SHARED, false)]
        );
    }

    #[test]
    fn a_user_namespace_gets_the_hosts_view_of_what_it_does_not_own() {
        let instead = |kind: &str, target: &str, create: i32| {
            let create = (libc::CLONE_NEWUSER | create) as u64;
            let namespaces = Namespaces {
                create,
                join: Vec::new(),
            };
            let json = format!(r#"{{"destination":"{target}","type":"{kind}"}}"#);
            let mount = serde_json::from_str(&json).expect("well formed");
            match plan_mount(&mount, &context(&namespaces))
                .expect("valid")
                .source
            {
                MountSource::Filesystem(fs) => fs.instead.map(|bind| bind.source),
                other => panic!("not a file system: {other:?}"),
            }
        };
        let none = 0;
        assert_eq!(instead("sysfs", "/sys", none).as_deref(), Some(c"/sys"));
        assert_eq!(instead("sysfs", "/sys", libc::CLONE_NEWNET), None);
        assert_eq!(instead("proc", "/proc", none).as_deref(), Some(c"/proc"));
        assert_eq!(
            instead("cgroup", "/c", none).as_deref(),
            Some(c"/sys/fs/cgroup")
        );
        assert_eq!(instead("cgroup", "/c", libc::CLONE_NEWCGROUP), None);
        assert_eq!(instead("tmpfs", "/t", none), None);
    }

    #[test]
    fn a_remount_changes_the_file_system_only_without_bind() {
        let remount = |words: &str| {
            let json =
                format!(r#"{{"destination":"/x","type":"tmpfs","options":["remount",{words}]}}"#);
            match plan(&json).expect("valid").source {
                MountSource::Remount(plan) => plan,
                other => panic!("not a remount: {other:?}"),
            }
        };
        let both = remount(r#""ro","size=1m""#);
        let params = both.reconfigure.expect("parameters");
        let keys: Vec<_> = params.iter().map(|p| p.key.to_str()).collect();
        assert_eq!(keys, [Ok("ro"), Ok("size")]);
        assert_eq!(both.attr.set, libc::MOUNT_ATTR_RDONLY);
        assert!(remount(r#""bind","nosuid""#).reconfigure.is_none());
    }

    #[test]
    fn idmaps_come_from_the_mount_the_option_or_the_container() {
        let idmap = |json: &str, context: &MountContext<'_>| {
            let mount = serde_json::from_str(json).expect("well formed");
            plan_mount(&mount, context).map(|plan| match plan.source {
                MountSource::Bind(bind) => bind.idmap,
                MountSource::Filesystem(fs) => fs.idmap,
                MountSource::Remount(_) => None,
            })
        };
        let namespaces = Namespaces::default();
        let mut context = context(&namespaces);
        let own = r#"{"destination":"/x","type":"tmpfs","options":["ridmap"],
            "uidMappings":[{"containerID":0,"hostID":1,"size":2}],
            "gidMappings":[{"containerID":0,"hostID":3,"size":4}]}"#;
        let maps = IdmapSource::Maps(super::super::IdMaps {
            uid: "0 1 2\n".to_owned(),
            gid: "0 3 4\n".to_owned(),
        });
        let expected = MountIdmap {
            recursive: true,
            from: maps,
        };
        assert_eq!(idmap(own, &context), Ok(Some(expected)));
        let bare = r#"{"destination":"/x","source":"/a","options":["bind","idmap"]}"#;
        assert_eq!(
            idmap(bare, &context).map_err(|e| e.field),
            Err("options".to_owned())
        );
        context.joined_user = Some(Path::new("/ns/user"));
        let joined = IdmapSource::Namespace(c"/ns/user".to_owned());
        assert_eq!(
            idmap(bare, &context)
                .expect("valid")
                .map(|idmap| idmap.from),
            Some(joined)
        );
        let half = r#"{"destination":"/x","source":"/a","options":["bind"],
            "uidMappings":[{"containerID":0,"hostID":1,"size":2}]}"#;
        assert_eq!(
            idmap(half, &context).map_err(|e| e.field),
            Err("gidMappings".to_owned())
        );
    }

    #[test]
    fn entries_that_cannot_work_name_their_field() {
        for (bad, field) in [
            (r#"{"destination":"/a","options":["bind"]}"#, "source"),
            (r#"{"destination":"/a"}"#, "type"),
            (
                r#"{"destination":"/a","type":"overlay","options":["tmpcopyup"]}"#,
                "options",
            ),
            (
                r#"{"destination":"/a","source":"/b","options":["bind","copy-symlink","src-nofollow"]}"#,
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
