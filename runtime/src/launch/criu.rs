//! A process of CRIU's: born like a container's, with its descriptors where CRIU expects them.

use std::env;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdir, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::mount::{MountFlags, mount, mount_bind_recursive};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::channel::{self, ChildEnd, Message, ParentEnd, Report};
use super::hooks::own_environment;
use super::parent::{Birth, died, hide_own_binary, settle};
use super::stdio::{ChildStdio, place_streams};
use crate::error::{At as _, Error, Failure, Result, Step};
use crate::request::Launched;
use crate::rootfs;
use crate::sys::{self, CStrArray, clone3};

/// Where programs are unless `PATH` says so.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The first number after the standard streams: CRIU's end of the session.
const SESSION: i32 = 3;

/// What CRIU is started with.
#[derive(Debug)]
pub(crate) struct CriuJob {
    program: CString,
    argv: CStrArray,
    env: CStrArray,
    streams: ChildStdio,
    /// They become 3, 4, …
    files: Vec<OwnedFd>,
    root: Option<RootMount>,
    network: Option<OwnedFd>,
}

/// A root file system, mounted again where only CRIU sees it: it wants a mount whose parent is not
/// covered, and nothing of it is left on the host when CRIU or its caller is killed.
#[derive(Debug)]
pub(crate) struct RootMount {
    pub(crate) rootfs: CString,
    pub(crate) at: CString,
    pub(crate) staging: Option<Staging>,
}

/// File systems in memory that are made and filled where only CRIU sees them, for it to bind into
/// the container: by itself it would run a tar for each.
#[derive(Debug)]
pub(crate) struct Staging {
    /// A directory, which is covered.
    pub(crate) at: CString,
    pub(crate) filesystems: Vec<StagedFilesystem>,
}

#[derive(Debug)]
pub(crate) struct StagedFilesystem {
    /// A path in the staging directory.
    pub(crate) at: CString,
    /// As `mount(2)` takes them.
    pub(crate) options: CString,
    /// A directory with what is to be in it.
    pub(crate) content: OwnedFd,
}

impl CriuJob {
    /// Prepares `criu swrk` with its end of the session and further files, from number 4 on. It looks
    /// for programs in `first` before it does in `PATH`.
    pub(crate) fn new(
        (program, first): (&Path, Option<&Path>),
        session: OwnedFd,
        files: Vec<OwnedFd>,
        streams: ChildStdio,
        root: Option<RootMount>,
    ) -> Result<Self> {
        let found = find(program, env::var_os("PATH").as_deref())?;
        let mut all = vec![session];
        all.extend(files);
        let program = CString::new(found.into_os_string().into_vec())
            .map_err(|_| Error::InvalidArgument("criu's path has a zero byte".to_owned()))?;
        let argv = [c"criu", c"swrk", c"3"].map(ToOwned::to_owned);
        Ok(Self {
            program,
            argv: CStrArray::new(argv.to_vec(), false),
            env: CStrArray::new(environment(first)?, false),
            streams,
            files: out_of_the_way(&all)?,
            root,
            network: None,
        })
    }

    /// Has it be in a network namespace.
    pub(crate) fn within(mut self, network: Option<OwnedFd>) -> Self {
        self.network = network;
        self
    }

    /// The first number that is not CRIU's.
    fn end(&self) -> i32 {
        SESSION + self.files.len() as i32
    }
}

/// This process's environment, with a directory before all others of `PATH`.
fn environment(first: Option<&Path>) -> Result<Vec<CString>> {
    let mut lines = own_environment();
    let Some(first) = first else { return Ok(lines) };
    let path = env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into());
    let all = std::iter::once(first.to_owned()).chain(env::split_paths(&path));
    let all = env::join_paths(all).map_err(|e| Error::InvalidArgument(e.to_string()))?;
    let line = [b"PATH=", all.as_bytes()].concat();
    lines.retain(|line| !line.as_bytes().starts_with(b"PATH="));
    // It was put together from what has none.
    lines.extend(CString::new(line));
    Ok(lines)
}

/// Moves descriptors above the numbers that any of them is to get.
fn out_of_the_way(files: &[OwnedFd]) -> Result<Vec<OwnedFd>> {
    let first = SESSION + files.len() as i32 + 1;
    let lift = |file| fcntl_dupfd_cloexec(file, first).map_err(Error::os("dup"));
    files.iter().map(lift).collect()
}

