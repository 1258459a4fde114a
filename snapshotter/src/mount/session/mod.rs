//! Mounting, serving and unmounting FUSE trees, and going on with those of an earlier daemon.
//!
//! A session (see [`crate::keeper::session`]) is given to the keeper before anyone uses its mount.
//! A successor gets it back with a [`record`] of how it was set up, makes the same tree, and
//! serves on: nodes have the numbers that they had, open files need no state but what is in the
//! record, and requests that nobody answered come again. So no reader notices more than a pause.
//!
//! Only kernels that can ask again (Linux 6.9) have their sessions kept: elsewhere what a dead
//! daemon had taken would never be answered, and a mount that ends is better.

mod greeting;
pub(super) mod record;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fuser::Session;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MountFlags, UnmountFlags};

use self::record::{Setup, Slot};
use super::buffers::Buffers;
use super::fuse::{Terms, TreeFs};
use super::layers::{Layers, lock};
use super::{LayerId, Passthrough};
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::fill::Filler;
use crate::fill::pool::Pool;
use crate::index::{LayerIndex, Tree};
use crate::keeper::custody::Custody;
use crate::keeper::session::Kept;

/// Readahead of the mounts: enough for one request to hide a local read behind the next.
const READ_AHEAD_KIB: u32 = 1024;
/// Threads that go on with sessions.
const ADOPTING: usize = 4;

/// All FUSE sessions of this daemon.
pub(super) struct Sessions {
    /// None if nothing is to outlive this process.
    pub(super) custody: Option<Arc<Custody>>,
    layers: Arc<Layers>,
    pool: Arc<Pool>,
    threads: usize,
    passthrough: Passthrough,
    buffers: Arc<Buffers>,
    /// Sessions of an earlier daemon that nobody has asked for.
    left: Mutex<Vec<Left>>,
    /// Those that will be served in a moment.
    found: Mutex<Vec<Found>>,
}

/// A session that waits for somebody to go on with it.
struct Left {
    kept: Arc<Kept>,
    setup: Setup,
    open: Vec<(u32, Slot)>,
}

/// A session whose layers are here as they were.
struct Found {
    left: Left,
    fillers: Vec<Arc<Filler>>,
}

/// A mounted tree. Dropping it leaves the mount alone.
#[derive(Debug)]
pub(super) struct Mounted {
    path: PathBuf,
    outlives: bool,
}

impl Mounted {
    /// Where the tree is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a successor can go on with it.
    pub(super) fn outlives_us(&self) -> bool {
        self.outlives
    }

    /// Takes the mount away; those who have it open keep what they have.
    pub(super) fn unmount(&self) -> Result<()> {
        clear(&self.path).map_err(Error::io("unmount", &self.path))
    }
}

impl Sessions {
    pub(super) fn new(
        custody: Option<Arc<Custody>>,
        layers: Arc<Layers>,
        pool: Arc<Pool>,
        threads: usize,
        passthrough: Passthrough,
    ) -> Self {
        let mut left = Vec::new();
        for kept in custody.iter().flat_map(|custody| custody.sessions()) {
            let read = kept
                .set_waiting(true)
                .and_then(|()| record::read(&kept.record));
            match (read, &custody) {
                (Ok((setup, open)), _) => left.push(Left { kept, setup, open }),
                (Err(error), Some(custody)) => give_up(custody, &kept.name, &error),
                (Err(_), None) => {}
            }
        }
        Self {
            custody,
            layers,
            pool,
            threads,
            passthrough,
            buffers: Arc::default(),
            left: Mutex::new(left),
            found: Mutex::default(),
        }
    }

    /// Frees room that no session has needed since the last call.
    pub(super) fn let_go_of_buffers(&self) {
        self.buffers.let_go();
    }

