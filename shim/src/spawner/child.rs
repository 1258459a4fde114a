//! The spawner process itself: one request at a time until the daemon is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use oci_spec::runtime::Process;
use xebec_runtime::{
    Console, CreateRequest, ExecRequest, Launched, Runtime, RuntimeOptions, Stdio,
};

use super::wire::{self, Launch, Message, Reply, Request};
use crate::engine::manager;
use crate::{log, sys};

/// Serves the daemon at the other end of `socket` and exits with it.
pub(super) fn run(socket: UnixStream) -> ! {
    let code = match serve(socket) {
        Ok(()) => 0,
        Err(error) => {
            log::error(format_args!("spawner: {error}"));
            1
        }
    };
    std::process::exit(code)
}

fn serve(socket: UnixStream) -> std::io::Result<()> {
    // Only the standard streams and the socket stay: the daemon's listener above all must not
    // outlive the daemon in here.
    let socket = keep_only(socket)?;
    sys::restore_signals()?;
    rustix::thread::set_name(c"xebec-spawner")?;
    while let Some(message) = wire::receive::<Request>(&socket)? {
        let id = message.head.id.clone();
        match launch(message) {
            Ok(launched) => {
                for warning in &launched.warnings {
                    log::warn(format_args!("container {id}: {warning}"));
                }
                let reply = Reply::Launched { pid: launched.pid };
                wire::send(&socket, &reply, &[], &[launched.pidfd.as_fd()])?;
            }
            Err(message) => wire::send(&socket, &Reply::Failed { message }, &[], &[])?,
        }
    }
    Ok(())
}

fn keep_only(socket: UnixStream) -> std::io::Result<UnixStream> {
    const PLACE: i32 = 3;
    let placed = sys::move_to(OwnedFd::from(socket), PLACE)?;
    sys::close_from(PLACE as u32 + 1);
    Ok(UnixStream::from(placed))
}

fn launch(message: Message<Request>) -> Result<Launched, String> {
    let Message {
        head: request,
        raw,
        fds,
    } = message;
    let text = |error: xebec_runtime::Error| error.to_string();
    let runtime = Runtime::open(RuntimeOptions {
        root: request.root,
        ignore_missing_controllers: request.ignore_missing_controllers,
        cgroup_manager: manager(request.systemd_cgroup),
        ..RuntimeOptions::default()
    })
    .map_err(text)?;
    let id = request.id.parse().map_err(text)?;
    let (stdio, console) = place(request.descriptors, fds);
    match request.launch {
        Launch::Init {
            bundle,
            no_pivot,
            no_new_keyring,
        } => runtime.create(CreateRequest {
            stdio,
            console,
            pid_file: Some(request.pid_file),
            no_pivot,
            no_new_keyring,
            reparent: true,
            ..CreateRequest::new(id, bundle)
        }),
        Launch::Exec => {
            let process: Process = serde_json::from_slice(&raw)
                .map_err(|error| format!("exec failed: process document: {error}"))?;
            runtime.exec(ExecRequest {
                stdio,
                console,
                pid_file: Some(request.pid_file),
                reparent: true,
                ..ExecRequest::new(id, process)
            })
        }
    }
    .map_err(text)
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
