//! What is in a checkpoint, without restoring it: processes, memory, mounts, sockets, who made it.
//! [`inspect`] reads, [`to_text`] shows.

mod memory;
mod secrets;
mod sockets;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use xebec_proto::criu_images::{
    CoreEntry, DescriptorEntry, FileEntry, InventoryEntry, MemoryEntry, MountEntry, NamespaceIds,
    TreeEntry,
};

use crate::archive::{CHECKPOINT, ROOTFS_DIFF};
use crate::error::{Error, Result};
use crate::files::{Files, Piece};
use crate::images::{self, CORE, FDINFO, FILES, IDS, INVENTORY, MM, MOUNTS, PSTREE};
use crate::metadata::{self, ConfigDump};

use memory::Pages;
pub use memory::{Memory, Size};
use secrets::{masked, masked_arguments};
pub use sockets::Socket;
pub use text::to_text;

/// What descriptors are, by the numbers that CRIU has for them.
const KIND_NAMES: [&str; 19] = [
    "unknown",
    "file",
    "pipe",
    "fifo",
    "socket",
    "unix socket",
    "eventfd",
    "epoll",
    "inotify",
    "signalfd",
    "packet socket",
    "terminal",
    "fanotify",
    "netlink socket",
    "namespace",
    "tun",
    "external",
    "timerfd",
    "memfd",
];

/// Most descriptors of all processes that are told of.
const DESCRIPTORS_MAX: usize = 1 << 20;
/// Most bytes of arguments and environments of all processes that are told of.
const TEXTS_MAX: usize = 64 << 20;

/// Everything that is said about a checkpoint.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The engine that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<&'static str>,
    /// What the engine wrote of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<ConfigDump>,
    /// Version of CRIU's images.
    pub image_version: u32,
    /// Bytes.
    pub sizes: Sizes,
    /// All processes, parents first.
    pub processes: Vec<Process>,
    /// The container's mounts.
    pub mounts: Vec<Mount>,
    /// Its sockets.
    pub sockets: Vec<Socket>,
}

/// How large the parts are, in bytes.
#[derive(Debug, Default, Serialize)]
pub struct Sizes {
    /// Everything.
    pub total: u64,
    /// Pages of memory.
    pub pages: u64,
    /// CRIU's other images.
    pub images: u64,
    /// Changes of the root file system.
    pub rootfs_diff: u64,
}

/// One process.
#[derive(Debug, Serialize)]
pub struct Process {
    /// Its pid in the container.
    pub pid: u32,
    /// That of its parent; zero for init.
    pub parent: u32,
    /// Threads, the first one included.
    pub threads: usize,
    /// Name of its program.
    pub name: String,
    /// Arguments, secrets masked.
    pub arguments: Vec<String>,
    /// Environment, secrets masked.
    pub environment: Vec<String>,
    /// User and group.
    pub user: [u32; 2],
    /// Memory by kind.
    pub memory: Memory,
    /// Open files.
    pub files: Vec<OpenFile>,
}

