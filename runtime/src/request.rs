//! What a caller hands in and gets back: requests own their descriptors.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::Process;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::lstat;
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::error::{Error, Result, errno_words};
use crate::pages::PageProgram;
use crate::runtime::CloneRequest;
use crate::state::ContainerId;
use crate::template::{Fit, WantedTemplate};

/// Standard streams of a new process.
#[derive(Debug, Default)]
pub enum Stdio {
    /// The caller's own 0, 1 and 2.
    #[default]
    Inherit,
    /// These; `None` is `/dev/null`.
    Fds {
        /// Standard input.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: Option<OwnedFd>,
        /// Standard error.
        stderr: Option<OwnedFd>,
    },
}

impl Stdio {
    /// `/dev/null`, three times.
    pub const NONE: Self = Self::Fds {
        stdin: None,
        stdout: None,
        stderr: None,
    };
}

/// Who receives the master of the pseudo-terminal when `process.terminal` is set.
#[derive(Debug, Default)]
pub enum Console {
    /// Nobody: only allowed when the process asks for no terminal.
    #[default]
    None,
    /// The listener on this unix socket gets it by `SCM_RIGHTS`, as with runc's `--console-socket`.
    SocketPath(PathBuf),
    /// The peer of this connected unix socket gets it by `SCM_RIGHTS`.
    SocketFd(OwnedFd),
    /// The caller itself, by [`Launched::terminal`], to print what the container prints: a line feed
    /// stays one character, for our own terminal, or whatever reads our output instead, to make the
    /// most of.
    Foreground,
}

/// A container to be created from a bundle.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its name, unique below the state root.
    pub id: ContainerId,
    /// The configuration, when it is not the bundle's `config.json`.
    pub config: Option<PathBuf>,
    /// Directory with `config.json`; a relative path starts at the caller's working directory.
    pub bundle: PathBuf,
    /// Streams of the init process.
    pub stdio: Stdio,
    /// Receiver of the terminal.
    pub console: Console,
    /// Rows and columns of the terminal, in the place of `process.consoleSize`.
    pub console_size: Option<(u16, u16)>,
    /// File that gets the pid of init, as text.
    pub pid_file: Option<PathBuf>,
    /// The listener on this unix socket gets a pidfd of init by `SCM_RIGHTS`.
    pub pidfd_socket: Option<PathBuf>,
    /// Move the root file system over `/` instead of `pivot_root` (for initramfs hosts).
    pub no_pivot: bool,
    /// Stay in the caller's session keyring.
    pub no_new_keyring: bool,
    /// How many descriptors from 3 on reach the process.
    pub preserve_fds: u32,
    /// Variables for the process besides its own, as `NAME=VALUE`.
    pub extra_env: Vec<String>,
    /// Give the process a socket to tell its readiness to ([`crate::Runtime::notify_socket`]).
    pub notify: bool,
    /// `CLONE_PARENT`: the caller's parent becomes the parent of init, and gets no exit signal.
    pub reparent: bool,
    /// The cgroup is called as the container is, whatever the configuration calls it: for
    /// containers that share a configuration.
    pub own_cgroup: bool,
    /// Annotations may name a template, of which the container is then a clone; without this nobody
    /// looks at them.
    pub templates: Option<TemplateAccess>,
}

/// What a container needs to be a clone because its annotations say so.
#[derive(Clone, Debug)]
pub struct TemplateAccess {
    /// Directory of the templates that they may name.
    pub root: PathBuf,
    /// CRIU's program; a bare name is looked for in `PATH`.
    pub criu: PathBuf,
    /// Directory that keeps CRIU's log and statistics.
    pub work_path: Option<PathBuf>,
    /// Who serves the memory in the mode `uffd`.
    pub page_program: Option<PageProgram>,
}

impl TemplateAccess {
    /// The clone that annotations ask for, which gets no right that its configuration does not
    /// give.
    pub fn request(self, wanted: WantedTemplate) -> CloneRequest {
        CloneRequest {
            templates: self.root,
            template: wanted.name,
            memory: wanted.memory,
            hot: true,
            criu: self.criu,
            work_path: self.work_path,
            page_program: self.page_program,
            fit: Fit::Rights,
        }
    }
}