    /// Mounts `tree` at `path`, which is made.
    ///
    /// The mount is made here and not by fuser, which would unmount as it likes: a lazy unmount
    /// leaves the session to those who still use the tree, and the last of them ends it.
    pub(super) fn mount(
        &self,
        chain: &[LayerId],
        tree: Tree,
        fillers: Vec<Arc<Filler>>,
        path: &Path,
    ) -> Result<Mounted> {
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let device = Path::new("/dev/fuse");
        let fuse = OpenOptions::new().read(true).write(true).open(device);
        let fuse = OwnedFd::from(fuse.map_err(Error::io("open", device))?);
        mount(path, &fuse)?;
        let begun = self.begin(chain, tree, fillers, path, fuse);
        let begun = begun.map_err(Error::io("serve", path));
        if begun.is_err()
            && let Err(error) = clear(path)
        {
            tracing::warn!(path = %path.display(), %error, "a mount that failed stays");
        }
        let outlives = begun?;
        if let Err(error) = raise_readahead(path) {
            tracing::debug!(%error, "readahead stays as the kernel set it");
        }
        Ok(Mounted {
            path: path.to_owned(),
            outlives,
        })
    }

    /// Begins to serve what was just mounted; whether it outlives this process.
    fn begin(
        &self,
        chain: &[LayerId],
        tree: Tree,
        fillers: Vec<Arc<Filler>>,
        path: &Path,
        device: OwnedFd,
    ) -> io::Result<bool> {
        let mut setup = Setup::new(chain, identity(tree.layers().iter()), device_of(path)?);
        let kept = Arc::new(Kept {
            name: format!("{:016x}", fastrand::u64(..)),
            device,
            record: record::create()?,
        });
        setup.init = greeting::receive(kept.device.as_fd())?;
        let custody = self.custody.as_ref();
        let custody = custody.filter(|_| greeting::has_resend(&setup.init));
        let terms = Terms {
            outlives: custody.is_some(),
            passthrough: self.passthrough.suits(&tree),
            begins_passing: true,
            open: Vec::new(),
        };
        let fs = self.tree_fs(tree, fillers, Arc::clone(&kept), terms);
        let (session, answer) =
            greeting::session(fs, kept.device.as_fd(), &setup.init, self.threads)?;
        rustix::io::write(&kept.device, &answer)?;
        setup.passthrough = greeting::agrees_to_passthrough(&answer);
        record::write(&kept.record, &setup)?;
        if let Some(custody) = custody {
            custody.keep(&kept);
        }
        let outlives = custody.is_some();
        self.serve(session, kept.name.clone())?;
        Ok(outlives)
    }

    fn tree_fs(
        &self,
        tree: Tree,
        fillers: Vec<Arc<Filler>>,
        session: Arc<Kept>,
        terms: Terms,
    ) -> TreeFs {
        let (pool, buffers) = (Arc::clone(&self.pool), Arc::clone(&self.buffers));
        TreeFs::new(tree, fillers, pool, buffers, session, terms)
    }

    /// Takes the session of `chain` that is mounted at `path`, if there is one. Its readers wait
    /// for [`Sessions::go_on`].
    pub(super) fn adopt(&self, chain: &[LayerId], path: PathBuf) -> Option<Mounted> {
        let device = device_of(&path).ok()?;
        let left = {
            let mut left = lock(&self.left);
            let is_it = |left: &Left| left.setup.device == device && left.setup.chain == chain;
            let at = left.iter().position(is_it)?;
            left.swap_remove(at)
        };
        self.find(left).then_some(Mounted {
            path,
            outlives: true,
        })
    }

    /// Serves what was adopted, and what is mounted nowhere any more, as somebody may still use
    /// it. Nobody waits for this: hundreds of trees take their time.
    pub(super) fn go_on(self: &Arc<Self>) -> Result<()> {
        for left in std::mem::take(&mut *lock(&self.left)) {
            self.find(left);
        }
        let sessions = lock(&self.found).len();
        for _ in 0..sessions.min(ADOPTING) {
            let all = Arc::clone(self);
            let work = move || {
                while let Some(found) = { lock(&all.found).pop() } {
                    let name = found.left.kept.name.clone();
                    if let Err(error) = all.continue_with(found) {
                        all.give_up(&name, &error);
                    }
                }
            };
            super::engine::start("xebec-adopt", work)?;
        }
        Ok(())
    }

    /// Looks whether a session can go on; it ends if it cannot.
    fn find(&self, left: Left) -> bool {
        let layers = left.setup.chain.iter();
        let fillers = layers.map(|layer| self.layers.get(*layer)).collect();
        let same = |fillers: Vec<Arc<Filler>>| {
            let indexes = fillers.iter().map(|filler| filler.blob().index());
            if identity(indexes) == left.setup.tree {
                return Ok(fillers);
            }
            let what = "its layers have other indexes now".to_owned();
            Err(Error::FailedPrecondition(what))
        };
        match Result::and_then(fillers, same) {
            Ok(fillers) => {
                lock(&self.found).push(Found { left, fillers });
                true
            }
            Err(error) => {
                self.give_up(&left.kept.name, &error);
                false
            }
        }
    }

