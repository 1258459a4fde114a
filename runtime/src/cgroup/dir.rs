//! The directory of a cgroup: creation, controllers on the way down, membership, removal.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Uid, chownat, mkdirat, openat, unlinkat,
};
use rustix::io::Errno;

use super::error::{CgroupError, Result};
use super::files::{self, io_error};
use super::state;
use super::{CgroupPath, Controllers};

/// How long [`Cgroup::remove`] waits for killed processes to leave.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);

/// Names the controllers that the children of a cgroup have.
const SUBTREE_CONTROL: &str = "cgroup.subtree_control";

/// An existing cgroup, held open.
#[derive(Debug)]
pub struct Cgroup {
    path: CgroupPath,
    full: PathBuf,
    fd: OwnedFd,
}

impl Cgroup {
    /// Makes the cgroup of a new container and enables `needed` and the rest of
    /// [`Controllers::ALL`] down the path, as far as the host offers them.
    ///
    /// An existing cgroup is taken over only if it is empty and not frozen. A needed controller
    /// that the host offers and that cannot be enabled is an error; one that the host does not
    /// offer is the business of [`Cgroup::apply`]. Directories made here are removed on failure.
    pub fn create(path: &CgroupPath, needed: Controllers) -> Result<Self> {
        let mut made = Vec::new();
        let created = Self::create_dirs(path, &mut made).and_then(|cgroup| {
            if made.last().is_none_or(|last| *last != cgroup.full) {
                cgroup.refuse_unless_idle()?;
            }
            cgroup.enable(needed)?;
            Ok(cgroup)
        });
        if created.is_err() {
            for dir in made.iter().rev() {
                // The error that brought us here is the one to report.
                let _ = unlinkat(CWD, dir, AtFlags::REMOVEDIR);
            }
        }
        created
    }

    /// Opens the cgroup of an existing container.
    pub fn open(path: &CgroupPath) -> Result<Self> {
        let full = path.full();
        let fd = open_dir(&full).map_err(|errno| io_error("open cgroup", &full, errno))?;
        Ok(Self {
            path: path.clone(),
            full,
            fd,
        })
    }

    fn create_dirs(path: &CgroupPath, made: &mut Vec<PathBuf>) -> Result<Self> {
        let full = path.full();
        if let Err(errno) = make_dir(&full, made) {
            if errno != Errno::NOENT {
                return Err(io_error("create cgroup", &full, errno));
            }
            let mut dir = path.mount().to_owned();
            for component in path.inner() {
                dir.push(component);
                make_dir(&dir, made).map_err(|errno| io_error("create cgroup", &dir, errno))?;
            }
        }
        Self::open(path)
    }

    fn refuse_unless_idle(&self) -> Result<()> {
        let count = self.pids(true)?.len();
        if count > 0 {
            return Err(CgroupError::NotEmpty { count });
        }
        if self.is_frozen()? {
            return Err(CgroupError::UnexpectedlyFrozen);
        }
        Ok(())
    }

    /// The directory, for CLONE_INTO_CGROUP (an `O_PATH` descriptor).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where the cgroup is.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The directory in the file system.
    pub fn full_path(&self) -> &Path {
        &self.full
    }

    /// The controllers the cgroup has.
    pub fn controllers(&self) -> Result<Controllers> {
        read_controllers(self.fd(), &self.full, "cgroup.controllers")
    }

    /// Enables all controllers from the root down to this cgroup, as far as the host offers them,
    /// with one write a level. Only what is `needed` and cannot be enabled is an error.
    pub fn enable(&self, needed: Controllers) -> Result<Controllers> {
        let wanted = Controllers::ALL;
        let have = self.controllers()?;
        if have.contains(wanted) {
            return Ok(have);
        }
        let mut dir = self.path.mount().to_owned();
        let root = open_dir(&dir).map_err(|errno| io_error("open cgroup", &dir, errno))?;
        let offered = read_controllers(root.as_fd(), &dir, "cgroup.controllers")?;
        let missing = wanted.intersection(offered).difference(have);
        if missing.is_empty() {
            return Ok(have);
        }
        self.refuse_if_threaded(needed)?;
        let mut level = root;
        let components: Vec<&OsStr> = self.path.inner().iter().collect();
        for component in components {
            enable_level(level.as_fd(), &dir, missing, needed)?;
            dir.push(component);
            level = open_dir(&dir).map_err(|errno| io_error("open cgroup", &dir, errno))?;
        }
        self.controllers()
    }

