//! How the container's root becomes that of its first process.

use oci_spec::runtime::Hooks;

use super::mounts::{MountPlan, MountSource};
use super::rootfs::RootfsPlan;
use crate::spec::Namespaces;

const NEWNS: u64 = libc::CLONE_NEWNS as u64;
const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;

/// How the container's root becomes that of its first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootChange {
    /// By entering a mount namespace that is made of it and nothing else, where the kernel has
    /// such; elsewhere by [`RootChange::Pivot`].
    Enter,
    /// By `pivot_root(2)`: nothing from outside stays in the mount namespace.
    Pivot,
    /// It is moved over `/`, on hosts whose own root cannot be pivoted away.
    Move,
    /// By `chroot(2)` alone: without a mount namespace of its own the mounts are the host's.
    Chroot,
}

impl RootChange {
    /// The best one that the configuration and the caller allow.
    pub(super) fn of(
        namespaces: &Namespaces,
        rootfs: &RootfsPlan,
        hooks: Option<&Hooks>,
        no_pivot: bool,
        enters_mounts: bool,
    ) -> Self {
        if !namespaces.has(NEWNS) {
            Self::Chroot
        } else if no_pivot {
            Self::Move
        } else if enters_mounts
            && namespaces.create & NEWNS != 0
            && !namespaces.has(NEWUSER)
            && !hooks.is_some_and(look_at_the_host)
            && rootfs.mounts.iter().all(needs_no_host)
        {
            Self::Enter
        } else {
            Self::Pivot
        }
    }
}

/// Hooks that run once all is mounted find the root at its path on the host, among the host's
/// mounts (runtime-spec, "POSIX-platform Hooks").
fn look_at_the_host(hooks: &Hooks) -> bool {
    // The deprecated kind is still what most users of hooks configure.
    #[allow(deprecated)]
    let kinds = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
    ];
    kinds.into_iter().flatten().any(|list| !list.is_empty())
}

/// File systems that look up no path of the host when they are made.
const OF_NO_PATH: [&[u8]; 8] = [
    b"bpf", b"cgroup", b"cgroup2", b"devpts", b"mqueue", b"proc", b"sysfs", b"tmpfs",
];

/// The mount can be made where no path leads to the host, below a root that stays what it is.
fn needs_no_host(mount: &MountPlan) -> bool {
    if mount.target.is_empty() {
        return false;
    }
    match &mount.source {
        MountSource::Filesystem(fs) => OF_NO_PATH.contains(&fs.kind.to_bytes()),
        // The parent has opened what is bound.
        MountSource::Bind(_) => true,
        MountSource::Remount(remount) => remount.reconfigure.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{LaunchPlan, PlanContext};
    use super::*;
    use crate::spec::check_spec;
    use crate::state::ContainerId;

    /// The change of root for a configuration with these namespaces, mounts and hooks.
    fn change(parts: [&str; 3], edit: impl FnOnce(&mut PlanContext<'_>)) -> RootChange {
        let [namespaces, mounts, hooks] = parts;
        let json = format!(
            r#"{{"ociVersion":"1.3.0","root":{{"path":"rootfs"}},
                "process":{{"cwd":"/","args":["x"],"user":{{"uid":0,"gid":0}}}},
                "mounts":[{mounts}],"hooks":{{{hooks}}},
                "linux":{{"namespaces":[{namespaces}],
                    "uidMappings":[{{"containerID":0,"hostID":9,"size":9}}],
                    "gidMappings":[{{"containerID":0,"hostID":9,"size":9}}]}}}}"#
        );
        let mut spec: oci_spec::runtime::Spec = serde_json::from_str(&json).expect("well formed");
        if !namespaces.contains("user") {
            let linux = spec.linux_mut().as_mut().expect("there");
            linux.set_uid_mappings(None).set_gid_mappings(None);
        }
        let namespaces = check_spec(Path::new("config.json"), &spec).expect("valid");
        let id = "c".parse::<ContainerId>().expect("valid");
        let mut context = PlanContext {
            id: &id,
            bundle: Path::new("/b"),
            cgroup_path: Path::new("/c"),
            cgroup_mount: Path::new("/sys/fs/cgroup"),
            no_pivot: false,
            no_new_keyring: false,
            in_user_namespace: false,
            enters_mounts: true,
        };
        edit(&mut context);
        LaunchPlan::new(&spec, namespaces, context)
            .expect("planned")
            .root_change
    }

    const MNT: &str = r#"{"type":"mount"}"#;
    const PROC: &str = r#"{"destination":"/proc","type":"proc","source":"proc"}"#;

    fn plain(parts: [&str; 3]) -> RootChange {
        change(parts, |_| {})
    }

    #[test]
    fn a_root_is_entered_where_nothing_needs_the_hosts_tree() {
        let bind = r#"{"destination":"/x","source":"/a","options":["rbind","ro"]}"#;
        let inside = r#""startContainer":[{"path":"/h"}],"poststop":[{"path":"/h"}]"#;
        assert_eq!(plain([MNT, PROC, ""]), RootChange::Enter);
        assert_eq!(
            plain([MNT, &format!("{PROC},{bind}"), inside]),
            RootChange::Enter
        );
    }

    #[test]
    fn a_root_is_pivoted_to_where_somebody_looks_at_the_host() {
        for kind in ["prestart", "createRuntime", "createContainer"] {
            let hook = format!(r#""{kind}":[{{"path":"/h"}}]"#);
            assert_eq!(plain([MNT, PROC, &hook]), RootChange::Pivot, "{kind}");
        }
        for mount in [
            r#"{"destination":"/x","type":"overlay","source":"overlay","options":["lowerdir=/a:/b"]}"#,
            r#"{"destination":"/x","type":"ext4","source":"/dev/sda1"}"#,
            r#"{"destination":"/","source":"/a","options":["bind"]}"#,
            r#"{"destination":"/x","type":"ext4","source":"/dev/sda1","options":["remount","ro"]}"#,
        ] {
            assert_eq!(plain([MNT, mount, ""]), RootChange::Pivot, "{mount}");
        }
    }

    #[test]
    fn namespaces_and_callers_privileges_decide_as_well() {
        let both = format!(r#"{MNT},{{"type":"user"}}"#);
        assert_eq!(plain([&both, "", ""]), RootChange::Pivot);
        let joined = r#"{"type":"mount","path":"/proc/1/ns/mnt"}"#;
        assert_eq!(plain([joined, "", ""]), RootChange::Pivot);
        assert_eq!(plain(["", "", ""]), RootChange::Chroot);
        let without = change([MNT, PROC, ""], |context| context.enters_mounts = false);
        assert_eq!(without, RootChange::Pivot);
        let moved = change([MNT, PROC, ""], |context| context.no_pivot = true);
        assert_eq!(moved, RootChange::Move);
    }
}
