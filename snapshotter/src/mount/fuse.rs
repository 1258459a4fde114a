//! The FUSE back end: one merged tree of a chain, served from memory, data from the store.
//!
//! Attributes and absences are given to the kernel for ever, since a tree never changes; so what
//! is looked at twice costs nothing here. Local data is answered at once by the thread that got
//! the request; a cold read is handed to the pool, so that one slow registry never keeps the few
//! threads of a mount from serving what is local.
//!
//! **Open files.** Opening costs nothing: the kernel is told once that no open is needed, for the
//! whole mount. Where it is to read complete objects by itself (passthrough, Linux 6.9) it has to
//! ask, which makes a small file cost several times as much (`Passthrough`). It allows only one way
//! of reading an inode at a time, so [`Opens`] remembers how each large file is open: a file that
//! completes while it is open stays as it is until its last close. Small files are always served
//! from here and then from the page cache.
//!
//! **The end of this process.** A successor takes the session over (`session`), so how large files
//! are open is written down as well. A request may have been carried out and not answered, and is
//! then carried out again: the order of steps makes a count too high by that, never too low.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::attr;
use super::buffers::Buffers;
use super::session::record::{self, Slot};
use crate::fill::Filler;
use crate::fill::pool::{Class, Pool};
use crate::index::{Inode, Kind, Node, Tree};
use crate::keeper::session::Kept;
use crate::sys;

/// How long the kernel may keep what it is told: more than any mount lives.
const TTL: Duration = Duration::from_secs(1 << 30);
/// Nothing is ever given a number twice.
const GENERATION: Generation = Generation(0);
/// Handle of files that are open without any state here.
const NO_HANDLE: FileHandle = FileHandle(0);
/// Handle of large files, whose way of reading is remembered.
const COUNTED: FileHandle = FileHandle(1);
/// Requests that the kernel sends without a reader waiting for each (readahead).
const MAX_BACKGROUND: u16 = 64;

/// A mounted tree.
pub(super) struct TreeFs {
    tree: Tree,
    /// One for each layer, the bottom one first.
    fillers: Vec<Arc<Filler>>,
    pool: Arc<Pool>,
    buffers: Arc<Buffers>,
    session: Arc<Kept>,
    outlives: bool,
    /// Agreed with the kernel: it reads some files by itself, and asks before it opens any.
    passthrough: bool,
    /// More files are to be read by the kernel.
    begins_passing: bool,
    opens: Mutex<HashMap<u32, Opens>>,
}

/// How a session begins or goes on.
pub(super) struct Terms {
    /// A successor can go on with it.
    pub(super) outlives: bool,
    /// Passthrough is wanted, or was agreed with the kernel by an earlier daemon.
    pub(super) passthrough: bool,
    /// More files are to be read by the kernel than are already.
    pub(super) begins_passing: bool,
    /// The large files that are open, by node.
    pub(super) open: Vec<(u32, Slot)>,
}

/// How a large file is open.
struct Opens {
    slot: Slot,
    /// Held for a file that is served from here, which is then not opened again for each read.
    #[expect(dead_code, reason = "holding it is what it is for")]
    object: Option<Arc<File>>,
}

/// The duty to answer a cold read. Left without an answer when the daemon ends, it is the
/// successor's.
struct Pending {
    reply: Option<ReplyData>,
    pool: Arc<Pool>,
    outlives: bool,
}

impl Pending {
    fn data(mut self, bytes: &[u8]) {
        if let Some(reply) = self.reply.take() {
            reply.data(bytes);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        match self.reply.take() {
            // Dropping it would answer.
            Some(reply) if self.outlives && self.pool.is_closed() => std::mem::forget(reply),
            Some(reply) => reply.error(Errno::EIO),
            None => {}
        }
    }
}

impl TreeFs {
    /// A file system of `tree`, whose layers' data `fillers` deliver in the same order.
    pub(super) fn new(
        tree: Tree,
        fillers: Vec<Arc<Filler>>,
        pool: Arc<Pool>,
        buffers: Arc<Buffers>,
        session: Arc<Kept>,
        terms: Terms,
    ) -> Self {
        let known = |(id, slot)| {
            let object = None;
            (id, Opens { slot, object })
        };
        Self {
            tree,
            fillers,
            pool,
            buffers,
            session,
            outlives: terms.outlives,
            passthrough: terms.passthrough,
            begins_passing: terms.begins_passing,
            opens: Mutex::new(terms.open.into_iter().map(known).collect()),
        }
    }

    fn node(&self, number: INodeNo) -> Result<(u32, Node), Errno> {
        let id = attr::node_id(number).ok_or(Errno::ESTALE)?;
        self.tree
            .node(id)
            .map(|node| (id, node))
            .ok_or(Errno::ESTALE)
    }