    /// A threaded cgroup takes only threaded controllers, and a "domain invalid" one nothing.
    fn refuse_if_threaded(&self, needed: Controllers) -> Result<()> {
        let domain = needed.difference(Controllers::THREADED);
        let Some(mode) = files::read_optional(self.fd(), &self.full, "cgroup.type")? else {
            return Ok(());
        };
        match mode.trim() {
            "domain" => Ok(()),
            "threaded" | "domain threaded" if domain.is_empty() => Ok(()),
            mode => Err(CgroupError::Threaded {
                path: self.full.clone(),
                mode: mode.to_owned(),
            }),
        }
    }

    /// Moves a process into the cgroup.
    pub fn add(&self, pid: i32) -> Result<()> {
        files::write(self.fd(), "cgroup.procs", &pid.to_string()).map_err(|errno| {
            io_error(
                &format!("write {pid} to"),
                &self.full.join("cgroup.procs"),
                errno,
            )
        })
    }

    /// Process IDs in the cgroup, in its children too if `recursive`, in the caller's PID
    /// namespace.
    pub fn pids(&self, recursive: bool) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        collect_pids(self.fd(), &self.full, recursive, &mut pids)?;
        Ok(pids)
    }

    /// Gives the cgroup to a user, so that a container with a user namespace can make cgroups of
    /// its own: the directory and the files the kernel names for delegation, no limits.
    pub fn delegate(&self, uid: u32) -> Result<()> {
        const FILES: &str = "/sys/kernel/cgroup/delegate";
        // The list came with Linux 4.15; these are its members of that time.
        let files = std::fs::read_to_string(FILES).unwrap_or_else(|_| {
            "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned()
        });
        let owner = Some(Uid::from_raw(uid));
        chownat(CWD, &self.full, owner, None, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| io_error("change the owner of", &self.full, errno))?;
        for file in files.lines() {
            match chownat(self.fd(), file, owner, None, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(io_error(
                        "change the owner of",
                        &self.full.join(file),
                        errno,
                    ));
                }
            }
        }
        Ok(())
    }

    /// Removes the cgroup and its children. Nothing is killed; processes that are on their way
    /// out are waited for by `cgroup.events`. A cgroup that is gone already is no error.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.full, Instant::now() + REMOVE_DEADLINE)
    }

    /// Removes the cgroup at `full` if it has neither processes nor children; tells whether it is
    /// gone.
    pub fn remove_unused(full: &Path) -> bool {
        matches!(
            unlinkat(CWD, full, AtFlags::REMOVEDIR),
            Ok(()) | Err(Errno::NOENT)
        )
    }

    /// Whether the directory still exists.
    pub fn exists(&self) -> bool {
        rustix::fs::accessat(
            self.fd(),
            "cgroup.procs",
            rustix::fs::Access::EXISTS,
            AtFlags::empty(),
        )
        .is_ok()
    }
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(CWD, path, flags, Mode::empty())
}

/// mkdir that takes an existing directory and remembers a new one.
fn make_dir(path: &Path, made: &mut Vec<PathBuf>) -> rustix::io::Result<()> {
    match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            made.push(path.to_owned());
            Ok(())
        }
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn read_controllers(dir: BorrowedFd<'_>, path: &Path, file: &str) -> Result<Controllers> {
    files::read(dir, file)
        .map(|text| Controllers::parse(&text))
        .map_err(|errno| io_error("read", &path.join(file), errno))
}

