//! What CRIU's images would have a restore do: nothing outside of the container, whoever wrote them.
//!
//! CRIU trusts its images. It makes the mounts, namespaces, files and capabilities that they name,
//! with all the rights of its caller, before a process of the container runs.

use std::collections::BTreeSet;

use xebec_proto::criu_images::{
    CoreEntry, FileEntry, InventoryEntry, MountEntry, NamespaceIds, TreeEntry,
};

use super::capabilities::first;
use super::diff::check_diff;
use super::mounts::check_mounts;
use crate::archive::CHECKPOINT;
use crate::error::{Error, Result};
use crate::files::Files;
use crate::images::{self, CORE, FILES, IDS, INVENTORY, MOUNTS, PSTREE, shown};
use crate::inspect::mounts_image;

/// What is known of a container whose images are checked.
#[derive(Debug)]
pub(super) struct Expected {
    /// Where its configuration mounts what is outside of it.
    pub(super) destinations: BTreeSet<String>,
    /// Capabilities that its processes may have.
    pub(super) capabilities: u64,
}

/// Images of what a container may have; without number and ending. The rest configures the kernel,
/// or is for plugins.
const KNOWN: [&str; 58] = [
    "inventory",
    "pstree",
    "seccomp",
    "files",
    "cgroup",
    "cpuinfo",
    "remap-fpath",
    "filelocks",
    "memfd",
    "tty-info",
    "tty",
    "tty-data",
    "pipes-data",
    "fifo-data",
    "eventpoll-tfd",
    "inotify-wd",
    "fanotify-mark",
    "sk-queues",
    "core",
    "ids",
    "mm",
    "pagemap",
    "pagemap-shmem",
    "pages",
    "fs",
    "fdinfo",
    "mountpoints",
    "timens",
    "pidns",
    "utsns",
    "ipcns-var",
    "ipcns-shm",
    "ipcns-msg",
    "ipcns-sem",
    "netns",
    "netdev",
    "ifaddr",
    "route",
    "route6",
    "rule",
    "iptables",
    "ip6tables",
    "nftables",
    "netns-ct",
    "netns-exp",
    "ghost-file",
    "tcp-stream",
    "tmpfs",
    "tmpfs-dev",
    "pages-shmem",
    "signal-s",
    "signal-p",
    "itimers",
    "posix-timers",
    "creds",
    "rlimit",
    "sigacts",
    "vmas",
];
/// Files beside the images.
const BESIDE: [&str; 4] = ["descriptors.json", "dump.log", "stats-dump", "restore.log"];

/// Checks the images of a checkpoint that nobody vouches for.
///
/// # Errors
/// The image and entry that a restore must not follow.
pub(super) fn check_images(files: &Files, expected: &Expected) -> Result<()> {
    for name in files.images() {
        check_name(files, name)?;
    }
    check_namespaces(files)?;
    check_processes(files, expected)?;
    check_files(files)?;
    for name in files.images().filter_map(mounts_image) {
        let mounts = images::read::<MountEntry>(files, name, &MOUNTS)?;
        check_mounts(&image(files, name), &mounts, &expected.destinations)?;
    }
    Ok(())
}

fn check_name(files: &Files, name: &str) -> Result<()> {
    if BESIDE.contains(&name) {
        return Ok(());
    }
    let refuse =
        |reason: &str| Error::refused(files.shown(), format!("{CHECKPOINT}/{name}"), reason);
    let own = name
        .strip_suffix(".img")
        .ok_or_else(|| refuse("not an image of CRIU's"))?;
    let own = own.strip_suffix(".tar.gz").unwrap_or(own);
    let kind = match own.rsplit_once('-') {
        Some((kind, number)) if number.bytes().all(|byte| byte.is_ascii_hexdigit()) => kind,
        _ => own,
    };
    if !KNOWN.contains(&kind) && !KNOWN.contains(&own) {
        return Err(refuse(
            "an image that reaches beyond the container needs --trusted",
        ));
    }
    if kind == "tmpfs" || kind == "tmpfs-dev" {
        let path = format!("{CHECKPOINT}/{name}");
        let content = files.stream(&path)?;
        check_diff(content, &shown(files, &path))?;
    }
    Ok(())
}