    fn directory(&self, number: INodeNo) -> Result<Node, Errno> {
        let (_, node) = self.node(number)?;
        match self.tree.inode(node).kind() {
            Kind::Directory => Ok(node),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn file(&self, number: INodeNo) -> Result<(u32, Inode, &Arc<Filler>), Errno> {
        let (id, node) = self.node(number)?;
        let inode = self.tree.inode(node);
        match inode.kind() {
            Kind::File => Ok((id, inode, &self.fillers[usize::from(node.layer)])),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Chooses how a large file is read until its last close.
    fn open_large(&self, id: u32, file: &Inode, filler: &Filler, reply: ReplyOpen) {
        let mut opens = self.opens();
        if let Some(known) = opens.get_mut(&id) {
            known.slot.count += 1;
            self.note(id, known.slot);
            return opened(reply, known.slot);
        }
        let object = match filler.blob().segment(file.segment) {
            Ok(object) => object,
            Err(error) => {
                tracing::error!(%error, "opening a stored file failed");
                return reply.error(Errno::EIO);
            }
        };
        let backing = self.backing(file, filler, &object, &reply);
        let slot = Slot { count: 1, backing };
        self.note(id, slot);
        opened(reply, slot);
        let object = backing.is_none().then_some(object);
        opens.insert(id, Opens { slot, object });
    }

    /// Makes the kernel ready to read a file by itself, if it can be let.
    fn backing(
        &self,
        file: &Inode,
        filler: &Filler,
        object: &File,
        reply: &ReplyOpen,
    ) -> Option<u32> {
        // What the kernel reads by itself is not seen, and a first profile would lack it.
        let is_ready =
            self.begins_passing && filler.blob().is_complete(file) && !filler.wants_every_read();
        if !is_ready {
            return None;
        }
        match reply.open_backing(object) {
            Ok(backing) => Some(backing.into_raw()),
            Err(error) => {
                tracing::debug!(%error, "no passthrough for this file");
                None
            }
        }
    }

    /// Counts a close.
    fn close_large(&self, id: u32) {
        let mut opens = self.opens();
        let Some(known) = opens.get_mut(&id) else {
            return;
        };
        known.slot.count = known.slot.count.saturating_sub(1);
        let slot = known.slot;
        // Before its backing file goes: a successor must not use the number of one that is gone.
        self.note(id, slot);
        if slot.count == 0 {
            opens.remove(&id);
            if let Some(backing) = slot.backing
                && let Err(error) = sys::fuse::close_backing(self.session.device.as_fd(), backing)
            {
                tracing::warn!(%error, "a backing file stays registered");
            }
        }
    }

    fn note(&self, id: u32, slot: Slot) {
        if let Err(error) = record::note(&self.session.record, id, slot) {
            tracing::warn!(%error, "a successor will not know how a file is open");
        }
    }

    fn opens(&self) -> MutexGuard<'_, HashMap<u32, Opens>> {
        self.opens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn xattr(&self, number: INodeNo, wanted: &[u8]) -> Result<&[u8], Errno> {
        let (_, node) = self.node(number)?;
        let layer = self.tree.layer(node);
        let inode = self.tree.inode(node);
        let found = layer.xattrs(&inode).find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value).ok_or(Errno::ENODATA)
    }

    /// Sends the entries of a directory from `offset` on, `.` and `..` first, until `add` is full.
    fn list(
        &self,
        number: INodeNo,
        offset: u64,
        mut add: impl FnMut(u32, u64, &OsStr, Node) -> bool,
    ) -> Result<(), Errno> {
        let directory = self.directory(number)?;
        let (own, _) = self.node(number)?;
        let dots = [(own, "."), (directory.parent, "..")];
        let dots = dots.map(|(id, name)| (id, OsStr::new(name)));
        let children = self.tree.children(directory);
        let entries = children.map(|child| (child.node, OsStr::from_bytes(self.tree.name(child))));
        let all = dots.into_iter().chain(entries).zip(1..);
        for ((id, name), next) in all.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let (_, node) = self.node(attr::number(id))?;
            if add(id, next, name, node) {
                break;
            }
        }
        Ok(())
    }
}

/// Answers that a large file is open.
fn opened(reply: ReplyOpen, slot: Slot) {
    match slot.backing {
        None => reply.opened(COUNTED, cached_flags()),
        Some(id) => sys::fuse::open_passed(reply, id, |reply, backing| {
            reply.opened_passthrough(COUNTED, FopenFlags::FOPEN_NOFLUSH, backing);
        }),
    }
}

/// Keep what was read before, and send no flush: there is nothing to flush, and nobody need wait
/// for a daemon to close a file.
fn cached_flags() -> FopenFlags {
    FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
}

impl Filesystem for TreeFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_ALLOW_IDMAP,
        ] {
            // An older kernel works without them.
            let _ = config.add_capabilities(wanted);
        }
        // Stack depth 1: backing files lie on a plain file system, and an overlay lies on top.
        self.passthrough = self.passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        if !self.passthrough {
            let _ = config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT);
        }
        // Both are bounded by the kernel; the session raises readahead further.
        let _ = config.set_max_readahead(1 << 20);
        // Nothing is written; and who reads requests needs room for the longest one.
        let _ = config.set_max_write(4096);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let directory = match self.directory(parent) {
            Ok(directory) => directory,
            Err(errno) => return reply.error(errno),
        };
        let found = self.tree.look_up(directory, name.as_bytes());
        let attributes = match found.and_then(|id| self.tree.node(id).map(|node| (id, node))) {
            Some((id, node)) => attr::attributes(id, node, &self.tree.inode(node)),
            None => attr::absent(),
        };
        reply.entry(&TTL, &attributes, GENERATION);
    }

    fn getattr(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.node(number) {
            Ok((id, node)) => {
                reply.attr(&TTL, &attr::attributes(id, node, &self.tree.inode(node)));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.node(number) {
            Ok((_, node)) => match self.tree.inode(node) {
                link if link.kind() == Kind::Symlink => {
                    reply.data(self.tree.layer(node).link_target(&link));
                }
                _ => reply.error(Errno::EINVAL),
            },
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if !self.passthrough {
            // Where the kernel knows FUSE_NO_OPEN_SUPPORT it never asks again.
            return reply.error(Errno::ENOSYS);
        }
        match self.file(number) {
            Ok((id, file, filler)) if file.segment != 0 => {
                self.open_large(id, &file, filler, reply);
            }
            Ok(_) => reply.opened(NO_HANDLE, cached_flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Answered before it is counted: a close that comes again must not be counted twice.
        reply.ok();
        if handle == COUNTED
            && let Some(id) = attr::node_id(number)
        {
            self.close_large(id);
        }
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (_, file, filler) = match self.file(number) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let len = u64::from(size).min(file.size.saturating_sub(offset));
        filler.touch(&file, offset, len);
        let is_local = filler.is_local(&file, offset, len);
        filler.count_read(is_local);
        if is_local {
            return self.buffers.lend(len as usize, |bytes| {
                match filler.read_local(&file, offset, bytes) {
                    Ok(()) => reply.data(bytes),
                    Err(_) => reply.error(Errno::EIO),
                }
            });
        }
        let filler = Arc::clone(filler);
        let pending = Pending {
            reply: Some(reply),
            pool: Arc::clone(&self.pool),
            outlives: self.outlives,
        };
        self.pool.run(Class::Read, move || {
            // The cause of a failure is in the log already.
            if let Ok(bytes) = filler.read(&file, offset, len) {
                pending.data(&bytes);
            }
        });
    }

    fn opendir(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Listings need no handle; the kernel then keeps them cached and never asks again.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.list(number, offset, |id, next, name, node| {
            let kind = attr::file_type(self.tree.inode(node).kind());
            reply.add(attr::number(id), next, kind, name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.list(number, offset, |id, next, name, node| {
            let attributes = attr::attributes(id, node, &self.tree.inode(node));
            reply.add(attributes.ino, next, name, &TTL, &attributes, GENERATION)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let bytes: u64 = self
            .tree
            .layers()
            .iter()
            .map(|layer| layer.data_size())
            .sum();
        let files = self.tree.len() as u64;
        reply.statfs(bytes.div_ceil(4096), 0, 0, files, 0, 4096, 255, 4096);
    }

    fn getxattr(
        &self,
        _request: &Request,
        number: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        // Never ENOSYS, not even when no file has any: the kernel would answer EOPNOTSUPP from then
        // on, which containerd's diff takes for a failure.
        match self.xattr(number, name.as_bytes()) {
            Ok(value) => sized(value, size, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        match self.node(number) {
            Ok((_, node)) => {
                let inode = self.tree.inode(node);
                let names = self.tree.layer(node).xattrs(&inode);
                let list: Vec<u8> = names
                    .flat_map(|(name, _)| name.iter().copied().chain([0]))
                    .collect();
                sized(&list, size, reply);
            }
            Err(errno) => reply.error(errno),
        }
    }
}

/// Answers with the value, or with its length when the caller asks how much room it needs.
fn sized(value: &[u8], size: u32, reply: ReplyXattr) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
