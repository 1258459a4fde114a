//! The place where a host's commands run and its files lie, seen from this process.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::native::ENTER;
use crate::error::{Error, Result};

/// Environment of this process that is of use inside: how much is logged, and the terminal.
const PASSED_ON: [&str; 4] = ["TERM", "RUST_LOG", "RUST_BACKTRACE", "XEBEC_LOG"];

/// Where a host is.
#[derive(Debug, Clone)]
pub enum Site {
    /// Right here: this process runs in the host (the VM's side of a job).
    Here,
    /// In the namespaces of another process.
    Inside {
        /// The host's first process.
        pid: i32,
        /// The program that knows the way into it.
        program: PathBuf,
        /// Set for every command: absent cgroup controllers are no error.
        ignore_missing_controllers: bool,
    },
}

impl Site {
    /// A command that will run in the host, as root, in /root, with a clean environment.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        self.command_in(Path::new("/root"), argv)
    }

    /// As [`Site::command`], in another working directory.
    pub fn command_in<S: AsRef<OsStr>>(&self, directory: &Path, argv: &[S]) -> Command {
        let mut command = match self {
            Self::Here => {
                let mut words = argv.iter();
                let mut command = Command::new(words.next().map_or(OsStr::new(""), AsRef::as_ref));
                command.args(words).current_dir(directory);
                command
            }
            Self::Inside { pid, program, .. } => {
                let mut command = Command::new(program);
                command
                    .args([ENTER, &pid.to_string()])
                    .arg(directory)
                    .arg("--")
                    .args(argv);
                command
            }
        };
        command.env_clear();
        command.envs(
            PASSED_ON
                .iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        command.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command.env("HOME", "/root").env("LANG", "C.UTF-8");
        if let Self::Inside {
            ignore_missing_controllers: true,
            ..
        } = self
        {
            command.env("XEBEC_IGNORE_MISSING_CONTROLLERS", "1");
        }
        command
    }

    /// What this process calls the host's file `path`: good for sockets and plain files; absolute
    /// symbolic links on the way would lead out of the host, so use [`Site::write`] to write.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match self {
            Self::Here => path.to_owned(),
            Self::Inside { pid, .. } => {
                let inside = path.strip_prefix("/").unwrap_or(path);
                PathBuf::from(format!("/proc/{pid}/root")).join(inside)
            }
        }
    }

    /// Writes a file of the host, making the directories above it.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let mut file = self
            .create(path)
            .map_err(Error::errno("create in the host", path))?;
        file.write_all(content.as_ref())
            .map_err(Error::file("write in the host", path))
    }

    fn create(&self, path: &Path) -> rustix::io::Result<fs::File> {
        let mut directory = self.root()?;
        let relative = path.strip_prefix("/").unwrap_or(path);
        let mut above: Vec<_> = relative.ancestors().skip(1).collect();
        above.reverse();
        let root = directory
            .as_fd()
            .try_clone_to_owned()
            .map_err(|_| Errno::MFILE)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for step in above
            .into_iter()
            .filter(|step| !step.as_os_str().is_empty())
        {
            match mkdirat(
                &directory,
                step.file_name().unwrap_or_default(),
                Mode::from(0o755),
            ) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            directory = openat2(&root, step, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let mode = Mode::from(0o644);
        openat2(&root, relative, flags, mode, ResolveFlags::IN_ROOT).map(fs::File::from)
    }

    fn root(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(self.path("/"), flags, Mode::empty())
    }

    /// Runs `work` on a thread of its own in the host's network namespace. Sockets that it makes
    /// stay there, and so do threads that it starts.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let Self::Inside { pid, .. } = self else {
            return Ok(work());
        };
        let pid = Pid::from_raw(*pid).ok_or_else(|| Error::invalid("the host's pid", pid))?;
        let host = pidfd_open(pid, PidfdFlags::empty()).map_err(Error::system("find the host"))?;
        let joined = thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_thread_name_spaces(host.as_fd(), ThreadNameSpaceType::NETWORK)
                        .map(|()| work())
                })
                .join()
        });
        match joined {
            Ok(result) => result.map_err(Error::system("join the host's network namespace")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