/// Init has namespaces of its own: those that it shares with the dumping CRIU it would share with
/// the restoring one.
fn check_namespaces(files: &Files) -> Result<()> {
    let inventory: InventoryEntry = images::single(files, "inventory", &INVENTORY)?;
    let unknown = || {
        Error::malformed(
            image(files, "inventory"),
            "the host's namespaces are missing",
        )
    };
    let outer = inventory.root_ids.ok_or_else(unknown)?;
    let processes = images::read::<TreeEntry>(files, "pstree", &PSTREE)?;
    for process in processes {
        let name = format!("ids-{}", process.pid);
        let own: NamespaceIds = images::single(files, &name, &IDS)?;
        let pairs = [
            ("pid", own.pid_ns_id, outer.pid_ns_id),
            ("network", own.net_ns_id, outer.net_ns_id),
            ("ipc", own.ipc_ns_id, outer.ipc_ns_id),
            ("uts", own.uts_ns_id, outer.uts_ns_id),
            ("mount", own.mnt_ns_id, outer.mnt_ns_id),
        ];
        for (kind, own, outer) in pairs {
            if own.is_none() || own == outer {
                let file = image(files, &name);
                let reason = format!("the process is in the host's {kind} namespace");
                return Err(Error::refused(file, kind, reason));
            }
        }
    }
    Ok(())
}

fn check_processes(files: &Files, expected: &Expected) -> Result<()> {
    let cores = files.images().filter(|name| name.starts_with("core-"));
    for name in cores.filter_map(|name| name.strip_suffix(".img")) {
        let core: CoreEntry = images::single(files, name, &CORE)?;
        let credentials = core.thread_core.and_then(|thread| thread.creds);
        let credentials = credentials
            .ok_or_else(|| Error::malformed(image(files, name), "there are no credentials"))?;
        let sets = [
            ("effective", &credentials.cap_eff),
            ("permitted", &credentials.cap_prm),
            ("inheritable", &credentials.cap_inh),
            ("bounding", &credentials.cap_bnd),
        ];
        for (set, words) in sets {
            let excess = join(words) & !expected.capabilities;
            if excess != 0 {
                let reason = format!("{} is more than its configuration grants", first(excess));
                return Err(Error::refused(image(files, name), set, reason));
            }
        }
    }
    Ok(())
}

/// How an image is called in errors.
fn image(files: &Files, name: &str) -> String {
    shown(files, &format!("{CHECKPOINT}/{name}.img"))
}

/// A set of capabilities, of which an image has 32 a word.
fn join(words: &[u32]) -> u64 {
    let [low, high] = [0, 1].map(|index| words.get(index).copied().unwrap_or(0));
    u64::from(low) | u64::from(high) << 32
}

fn check_files(files: &Files) -> Result<()> {
    for file in images::read::<FileEntry>(files, "files", &FILES)? {
        let part = || format!("file {}", file.id);
        let refuse = |reason: String| Err(Error::refused(image(files, "files"), part(), reason));
        if file.r#type == EXTERNAL {
            return refuse("a file from outside of the container".to_owned());
        }
        let name = file.reg.as_ref().map(|regular| regular.name.as_str());
        let directory = file
            .usk
            .as_ref()
            .and_then(|socket| socket.name_dir.as_deref());
        for path in [name, directory].into_iter().flatten() {
            if leads_up(path) {
                return refuse(format!("{path:?} leads out of the container"));
            }
        }
        let socket = file.usk.as_ref();
        let socket_name = socket.map(|socket| String::from_utf8_lossy(&socket.name).into_owned());
        if socket_name.is_some_and(|name| leads_up(&name)) {
            return refuse("its name leads out of the container".to_owned());
        }
    }
    Ok(())
}

/// `EXT` of CRIU's kinds of files.
const EXTERNAL: u32 = 16;

pub(super) fn leads_up(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}