impl CreateRequest {
    /// A request with inherited streams and every option off.
    pub fn new(id: ContainerId, bundle: impl Into<PathBuf>) -> Self {
        Self {
            id,
            config: None,
            bundle: bundle.into(),
            stdio: Stdio::Inherit,
            console: Console::None,
            console_size: None,
            pid_file: None,
            pidfd_socket: None,
            no_pivot: false,
            no_new_keyring: false,
            preserve_fds: 0,
            extra_env: Vec::new(),
            notify: false,
            reparent: false,
            own_cgroup: false,
            templates: None,
        }
    }
}

/// A further process for a running container.
#[derive(Debug)]
pub struct ExecRequest {
    /// The container.
    pub id: ContainerId,
    /// The process, with everything it shall have (nothing is taken over from init's).
    pub process: Process,
    /// Its streams.
    pub stdio: Stdio,
    /// Receiver of the terminal.
    pub console: Console,
    /// Rows and columns of the terminal, in the place of `process.consoleSize`.
    pub console_size: Option<(u16, u16)>,
    /// File that gets the pid, as text.
    pub pid_file: Option<PathBuf>,
    /// The listener on this unix socket gets a pidfd of the process by `SCM_RIGHTS`.
    pub pidfd_socket: Option<PathBuf>,
    /// Cgroup below the container's that the process starts in.
    pub cgroup: Option<String>,
    /// How many descriptors from 3 on reach the process.
    pub preserve_fds: u32,
    /// Start it (frozen) even when the container is paused.
    pub ignore_paused: bool,
    /// `CLONE_PARENT`: the caller's parent becomes the parent, and gets no exit signal.
    pub reparent: bool,
}

impl ExecRequest {
    /// A request with inherited streams and every option off.
    pub fn new(id: ContainerId, process: Process) -> Self {
        Self {
            id,
            process,
            stdio: Stdio::Inherit,
            console: Console::None,
            console_size: None,
            pid_file: None,
            pidfd_socket: None,
            cgroup: None,
            preserve_fds: 0,
            ignore_paused: false,
            reparent: false,
        }
    }
}

/// Keeps descriptors from 3 on free of this process's own, for as many as are to be preserved:
/// the numbers that nobody has opened are taken by an event counter, which the program does not
/// get. Only for a caller that has opened none of its own yet; one of those would stay open while
/// paths of the image are followed.
///
/// # Errors
/// This process may not have so many descriptors.
pub fn reserve_preserved(count: u32) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let failed = |errno| {
        let reason = errno_words(Errno::raw_os_error(errno));
        Error::InvalidArgument(format!("cannot preserve {count} descriptors: {reason}"))
    };
    let nothing = eventfd(0, EventfdFlags::CLOEXEC).map_err(failed)?;
    for number in 3..3 + u64::from(count) {
        let number = i32::try_from(number).map_err(|_| failed(Errno::MFILE))?;
        if lstat(format!("/proc/self/fd/{number}")).is_err() {
            // Kept until the program is executed.
            fcntl_dupfd_cloexec(&nothing, number)
                .map(IntoRawFd::into_raw_fd)
                .map_err(failed)?;
        }
    }
    // It may have one of these numbers itself.
    let _ = nothing.into_raw_fd();
    Ok(())
}

/// Takes over a descriptor that this process was given, and that nothing in it owns yet.
///
/// # Errors
/// It is not open, or not for writing.
pub fn adopt_writable(number: i32) -> Result<OwnedFd> {
    let refuse = |errno| {
        let reason = errno_words(Errno::raw_os_error(errno));
        Error::InvalidArgument(format!("invalid descriptor {number}: {reason}"))
    };
    if number < 3 {
        return Err(refuse(Errno::BADF));
    }
    crate::sys::adopt(number).map_err(refuse)
}

/// A process that the runtime has started.
#[derive(Debug)]
pub struct Launched {
    /// Its pid in the caller's pid namespace.
    pub pid: i32,
    /// The same, immune to reuse; becomes readable when the process exits.
    pub pidfd: OwnedFd,
    /// The master of its terminal, if it has one and that is [`Console::Foreground`].
    pub terminal: Option<OwnedFd>,
    /// What was left out of the configuration, for the log: unknown capabilities, limits without a
    /// controller, …
    pub warnings: Vec<String>,
    /// What only somebody who looks for a fault wants to know, in runc's words.
    pub notes: Vec<String>,
}

impl Launched {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd,
            terminal: None,
            warnings: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Notes which flags the seccomp filter was installed with.
    pub(crate) fn note_filter(&mut self, flags: Option<u32>) {
        self.notes
            .extend(flags.map(|flags| format!("seccomp filter flags: {flags}")));
    }
}