/// A file that a process has open.
#[derive(Debug, Serialize)]
pub struct OpenFile {
    /// Its number.
    pub descriptor: u32,
    /// What it is.
    pub kind: &'static str,
    /// Its path in the container, or the address of a socket.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// A mount.
#[derive(Debug, Serialize)]
pub struct Mount {
    /// Where.
    pub path: String,
    /// File system, source.
    pub source: String,
    /// It belongs to the host, and is looked for by this name at the restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
}

/// Looks into a checkpoint.
///
/// # Errors
/// Its images are damaged: the file is named.
pub fn inspect(files: &mut Files) -> Result<Report> {
    let inventory: InventoryEntry = images::single(files, "inventory", &INVENTORY)?;
    let spec = metadata::spec_dump(files)?;
    let open_files = images::read::<FileEntry>(files, "files", &FILES)?;
    let by_id: BTreeMap<u32, &FileEntry> = open_files.iter().map(|file| (file.id, file)).collect();
    let mut processes = Vec::new();
    let mut texts = Vec::new();
    let mut seen = BTreeSet::new();
    let mut left = DESCRIPTORS_MAX;
    for entry in images::read::<TreeEntry>(files, "pstree", &PSTREE)? {
        if !seen.insert(entry.pid) {
            let part = format!("process {}", entry.pid);
            return Err(Error::refused(files.shown(), part, "it is there twice"));
        }
        let (process, where_texts) = look_at(files, &entry, &by_id)?;
        left = left
            .checked_sub(process.files.len())
            .ok_or_else(|| Error::malformed(files.shown(), "too many descriptors"))?;
        processes.push(process);
        texts.push(where_texts);
    }
    read_texts(files, &mut processes, &texts)?;
    Ok(Report {
        engine: metadata::engine(files, spec.as_ref()),
        container: metadata::config_dump(files)?,
        image_version: inventory.img_version,
        sizes: sizes(files),
        processes,
        mounts: mounts(files)?,
        sockets: open_files.iter().filter_map(Socket::of).collect(),
    })
}

fn sizes(files: &Files) -> Sizes {
    let mut sizes = Sizes::default();
    for (name, size) in files.sizes() {
        sizes.total = sizes.total.saturating_add(*size);
        let own = name
            .strip_prefix(CHECKPOINT)
            .and_then(|own| own.strip_prefix('/'));
        match own {
            Some(own) if own.starts_with("pages-") => sizes.pages += size,
            Some(_) => sizes.images += size,
            None if name == ROOTFS_DIFF => sizes.rootfs_diff = *size,
            None => {}
        }
    }
    sizes
}

type Texts = [Option<Piece>; 2];

fn look_at(
    files: &Files,
    entry: &TreeEntry,
    open_files: &BTreeMap<u32, &FileEntry>,
) -> Result<(Process, Texts)> {
    let pid = entry.pid;
    let core: CoreEntry = images::single(files, &format!("core-{pid}"), &CORE)?;
    // A zombie has no memory.
    let memory = images::read::<MemoryEntry>(files, &format!("mm-{pid}"), &MM)?;
    let memory = memory.into_iter().next().unwrap_or_default();
    let pages = Pages::read(files, pid)?;
    let credentials = core.thread_core.and_then(|thread| thread.creds);
    let credentials = credentials.unwrap_or_default();
    let process = Process {
        pid,
        parent: entry.ppid,
        threads: entry.threads.len().max(1),
        name: core.tc.map(|task| task.comm).unwrap_or_default(),
        arguments: Vec::new(),
        environment: Vec::new(),
        user: [credentials.uid, credentials.gid],
        memory: pages.divide(&memory.vmas).ok_or_else(|| {
            let part = format!("{CHECKPOINT}/mm-{pid}.img");
            Error::refused(files.shown(), part, "areas are not in their order")
        })?,
        files: descriptors(files, pid, open_files)?,
    };
    Ok((process, pages.texts(&memory)))
}

fn descriptors(
    files: &Files,
    pid: u32,
    open_files: &BTreeMap<u32, &FileEntry>,
) -> Result<Vec<OpenFile>> {
    let ids = images::read::<NamespaceIds>(files, &format!("ids-{pid}"), &IDS)?;
    let Some(table) = ids.first().and_then(|ids| ids.files_id) else {
        return Ok(Vec::new());
    };
    let entries = images::read::<DescriptorEntry>(files, &format!("fdinfo-{table}"), &FDINFO)?;
    let show = |entry: DescriptorEntry| {
        let file = open_files.get(&entry.id);
        OpenFile {
            descriptor: entry.fd,
            kind: KIND_NAMES
                .get(entry.r#type as usize)
                .unwrap_or(&KIND_NAMES[0]),
            path: file.map(|file| path_of(file)).unwrap_or_default(),
        }
    };
    Ok(entries.into_iter().map(show).collect())
}

fn path_of(file: &FileEntry) -> String {
    match (&file.reg, Socket::of(file)) {
        (Some(regular), _) => regular.name.clone(),
        (None, Some(socket)) => socket.local,
        (None, None) => String::new(),
    }
}

/// Arguments and environments are in the memory of the processes: one walk for all of them.
fn read_texts(files: &mut Files, processes: &mut [Process], texts: &[Texts]) -> Result<()> {
    let mut left = TEXTS_MAX;
    let mut wanted: Vec<Piece> = texts.iter().flatten().flatten().cloned().collect();
    for piece in &mut wanted {
        piece.length = piece.length.min(left);
        left -= piece.length;
    }
    let mut found = files.pieces(&wanted)?.into_iter();
    for (process, [arguments, environment]) in processes.iter_mut().zip(texts) {
        let mut next = |piece: &Option<Piece>| {
            let bytes = piece.as_ref().and_then(|_| found.next());
            words(&bytes.unwrap_or_default())
        };
        process.arguments = masked_arguments(&next(arguments));
        let all = next(environment);
        process.environment = all.iter().map(|one| masked(one)).collect();
    }
    Ok(())
}

/// Words that end with a zero byte.
fn words(bytes: &[u8]) -> Vec<String> {
    let mut words: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    while words.last().is_some_and(|word| word.is_empty()) {
        words.pop();
    }
    let words = words.into_iter();
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn mounts(files: &Files) -> Result<Vec<Mount>> {
    let names: BTreeSet<&str> = files.images().filter_map(mounts_image).collect();
    let mut mounts = Vec::new();
    for name in names {
        for entry in images::read::<MountEntry>(files, name, &MOUNTS)? {
            mounts.push(Mount {
                path: entry.mountpoint,
                source: entry.source,
                external: entry.ext_key.filter(|key| !key.is_empty()),
            });
        }
    }
    mounts.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(mounts)
}

/// The name of an image of mounts, without its ending.
pub(crate) fn mounts_image(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".img")?;
    name.starts_with("mountpoints-").then_some(name)
}