/// Finds a program as a shell does.
fn find(program: &Path, path: Option<&OsStr>) -> Result<PathBuf> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return Ok(program.to_owned());
    }
    let usual = OsString::from(USUAL_PATH);
    let is_program = |file: &PathBuf| {
        let found = file.metadata();
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let name = program.display();
    env::split_paths(path.unwrap_or(&usual))
        .map(|directory| directory.join(program))
        .find(is_program)
        .ok_or_else(|| Error::Criu(format!("there is no {name} in PATH")))
}

/// Starts it, in the cgroup and as the child of whoever `birth` says.
pub(crate) fn start_criu(job: &CriuJob, birth: Birth<'_>) -> Result<Launched> {
    hide_own_binary()?;
    let (parent, child) = channel::pair()?;
    let child = child.above(job.end())?;
    let (pid, pidfd) =
        clone3(&birth.request(0), || become_criu(job, &child)).map_err(Error::os("clone3"))?;
    drop(child);
    let launched = Launched::new(pid, pidfd);
    let seen_off = see_off(&parent, &launched);
    settle(launched, seen_off, birth.reparent)
}

/// Listens until the child has become CRIU.
fn see_off(parent: &ParentEnd, launched: &Launched) -> Result<()> {
    let mut executing = false;
    loop {
        match parent.receive()? {
            Message::Executing => executing = true,
            Message::Closed if executing => return Ok(()),
            Message::Failed(failure) => return Err(Error::Criu(failure.to_string())),
            _ => return Err(died(Some(launched.pidfd.as_fd()))),
        }
    }
}

/// Comes back only when it cannot be executed.
fn become_criu(job: &CriuJob, channel: &ChildEnd) -> i32 {
    channel.settle_in();
    let failure = match prepare(job) {
        Ok(()) => match channel.send(Report::Executing) {
            Ok(()) => Failure {
                step: Step::FindProgram,
                errno: sys::execve(&job.program, &job.argv, &job.env),
                detail: job.program.to_bytes(),
            },
            Err(_) => return 1,
        },
        Err(failure) => failure,
    };
    // Without a parent there is nobody to tell.
    let _ = channel.send(Report::Failed(failure));
    1
}

fn prepare(job: &CriuJob) -> std::result::Result<(), Failure<'_>> {
    sys::default_dispositions();
    sys::unblock_all();
    if let Some(network) = &job.network {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(network.as_fd(), kind).at(Step::JoinNamespace, b"net")?;
    }
    if let Some(root) = &job.root {
        sys::unshare(libc::CLONE_NEWNS as u64).at(Step::Unshare, b"mnt")?;
        rootfs::make_private()?;
        mount_bind_recursive(&root.rootfs, &root.at)
            .at(Step::AttachRootfs, root.rootfs.to_bytes())?;
        if let Some(staging) = &root.staging {
            stage(staging)?;
        }
    }
    place_streams(&job.streams, 0)?;
    let place = || -> std::result::Result<(), Errno> {
        for (file, number) in job.files.iter().zip(SESSION..) {
            sys::duplicate_to(file.as_raw_fd(), number)?;
        }
        sys::close_on_exec_from(job.end() as u32)
    };
    place().at(Step::Stdio, b"")
}

fn stage(staging: &Staging) -> std::result::Result<(), Failure<'_>> {
    let make =
        |at: &CStr, options: &CStr| mount(c"tmpfs", at, c"tmpfs", MountFlags::empty(), options);
    make(&staging.at, c"mode=0700").at(Step::Mount, staging.at.to_bytes())?;
    for filesystem in &staging.filesystems {
        let fill = || -> std::result::Result<(), Errno> {
            mkdir(&filesystem.at, Mode::RWXU)?;
            make(&filesystem.at, &filesystem.options)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let made = open(&filesystem.at, flags, Mode::empty())?;
            rootfs::copy_filesystem(filesystem.content.as_fd(), made.as_fd())
        };
        fill().at(Step::CopyUp, filesystem.at.to_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_for_in_the_path() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let program = directory.path().join("criu");
        std::fs::write(&program, "").expect("written");
        let path = directory.path().as_os_str();
        let missing = find(Path::new("criu"), Some(path)).expect_err("not executable");
        assert!(missing.to_string().contains("no criu in PATH"), "{missing}");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&program, executable).expect("made executable");
        assert_eq!(find(Path::new("criu"), Some(path)).expect("found"), program);
        let given = find(Path::new("/opt/criu"), Some(path)).expect("as it is");
        assert_eq!(given, Path::new("/opt/criu"));
    }
}
