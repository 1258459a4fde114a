//! The mounts that CRIU would make: file systems without anything of the host's in them, and what
//! the configuration binds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use xebec_proto::criu_images::MountEntry;

use super::check::leads_up;
use crate::error::{Error, Result};

/// CRIU's numbers of the file systems that a container may mount.
const PROC: u32 = 1;
const SYSFS: u32 = 2;
const CGROUP: u32 = 12;
const CGROUP2: u32 = 23;
const OWN: [(u32, &str); 7] = [
    (PROC, "proc"),
    (SYSFS, "sysfs"),
    (5, "tmpfs"),
    (6, "devpts"),
    (14, "mqueue"),
    (CGROUP, "cgroup"),
    (CGROUP2, "cgroup2"),
];
/// `MS_RDONLY`.
const READ_ONLY: u32 = 1;
/// How masked files are called.
const MASKED: &str = "/dev/null";
/// Device nodes that are bound where nodes cannot be made.
const DEVICES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];
/// What is below proc and writable for root, whatever its capabilities: the whole machine's.
const SETTINGS: [&str; 2] = ["sys", "sysrq-trigger"];

/// Checks the mounts of an image, which `file` names in errors.
pub(super) fn check_mounts(
    file: &str,
    mounts: &[MountEntry],
    destinations: &BTreeSet<String>,
) -> Result<()> {
    let mut above = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for mount in mounts {
        // What covers another mount would hide what has been found below it.
        let place = (mount.parent_mnt_id, mount.mountpoint.as_str());
        if !ids.insert(mount.mnt_id) || above.insert(place, mount).is_some() {
            return Err(Error::refused(file, &mount.mountpoint, "it is there twice"));
        }
    }
    if mounts
        .iter()
        .filter(|mount| mount.mountpoint == "/")
        .count()
        > 1
    {
        return Err(Error::refused(file, "/", "it is there twice"));
    }
    for mount in mounts {
        let path = mount.mountpoint.as_str();
        let refuse = |reason: String| Err(Error::refused(file, path, reason));
        if !path.starts_with('/') || leads_up(path) || leads_up(&mount.root) {
            return refuse("it leads out of the container".to_owned());
        }
        if path == "/" {
            continue;
        }
        if mount.with_plugin() {
            return refuse("it is a plugin's".to_owned());
        }
        let key = mount.ext_key.as_deref().filter(|key| !key.is_empty());
        if let Some(key) = key {
            let known = key == MASKED || destinations.contains(key) || DEVICES.contains(&key);
            if !known {
                return refuse(format!(
                    "{key:?} of the host is in no mount of the configuration"
                ));
            }
            continue;
        }
        if mount.ext_mount() {
            return refuse("it is the host's, and has no name".to_owned());
        }
        let own = OWN.iter().find(|(number, _)| *number == mount.fstype);
        let Some((number, name)) = own else {
            return refuse(format!("file system {} of the host's", mount.fstype));
        };
        if mount.fsname.as_deref().is_some_and(|other| other != *name) {
            return refuse(format!("file system {:?}", mount.fsname()));
        }
        check_settings(*number, mount, &above).or_else(refuse)?;
    }
    Ok(())
}

/// Settings of the kernel are for reading.
fn check_settings(
    kind: u32,
    mount: &MountEntry,
    above: &BTreeMap<(u32, &str), &MountEntry>,
) -> std::result::Result<(), String> {
    let is_read_only = |mount: &MountEntry| mount.flags & READ_ONLY != 0;
    if is_read_only(mount) {
        return Ok(());
    }
    match kind {
        SYSFS => Err("sysfs is writable".to_owned()),
        CGROUP | CGROUP2 => Err("the cgroup file system is writable".to_owned()),
        PROC if mount.root == "/" => {
            let path = mount.mountpoint.trim_end_matches('/');
            for name in SETTINGS {
                let inner = format!("{path}/{name}");
                // Not every kernel has a trigger of its own.
                let is_optional = name != "sys" && !Path::new("/proc").join(name).exists();
                let cover = above.get(&(mount.mnt_id, inner.as_str()));
                if !is_optional && !cover.is_some_and(|cover| is_read_only(cover)) {
                    return Err(format!("{inner} is writable"));
                }
            }
            Ok(())
        }
        PROC => Err(format!("proc{} is writable", mount.root)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fstype: u32, path: &str, flags: u32) -> MountEntry {
        MountEntry {
            fstype,
            flags,
            root: "/".to_owned(),
            mountpoint: path.to_owned(),
            ..MountEntry::default()
        }
    }

    fn ordinary() -> Vec<MountEntry> {
        let mut settings = mount(PROC, "/proc/sys", READ_ONLY);
        settings.root = "/sys".to_owned();
        let mut trigger = mount(PROC, "/proc/sysrq-trigger", READ_ONLY);
        trigger.root = "/sysrq-trigger".to_owned();
        let mut data = mount(0, "/data", 0);
        data.ext_key = Some("/data".to_owned());
        let mut masked = mount(5, "/proc/kcore", 0);
        masked.ext_key = Some(MASKED.to_owned());
        let mut all = vec![
            mount(17, "/", 0),
            mount(PROC, "/proc", 0),
            settings,
            trigger,
            mount(SYSFS, "/sys", READ_ONLY),
            mount(5, "/dev", 0),
            data,
            masked,
        ];
        for (id, mount) in (10..).zip(&mut all) {
            mount.mnt_id = id;
            mount.parent_mnt_id = if mount.mountpoint.starts_with("/proc/") {
                11
            } else {
                10
            };
        }
        all[0].parent_mnt_id = 9;
        all
    }

    fn check(mounts: &[MountEntry]) -> Result<()> {
        check_mounts("m", mounts, &BTreeSet::from(["/data".to_owned()]))
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Vec<MountEntry>), words: &str) {
        let mut mounts = ordinary();
        change(&mut mounts);
        let error = check(&mounts).expect_err("refused").to_string();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn an_ordinary_containers_mounts_are_accepted() {
        check(&ordinary()).expect("accepted");
    }

    #[test]
    fn mounts_of_the_host_are_refused_by_their_place() {
        refused(
            |all| all[6].ext_key = Some("/".to_owned()),
            "/data: \"/\" of the host",
        );
        refused(
            |all| all[5].root = "/../..".to_owned(),
            "/dev: it leads out",
        );
        refused(
            |all| all[5].mountpoint = "/dev/../../x".to_owned(),
            "leads out",
        );
        refused(
            |all| all.push(mount(16, "/disk", 0)),
            "/disk: file system 16",
        );
        refused(
            |all| all.push(mount(17, "/layers", 0)),
            "/layers: file system 17",
        );
        refused(
            |all| all.push(mount(3, "/devices", 0)),
            "/devices: file system 3",
        );
        refused(|all| all[5].fsname = Some("ext4".to_owned()), "ext4");
        refused(|all| all[5].ext_mount = Some(true), "has no name");
    }

    #[test]
    fn settings_of_the_kernel_stay_read_only() {
        refused(|all| all[2].flags = 0, "/proc/sys");
        refused(|all| drop(all.remove(2)), "/proc/sys is writable");
        refused(|all| all[4].flags = 0, "/sys: sysfs is writable");
        refused(
            |all| all.push(mount(PROC, "/other", 0)),
            "/other/sys is writable",
        );
    }
}
