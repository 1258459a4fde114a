//! Failures of a new process: (step, errno, detail) as data, and their words.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// Declares the steps with their words, in one table.
macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident => $words:literal,)*) => {
        /// Where a new process was when it failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Step { $($(#[$doc])* $name,)* }

        impl Step {
            const ALL: &[Self] = &[$(Self::$name,)*];

            fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

steps! {
    /// Waiting for the parent's word.
    Sync => "wait for the runtime",
    /// Entering namespaces by path or by pidfd.
    JoinNamespace => "join namespace",
    /// Making the namespaces inside a joined user namespace.
    Unshare => "create namespaces",
    /// Becoming root of the user namespace.
    UserNamespace => "become root of the user namespace",
    /// Making every inherited mount private.
    Propagation => "make mounts private",
    /// Attaching the root file system.
    AttachRootfs => "attach rootfs at",
    /// Entering the mount namespace that is made of the root file system.
    EnterRootfs => "enter mount namespace of rootfs",
    /// Making a file system.
    Filesystem => "create file system",
    /// Setting a parameter of a file system.
    FilesystemOption => "option",
    /// Finding or making the place of a mount.
    MountTarget => "create mountpoint",
    /// The place of a proc or sysfs is not a plain directory.
    PlainTarget => "filesystem must be mounted on ordinary directory",
    /// The place of a mount turned out to be inside a proc file system.
    InsideProc => "cannot be mounted because it is inside /proc",
    /// Attaching a mount.
    Mount => "mount",
    /// Filling a tmpfs with what it covers.
    CopyUp => "tmpcopyup",
    /// Mapping the ids of a new file system.
    MapIds => "map ids",
    /// Labelling the root of a new file system.
    LabelMount => "set SELinux label",
    /// Making a symlink in place of a mount.
    Symlink => "copy symlink",
    /// Changing an existing mount.
    Remount => "remount",
    /// Taking a mount away.
    Unmount => "unmount",
    /// Making a mount read-only once it is filled.
    Seal => "make read-only",
    /// Making a device node or link.
    Device => "create device",
    /// Setting a kernel parameter.
    Sysctl => "write sysctl",
    /// Hiding a path.
    Mask => "mask path",
    /// Making a path read-only.
    ReadonlyPath => "make path read-only",
    /// Making the working directory.
    CreateCwd => "create cwd",
    /// Changing the root.
    PivotRoot => "pivot_root",
    /// Setting the host or domain name.
    Hostname => "set host name",
    /// Setting the loopback device up.
    Loopback => "set up loopback device",
    /// Joining a session keyring.
    Keyring => "join session keyring",
    /// Opening the pseudo-terminal.
    Terminal => "open terminal",
    /// Handing the terminal over.
    ConsoleSocket => "send terminal to console socket",
    /// Placing the standard streams.
    Stdio => "set up standard streams",
    /// Setting a resource limit.
    Rlimit => "set rlimit",
    /// Adjusting the OOM score.
    OomScore => "set oom_score_adj",
    /// Setting scheduler, I/O priority, processors, memory policy or personality.
    Scheduling => "error setting",
    /// Changing user and groups.
    User => "set user",
    /// Setting capabilities.
    Capabilities => "set capabilities",
    /// Naming the AppArmor profile of the program.
    AppArmor => "unable to apply apparmor profile: apparmor failed to apply profile",
    /// Setting an SELinux label.
    SeLinux => "unable to apply SELinux label",
    /// Setting no_new_privs.
    NoNewPrivileges => "set no_new_privs",
    /// Installing the seccomp filter.
    Seccomp => "install seccomp filter",
    /// Changing to the working directory; the process's own or what is there instead.
    Chdir => "chdir to cwd",
    /// The working directory turned out to be outside the container.
    CwdOutside => "current working directory is outside of container mount namespace root",
    /// A hook in the container's namespaces.
    CreateContainerHook => "createContainer hook",
    /// A hook before the program.
    StartContainerHook => "startContainer hook",
    /// Looking for the program, which was given as a path.
    FindProgram => "exec",
    /// Looking for the program in `PATH`.
    SearchProgram => "exec",
    /// Executing the program.
    Execute => "exec",
}

impl Step {
    /// Whether it is about one mount, which the detail names.
    fn is_mount(self) -> bool {
        matches!(
            self,
            Self::Filesystem
                | Self::MountTarget
                | Self::Mount
                | Self::CopyUp
                | Self::MapIds
                | Self::LabelMount
                | Self::Symlink
                | Self::Remount
                | Self::Seal
        )
    }

    /// The step of this number, as the child sent it.
    pub(crate) fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.get(usize::from(raw)).copied()
    }
}

/// A failure inside the child, which has nothing but borrowed memory to tell it with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure<'p> {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
    /// On what; may be empty.
    pub(crate) detail: &'p [u8],
}