    fn continue_with(&self, found: Found) -> Result<()> {
        let Found { left, fillers } = found;
        let Left { kept, setup, open } = left;
        let indexes = fillers
            .iter()
            .map(|filler| Arc::clone(filler.blob().index()));
        let tree = Tree::merge(indexes.collect());
        let tree = tree.map_err(|flaw| flaw.of(format!("tree of session {}", kept.name)))?;
        let terms = Terms {
            outlives: true,
            passthrough: setup.passthrough,
            begins_passing: self.passthrough != Passthrough::Never,
            open,
        };
        let fs = self.tree_fs(tree, fillers, Arc::clone(&kept), terms);
        greeting::session(fs, kept.device.as_fd(), &setup.init, self.threads)
            .and_then(|(session, _)| {
                kept.resend()?;
                self.serve(session, kept.name.clone())
            })
            .map_err(|error| Error::Internal(format!("serve: {error}")))
    }

    /// Ends a session that cannot go on: its readers get an error instead of waiting for ever.
    fn give_up(&self, name: &str, error: &dyn std::fmt::Display) {
        if let Some(custody) = &self.custody {
            give_up(custody, name, error);
        }
    }

    /// Serves until nobody uses the tree any more.
    fn serve(&self, session: Session<TreeFs>, name: String) -> io::Result<()> {
        let (custody, layers) = (self.custody.clone(), Arc::clone(&self.layers));
        let work = move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, session = name, "a FUSE session has ended");
            }
            layers.store.space().note_unused();
            if let Some(custody) = custody {
                custody.forget(&name);
            }
        };
        let thread = std::thread::Builder::new().name("xebec-fuse".to_owned());
        thread.spawn(work).map(drop)
    }
}

impl Passthrough {
    /// A file is large on average from here on.
    ///
    /// Asking costs an open as much time as passthrough saves once in reading 30 to 60 KiB of what
    /// the store's page cache has, and files are opened more often than they are read anew.
    const LARGE: u64 = 1 << 20;

    /// The same, or none at all.
    pub(super) fn never_if(self, impossible: bool) -> Self {
        if impossible { Self::Never } else { self }
    }

    /// Whether the kernel is to read large files of a tree by itself.
    fn suits(self, tree: &Tree) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                let sizes = tree.layers().iter().map(|layer| layer.data_size());
                sizes.sum::<u64>() / tree.len() as u64 >= Self::LARGE
            }
        }
    }
}

fn give_up(custody: &Custody, name: &str, error: &dyn std::fmt::Display) {
    tracing::error!(
        session = name, %error,
        "a FUSE session of an earlier daemon cannot go on; restart the containers on it"
    );
    custody.forget(name);
}

/// What the tree of these layers is made of, to the byte: the same gives each node the same number.
fn identity<'a>(layers: impl Iterator<Item = &'a Arc<LayerIndex>>) -> String {
    let mut hasher = Hasher::new();
    for layer in layers {
        hasher.update(layer.checksum());
    }
    hasher.finish().hex()
}

/// The device number of what is mounted at a path. Asks nobody who serves it.
fn device_of(path: &Path) -> io::Result<(u32, u32)> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let stat = statx(CWD, path, flags, StatxFlags::empty())?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

fn mount(path: &Path, fuse: &OwnedFd) -> Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        fuse.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).map_err(|e| Error::Internal(e.to_string()))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount("xebec", path, "fuse.xebec", flags, &*options)
        .map_err(Error::io("mount fuse on", path))
}
/// Unmounts whatever is at `path`, dead or alive, and removes the directory. Those who have it
/// open, such as an overlay on top, keep what they have.
pub(super) fn clear(path: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point any more, or not there.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The limit that FUSE negotiates is the device's default, which sysfs alone can raise.
fn raise_readahead(path: &Path) -> io::Result<()> {
    let (major, minor) = device_of(path)?;
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    fs::write(setting, READ_AHEAD_KIB.to_string())
}
