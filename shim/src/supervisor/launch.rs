//! The launching process: a fork of the supervisor that starts one process, or has CRIU dump one
//! container, and ends. It clones
//! with CLONE_PARENT, so that containers are the supervisor's children, and takes the memory
//! that a launch needs away with it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio as Standard};

use oci_spec::runtime::Process;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use xebec_runtime::{
    CheckpointRequest, Console, ContainerId, CreateRequest, CriuOptions, ExecRequest, Launched,
    RestoreOptions, Runtime, RuntimeOptions, Stdio,
};

use super::message::{Checkpoint, Images, Launch, Origin, Reply, Request, RuntimeRequest};
use super::wire::{Inbox, Message, Outbox};
use crate::engine::{clone_request, manager};
use crate::error::{Context, Result};
use crate::log;
use crate::sys::{self, Fork};

/// A launch that is under way.
#[derive(Debug)]
pub(super) struct Launching {
    /// Name of the launch towards the worker.
    pub(super) ticket: u64,
    /// Key of the record that keeps the pid.
    pub(super) key: Option<String>,
    pid: i32,
    /// The launched program is the launching process itself, once its end of the socket closes.
    becomes_program: bool,
    /// Until the answer is in.
    socket: Option<UnixStream>,
    inbox: Inbox,
    gone: bool,
}

/// How a launch came out: the pid of the process that it leaves, if any, or why it failed.
pub(super) type Outcome = std::result::Result<Option<i32>, String>;

impl Launching {
    /// Forks the launching process. In the fork this does not return.
    pub(super) fn start(
        ticket: u64,
        key: Option<String>,
        request: Request,
        raw: Vec<u8>,
        fds: Vec<OwnedFd>,
    ) -> Result<Launching> {
        let (ours, theirs) = UnixStream::pair().context(|| "make a launch socket".into())?;
        ours.set_nonblocking(true)
            .context(|| "make a launch socket".into())?;
        let becomes_program = matches!(request, Request::Program { .. });
        let supervisor = rustix::process::getpid();
        let message = Message {
            head: request,
            raw,
            fds,
        };
        match sys::fork().context(|| "fork a launching process".into())? {
            Fork::Child => run(supervisor, theirs, message),
            Fork::Parent(pid) => Ok(Launching {
                ticket,
                key,
                pid,
                becomes_program,
                socket: Some(ours),
                inbox: Inbox::default(),
                gone: false,
            }),
        }
    }

    /// The launching process.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// What to poll while the answer is not in.
    pub(super) fn socket(&self) -> Option<&UnixStream> {
        self.socket.as_ref()
    }

    /// True while a child may appear that is nobody's yet.
    pub(super) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// True when nothing of it is left: the answer is in, and the process collected or watched.
    pub(super) fn is_over(&self) -> bool {
        self.socket.is_none() && self.gone
    }

    /// Reads the answer if it is there.
    pub(super) fn progress(&mut self) -> Option<Outcome> {
        let outcome = match self.inbox.fill(self.socket.as_ref()?) {
            Ok(true) => match self.inbox.next::<Reply>() {
                Ok(Some(message)) => match message.head {
                    Reply::Launched { pid } => Ok(Some(pid)),
                    Reply::Done => Ok(None),
                    Reply::Failed { message } => Err(message),
                },
                Ok(None) => return None,
                Err(error) => Err(format!("the launching process: {error}")),
            },
            Ok(false) if self.becomes_program => {
                self.gone = true;
                Ok(Some(self.pid))
            }
            Ok(false) => Err("the launching process is gone".into()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
            Err(error) => Err(format!("the launching process: {error}")),
        };
        self.socket = None;
        Some(outcome)
    }

    /// Collects the process if it has ended; without an answer that is a failure.
    pub(super) fn collect(&mut self) -> Option<Outcome> {
        // It may be the program by now, whose end is for others to collect.
        let told = self.becomes_program.then(|| self.progress()).flatten();
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| !self.gone) else {
            return told;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match rustix::process::waitid(WaitId::Pid(pid), options) {
            Ok(None) => return told,
            Ok(Some(status)) => super::children::code(&status),
            Err(_) => super::children::UNKNOWN_STATUS,
        };
        // An answer may have been on its way, and a container that waits for its start may hold
        // the other end of the socket, so that its end never shows.
        let outcome = told.or_else(|| self.progress());
        self.gone = true;
        if self.socket.take().is_none() {
            return outcome;
        }
        Some(Err(format!(
            "the launching process ended with status {status}"
        )))
    }

    /// Ends a launch that nobody waits for any more.
    pub(super) fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| !self.gone)
            && let Err(error) = rustix::process::kill_process(pid, Signal::KILL)
        {
            log::debug(format_args!("end a launch: {error}"));
        }
    }
}

/// The launching process.
fn run(supervisor: Pid, socket: UnixStream, message: Message<Request>) -> ! {
    let code = match super::die_with(supervisor).and_then(|()| serve(socket, message)) {
        Ok(()) => 0,
        Err(error) => {
            log::error(format_args!("launching process: {error}"));
            1
        }
    };
    std::process::exit(code)
}