/// Enables what `dir` can enable of `missing`; only a needed controller is worth an error.
fn enable_level(
    dir: BorrowedFd<'_>,
    path: &Path,
    missing: Controllers,
    needed: Controllers,
) -> Result<()> {
    let enabled = read_controllers(dir, path, SUBTREE_CONTROL)?;
    let offered = read_controllers(dir, path, "cgroup.controllers")?;
    let todo = missing.intersection(offered).difference(enabled);
    if todo.is_empty() {
        return Ok(());
    }
    let Err(refused) = write_subtree_control(dir, todo) else {
        return Ok(());
    };
    if matches!(refused, Errno::ACCESS | Errno::PERM | Errno::ROFS) {
        // Not ours to give: a limit that misses its controller will say so.
        return Ok(());
    }
    let controllers = todo.intersection(needed);
    if refused == Errno::BUSY {
        let path = path.to_owned();
        return if controllers.is_empty() {
            Ok(())
        } else {
            Err(CgroupError::InternalProcesses { controllers, path })
        };
    }
    enable_one_by_one(dir, path, todo, needed)
}

/// Enables controllers for the children, all or none.
///
/// The kernel refuses domain controllers beside processes with EBUSY. Threaded controllers alone
/// it would take, but that makes the cgroup the root of a threaded subtree, whose new children
/// can hold nothing: refused here in the same way.
fn write_subtree_control(dir: BorrowedFd<'_>, controllers: Controllers) -> rustix::io::Result<()> {
    if Controllers::THREADED.contains(controllers)
        // Only the root cgroup has no type.
        && files::read(dir, "cgroup.type").is_ok()
        && !files::read(dir, "cgroup.procs")?.is_empty()
    {
        return Err(Errno::BUSY);
    }
    files::write(dir, SUBTREE_CONTROL, &controllers.enable_text())
}

/// The way for a kernel that knows a controller's name and cannot enable it.
fn enable_one_by_one(
    dir: BorrowedFd<'_>,
    path: &Path,
    todo: Controllers,
    needed: Controllers,
) -> Result<()> {
    for one in todo.names().filter_map(Controllers::by_name) {
        match write_subtree_control(dir, one) {
            Err(errno) if needed.contains(one) => {
                let path = path.join(SUBTREE_CONTROL);
                return Err(io_error(&format!("enable {one} in"), &path, errno));
            }
            _ => {}
        }
    }
    Ok(())
}

fn collect_pids(
    dir: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
    pids: &mut Vec<i32>,
) -> Result<()> {
    let text = match files::read(dir, "cgroup.procs") {
        Ok(text) => text,
        // A threaded cgroup lists threads only.
        Err(Errno::OPNOTSUPP) => files::read(dir, "cgroup.threads")
            .map_err(|errno| io_error("read", &path.join("cgroup.threads"), errno))?,
        // The cgroup was removed meanwhile: it has no processes.
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(errno) => return Err(io_error("read", &path.join("cgroup.procs"), errno)),
    };
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .filter(|pid| *pid > 0),
    );
    if recursive {
        for child in child_dirs(path)? {
            match open_dir(&child) {
                Ok(fd) => collect_pids(fd.as_fd(), &child, true, pids)?,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(io_error("open cgroup", &child, errno)),
            }
        }
    }
    Ok(())
}

/// Child cgroups of `path`; none if it is gone.
fn child_dirs(path: &Path) -> Result<Vec<PathBuf>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let list = openat(CWD, path, flags, Mode::empty()).and_then(Dir::new);
    let entries = match list {
        Ok(entries) => entries,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(io_error("list cgroup", path, errno)),
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|errno| io_error("list cgroup", path, errno))?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            children.push(path.join(name.to_string_lossy().as_ref()));
        }
    }
    Ok(children)
}

fn remove_tree(path: &Path, deadline: Instant) -> Result<()> {
    let mut waited = false;
    loop {
        match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() < deadline => {}
            Err(errno) => return Err(io_error("remove cgroup", path, errno)),
        }
        if waited {
            // Unpopulated and still busy: a child appeared after they were listed.
            std::thread::sleep(Duration::from_millis(1));
        }
        for child in child_dirs(path)? {
            remove_tree(&child, deadline)?;
        }
        if !state::wait_event(path, "populated", "0", deadline)? {
            return Err(CgroupError::Timeout {
                path: path.to_owned(),
                state: "empty",
                seconds: REMOVE_DEADLINE.as_secs(),
            });
        }
        waited = true;
    }
}
