use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use oci_spec::runtime::{Process, User};
use xebec_runtime::{Console, ContainerId, Error, ExecRequest, Result, Signals};

use super::Context;
use super::foreground::{attend, own_size};
use super::log::Log;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec exec web ps\n  xebec exec -t web sh\n  xebec exec --process p.json --detach web"
)]
pub(super) struct Exec {
    /// Working directory inside the container
    #[arg(long, value_name = "DIR", value_parser = clap::value_parser!(OsString))]
    cwd: Option<OsString>,
    /// Add or change an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// User, and optionally group, by number
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Further groups, by number
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// File with the whole process, as in config.json
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Return as soon as the process executes
    #[arg(short, long)]
    detach: bool,
    /// File that gets the pid of the process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the process
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Unix socket that receives the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Forbid the process to gain privileges by executing
    #[arg(long)]
    no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// Pass N further descriptors, from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// Start in this cgroup below the container's
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Start (frozen) even in a paused container
    #[arg(long)]
    ignore_paused: bool,
    /// Name of the container
    id: String,
    /// Program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Exec {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        if self.detach && self.tty && self.console_socket.is_none() {
            return Err(Error::InvalidArgument(
                "cannot allocate tty if runc will detach without setting console socket".into(),
            ));
        }
        let id = self.id.parse()?;
        let process = self.process(&id, context)?;
        let terminal = process.terminal().unwrap_or(false);
        if self.console_socket.is_some() && !(self.detach && terminal) {
            return Err(Error::InvalidArgument(
                "cannot use console socket if runc will not detach or allocate tty".into(),
            ));
        }
        let signals = if self.detach {
            None
        } else {
            Some(Signals::block()?)
        };
        let mut request = ExecRequest::new(id, process);
        request.console = match self.console_socket {
            _ if !self.detach => Console::Foreground,
            Some(socket) => Console::SocketPath(socket),
            None => Console::None,
        };
        if !self.detach {
            request.console_size = own_size();
        }
        request.pid_file = self.pid_file;
        request.pidfd_socket = self.pidfd_socket;
        request.preserve_fds = self.preserve_fds;
        request.cgroup = self.cgroup;
        request.ignore_paused = self.ignore_paused;
        let launched = context.runtime.exec(request)?;
        context.log.launched(&launched);
        match signals {
            Some(signals) => attend(launched, &signals),
            None => Ok(0),
        }
    }

    /// The process of the document, or the container's own with what the options change.
    fn process(&self, id: &ContainerId, context: &Context) -> Result<Process> {
        let (process, warnings) = match &self.process {
            Some(file) => xebec_runtime::read_process(file)?,
            None => context.runtime.process_of(id)?,
        };
        for warning in &warnings {
            context.log.warning(warning);
        }
        if self.process.is_some() {
            let (containers, _) = context.runtime.process_of(id)?;
            Ok(inherit(process, &containers))
        } else {
            self.amend(process, &context.log)
        }
    }

    fn amend(&self, mut process: Process, log: &Log) -> Result<Process> {
        if self.args.is_empty() {
            return Err(Error::InvalidArgument("exec args cannot be empty".into()));
        }
        process.set_args(Some(self.args.clone()));
        process.set_terminal(Some(self.tty));
        if let Some(cwd) = self.cwd.as_ref().filter(|cwd| !cwd.is_empty()) {
            process.set_cwd(cwd.into());
        }
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(self.env.iter().cloned());
        process.set_env(Some(env));
        if let Some(label) = &self.process_label {
            process.set_selinux_label(Some(label.clone()));
        }
        if let Some(profile) = &self.apparmor {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        self.amend_user(&mut process)?;
        self.amend_capabilities(&mut process, log);
        Ok(process)
    }

    fn amend_user(&self, process: &mut Process) -> Result<()> {
        let mut user: User = process.user().clone();
        if let Some(text) = &self.user {
            let (uid, gid) = match text.split_once(':') {
                Some((uid, gid)) => (uid, Some(number(gid, text)?)),
                None => (text.as_str(), None),
            };
            user.set_uid(number(uid, text)?);
            if let Some(gid) = gid {
                user.set_gid(gid);
            }
        }
        if !self.additional_gids.is_empty() {
            let mut gids = user.additional_gids().clone().unwrap_or_default();
            gids.extend(&self.additional_gids);
            user.set_additional_gids(Some(gids));
        }
        process.set_user(user);
        Ok(())
    }

    /// As runc: into every set, ambient only where inheritable has it already.
    fn amend_capabilities(&self, process: &mut Process, log: &Log) {
        // A process without the section has every capability already.
        let Some(mut sets) = process.capabilities().clone() else {
            return;
        };
        let mut unknown = Vec::new();
        for name in &self.cap {
            // The crate's names lack the prefix that everyone writes.
            let bare = name.strip_prefix("CAP_").unwrap_or(name);
            let Ok(cap) = bare.parse() else {
                unknown.push(name.as_str());
                continue;
            };
            let with = |set: &Option<oci_spec::runtime::Capabilities>| {
                let mut set = set.clone().unwrap_or_default();
                set.insert(cap);
                Some(set)
            };
            let inheritable = sets
                .inheritable()
                .as_ref()
                .is_some_and(|inheritable| inheritable.contains(&cap));
            sets.set_bounding(with(sets.bounding()));
            sets.set_effective(with(sets.effective()));
            sets.set_permitted(with(sets.permitted()));
            if inheritable {
                sets.set_ambient(with(sets.ambient()));
            }
        }
        if !unknown.is_empty() {
            let names = unknown.join(" ");
            log.warning(&format!(
                "ignoring unknown or unavailable capabilities: [{names}]"
            ));
        }
        process.set_capabilities(Some(sets));
    }
}

/// What a process document does not give is as the container's own process has it, except for
/// resource limits, of which it then has none (runc's rules).
fn inherit(mut process: Process, containers: &Process) -> Process {
    macro_rules! fall_back {
        ($($get:ident $set:ident),*) => {
            $(if process.$get().is_none() {
                process.$set(containers.$get().clone());
            })*
        };
    }
    fall_back!(
        capabilities set_capabilities,
        apparmor_profile set_apparmor_profile,
        selinux_label set_selinux_label,
        scheduler set_scheduler,
        io_priority set_io_priority,
        exec_cpu_affinity set_exec_cpu_affinity
    );
    process
}

fn number(text: &str, whole: &str) -> Result<u32> {
    text.parse()
        .map_err(|_| Error::InvalidArgument(format!("--user: {whole:?} is not UID[:GID]")))
}