fn serve(socket: UnixStream, message: Message<Request>) -> std::io::Result<()> {
    // Of all that the supervisor holds, a container that waits for its start must not keep
    // anything open: containerd waits for the end of its connection, and clients for streams'.
    let (mut socket, fds) = keep_only(socket, message.fds)?;
    sys::restore_signals()?;
    let reply = match message.head {
        Request::Runtime(request) => {
            rustix::thread::set_name(c"xebec-spawner")?;
            let id = request.id.clone();
            match launch(request, &message.raw, fds) {
                Ok(Some(launched)) => {
                    for warning in &launched.warnings {
                        log::with(&[("id", &id)]).warn(format_args!("{warning}"));
                    }
                    Reply::Launched { pid: launched.pid }
                }
                Ok(None) => Reply::Done,
                Err(message) => Reply::Failed { message },
            }
        }
        Request::Program {
            program,
            arguments,
            environment,
        } => {
            // Its descriptors go where the socket is, which is to tell of a failure, and to close
            // when there is none.
            let beyond = 3 + fds.len() as i32;
            socket = rustix::io::fcntl_dupfd_cloexec(&socket, beyond)?.into();
            let mut command = Command::new(program);
            command.args(arguments).envs(environment);
            command.stdin(Standard::null());
            command.stdout(Standard::null()).stderr(Standard::null());
            sys::pass_fds(&mut command, fds);
            rustix::process::set_parent_process_death_signal(None)?;
            let message = command.exec().to_string();
            Reply::Failed { message }
        }
    };
    let mut outbox = Outbox::default();
    outbox.push(&reply, &[], Vec::new())?;
    outbox.flush(&socket).map(drop)
}

/// Closes everything but the standard streams, the socket and what came with the request.
fn keep_only(socket: UnixStream, fds: Vec<OwnedFd>) -> std::io::Result<(UnixStream, Vec<OwnedFd>)> {
    let mut all = vec![OwnedFd::from(socket)];
    all.extend(fds);
    let mut kept = sys::keep_only(all)?.into_iter();
    let socket = kept.next().ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok((UnixStream::from(socket), kept.collect()))
}

/// Does what is asked for, by the runtime library.
fn launch(
    request: RuntimeRequest,
    document: &[u8],
    fds: Vec<OwnedFd>,
) -> std::result::Result<Option<Launched>, String> {
    let text = |error: xebec_runtime::Error| error.to_string();
    let runtime = Runtime::open(RuntimeOptions {
        root: request.root,
        ignore_missing_controllers: request.ignore_missing_controllers,
        cgroup_manager: manager(request.systemd_cgroup),
        ..RuntimeOptions::default()
    })
    .map_err(text)?;
    let id = request.id.parse().map_err(text)?;
    let streams = place(request.descriptors, fds);
    match request.launch {
        Launch::Init {
            bundle,
            no_pivot,
            no_new_keyring,
        } => runtime.create(CreateRequest {
            no_pivot,
            no_new_keyring,
            ..init(id, bundle, streams)
        }),
        Launch::Exec => {
            let process: Process = serde_json::from_slice(document)
                .map_err(|error| format!("exec failed: process document: {error}"))?;
            let (stdio, console) = streams;
            runtime.exec(ExecRequest {
                stdio,
                console,
                reparent: true,
                ..ExecRequest::new(id, process)
            })
        }
        Launch::Restore {
            bundle,
            origin,
            no_pivot,
        } => {
            let request = CreateRequest {
                no_pivot,
                ..init(id, bundle, streams)
            };
            match origin {
                Origin::Checkpoint(images) => {
                    let options = RestoreOptions {
                        criu: criu(images),
                        lsm_profile: None,
                        lsm_mount_context: None,
                    };
                    runtime.restore(request, &options)
                }
                Origin::Template(clone) => runtime.clone_template(request, &clone_request(clone)),
            }
        }
        Launch::Checkpoint(checkpoint) => {
            let dumped = dump_request(id, checkpoint).and_then(|dump| runtime.checkpoint(dump));
            return dumped.map(|()| None).map_err(text);
        }
    }
    .map(Some)
    .map_err(text)
}

/// What starts and restores have in common.
fn init(id: ContainerId, bundle: PathBuf, (stdio, console): (Stdio, Console)) -> CreateRequest {
    CreateRequest {
        stdio,
        console,
        // For `delete`, should the shim be gone by then.
        pid_file: Some(bundle.join("init.pid")),
        reparent: true,
        ..CreateRequest::new(id, bundle)
    }
}

fn criu(images: Images) -> CriuOptions {
    CriuOptions {
        work_path: Some(images.work),
        ..CriuOptions::new(images.path)
    }
}

fn dump_request(
    id: ContainerId,
    checkpoint: Checkpoint,
) -> xebec_runtime::Result<CheckpointRequest> {
    let empty_namespaces = if checkpoint.empty_network {
        libc::CLONE_NEWNET as u32
    } else {
        0
    };
    Ok(CheckpointRequest {
        id,
        criu: CriuOptions {
            tcp_established: checkpoint.tcp_established,
            ext_unix_sk: checkpoint.ext_unix_sk,
            shell_job: checkpoint.shell_job,
            file_locks: checkpoint.file_locks,
            cgroups: checkpoint.cgroups_mode.parse()?,
            empty_namespaces,
            ..criu(checkpoint.images)
        },
        parent_path: None,
        pre_dump: false,
        leave_running: checkpoint.leave_running,
        tcp_skip_in_flight: false,
        page_server: None,
        status: None,
    })
}

/// Deals the received descriptors out to stdin, stdout, stderr and console, in that order.
fn place(present: [bool; 4], fds: Vec<OwnedFd>) -> (Stdio, Console) {
    let mut fds = fds.into_iter();
    let mut next = |there: bool| there.then(|| fds.next()).flatten();
    let [stdin, stdout, stderr, console] = present.map(&mut next);
    let console = console.map_or(Console::None, Console::SocketFd);
    (
        Stdio::Fds {
            stdin,
            stdout,
            stderr,
        },
        console,
    )
}