/// Adds the step and its object to an errno.
pub(crate) trait At<T> {
    /// This failed at `step`, on `detail`.
    fn at(self, step: Step, detail: &[u8]) -> Result<T, Failure<'_>>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step, detail: &[u8]) -> Result<T, Failure<'_>> {
        self.map_err(|errno| Failure {
            step,
            errno,
            detail,
        })
    }
}

/// A failure inside the new process, rebuilt from what it sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildFailure {
    /// Where it was.
    pub step: Step,
    /// The kernel's answer.
    pub errno: i32,
    /// On what: a path, a program, a value; may be empty.
    pub detail: String,
}

impl From<Failure<'_>> for ChildFailure {
    fn from(failure: Failure<'_>) -> Self {
        Self {
            step: failure.step,
            errno: failure.errno.raw_os_error(),
            detail: String::from_utf8_lossy(failure.detail).into_owned(),
        }
    }
}

impl fmt::Display for ChildFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, detail, .. } = self;
        let reason = errno_words(self.errno);
        match step {
            Step::FindProgram if self.errno == libc::EACCES || self.errno == libc::EISDIR => {
                write!(f, "exec: {detail:?}: {reason}")
            }
            Step::FindProgram => write!(f, "exec: {detail:?}: stat {detail}: {reason}"),
            Step::SearchProgram => {
                write!(f, "exec: {detail:?}: executable file not found in $PATH")
            }
            Step::Execute => write!(f, "exec {detail}: {reason}"),
            Step::Chdir => {
                write!(
                    f,
                    "chdir to cwd ({detail:?}) set in config.json failed: {reason}"
                )
            }
            // The detail names the option.
            Step::FilesystemOption => write!(f, "error mounting {detail}: {reason}"),
            Step::PlainTarget | Step::InsideProc => {
                write!(f, "error mounting {detail}: {}", step.words())
            }
            step if step.is_mount() => {
                write!(f, "error mounting {detail}: {}: {reason}", step.words())
            }
            Step::AppArmor => write!(f, "{}: {detail}: {reason}", step.words()),
            Step::Scheduling => write!(f, "{} {detail}: {reason}", step.words()),
            Step::CwdOutside => write!(f, "{}: possible container breakout", step.words()),
            _ if detail.is_empty() => write!(f, "{}: {reason}", step.words()),
            _ => write!(f, "{} {detail:?}: {reason}", step.words()),
        }
    }
}

/// The kernel's words for an errno in the form that Go programs print and match on.
pub(crate) fn errno_words(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(step: Step, errno: i32, detail: &str) -> String {
        ChildFailure {
            step,
            errno,
            detail: detail.to_owned(),
        }
        .to_string()
    }

    #[test]
    fn texts_that_clients_match_on_are_runcs() {
        for (step, errno, detail, text) in [
            (
                Step::FindProgram,
                libc::ENOENT,
                "/x",
                r#"exec: "/x": stat /x: no such file or directory"#,
            ),
            (
                Step::FindProgram,
                libc::EACCES,
                "/x",
                r#"exec: "/x": permission denied"#,
            ),
            (
                Step::FindProgram,
                libc::EISDIR,
                "/etc",
                r#"exec: "/etc": is a directory"#,
            ),
            (
                Step::SearchProgram,
                libc::ENOENT,
                "foo",
                r#"exec: "foo": executable file not found in $PATH"#,
            ),
            (
                Step::Execute,
                libc::ENOEXEC,
                "/x",
                "exec /x: exec format error",
            ),
            (
                Step::Chdir,
                libc::ENOENT,
                "/no",
                r#"chdir to cwd ("/no") set in config.json failed: no such file or directory"#,
            ),
        ] {
            assert_eq!(words(step, errno, detail), text);
        }
    }

    #[test]
    fn a_step_survives_its_number() {
        for step in Step::ALL {
            assert_eq!(Step::from_raw(*step as u16), Some(*step));
        }
        assert_eq!(Step::from_raw(9999), None);
    }
}
