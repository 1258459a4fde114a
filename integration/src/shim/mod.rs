//! Our shim without containerd: started as containerd starts it, called over ttrpc, its events
//! taken by the test itself.

mod events;
pub mod rpc;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use xebec_proto::prost::Message;
use xebec_proto::prost_types::Any;
use xebec_proto::task::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, ExecProcessRequest, KillRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, WaitRequest, WaitResponse,
};

pub use self::events::Events;
pub use self::rpc::Client;
use crate::command::Output;
use crate::error::{Error, Result};
use crate::hosts::NativeHost;

/// The program.
pub const PROGRAM: &str = "containerd-shim-xebec-v2";
/// The Task service of containerd 2.
pub const TASK: &str = "containerd.task.v3.Task";
/// The service by which a shim makes pods.
pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// Type of an exec's document.
pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Where containerd takes the events of a shim, in the commands below: nowhere.
pub const NO_EVENTS: &str = "/srv/no-events.sock";

/// A command of the shim as containerd runs it: in the bundle, with its flags and variables.
pub fn command(host: &NativeHost, bundle: &str, id: &str, words: &[&str]) -> Command {
    let mut argv = vec![
        PROGRAM,
        "-namespace",
        "test",
        "-address",
        "/run/containerd.sock",
    ];
    argv.extend(["-publish-binary", "/bin/true", "-id", id]);
    argv.extend(words);
    let mut command = host.command_in(Path::new(bundle), &argv);
    command
        .env("TTRPC_ADDRESS", NO_EVENTS)
        .env("MAX_SHIM_VERSION", "2");
    command
}

/// Runs a command of the shim with `stdin`; its raw standard output and the rest as text.
pub fn run(mut command: Command, stdin: &[u8]) -> Result<(Vec<u8>, Output)> {
    let start = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = start.map_err(Error::system("start the shim"))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin)
            .map_err(Error::system("write to the shim"))?;
    }
    let output = child
        .wait_with_output()
        .map_err(Error::system("wait for the shim"))?;
    let text = Output {
        status: crate::command::exit_code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    Ok((output.stdout, text))
}

/// Where the test takes the events of the shim of `id`; one shim a host may have that id.
pub fn events_socket(id: &str) -> String {
    format!("/srv/events-{id}.sock")
}

/// A running shim.
#[derive(Debug)]
pub struct Shim {
    socket: PathBuf,
    /// What it published.
    pub events: Events,
    /// A connection to its Task service.
    pub task: Client,
}

impl Shim {
    /// Starts the shim of a bundle, with `stdin` as containerd writes it.
    pub fn start(host: &NativeHost, bundle: &str, id: &str, stdin: &[u8]) -> Result<Self> {
        Self::started_by(host, id, command(host, bundle, id, &["start"]), stdin)
    }

    /// Starts the shim of `id` by a command of a test's own making.
    pub fn started_by(
        host: &NativeHost,
        id: &str,
        mut start: Command,
        stdin: &[u8],
    ) -> Result<Self> {
        let place = events_socket(id);
        let events = Events::listen(&host.path(&place))?;
        start.env("TTRPC_ADDRESS", &place);
        let (_, answer) = run(start, stdin)?;
        let unexpected = || Error::invalid("the shim's start", format!("{answer:?}"));
        // containerd takes both outputs together: one byte on the second breaks the answer.
        if !answer.success() || !answer.stderr.is_empty() {
            return Err(unexpected());
        }
        let json: Value = serde_json::from_str(&answer.stdout).map_err(|_| unexpected())?;
        let address = json["address"].as_str().ok_or_else(unexpected)?;
        let socket = host.path(address.trim_start_matches("unix://"));
        let task = Client::connect(&socket, TASK)?;
        Ok(Self {
            socket,
            events,
            task,
        })
    }

    /// One more connection, to whatever service.
    pub fn connect(&self, service: &str) -> Result<Client> {
        Client::connect(&self.socket, service)
    }

    /// Whether the socket is there.
    pub fn is_listening(&self) -> bool {
        self.socket.exists()
    }

    /// The shim's pid in its host.
    pub fn pid(&mut self) -> Result<u32> {
        let request = ConnectRequest::default();
        let answer: ConnectResponse = self.task.check("Connect", &request)?;
        Ok(answer.shim_pid)
    }

    /// Creates a container without streams; its pid.
    pub fn create(&mut self, id: &str, bundle: &str) -> Result<u32> {
        let request = create_request(id, bundle);
        let answer: CreateTaskResponse = self.task.check("Create", &request)?;
        Ok(answer.pid)
    }

    /// Starts init or an exec; its pid.
    pub fn start_process(&mut self, id: &str, exec_id: &str) -> Result<u32> {
        let answer: StartResponse = self.task.check("Start", &start_request(id, exec_id))?;
        Ok(answer.pid)
    }

    /// Registers a further process without streams.
    pub fn exec(&mut self, id: &str, exec_id: &str, argv: &[&str]) -> Result<()> {
        self.task.check("Exec", &exec_request(id, exec_id, argv))
    }

    /// Waits for the end of a process; its status.
    pub fn wait(&mut self, id: &str, exec_id: &str) -> Result<u32> {
        let answer: WaitResponse = self.task.check("Wait", &wait_request(id, exec_id))?;
        Ok(answer.exit_status)
    }

    /// Creates a container and deletes it again, so that everything is there that is made once:
    /// connections, caches, directories.
    pub fn warm_up(&mut self, id: &str, bundle: &str) -> Result<()> {
        self.create(id, bundle)?;
        self.delete(id, "")?;
        self.events.lines_until("/tasks/delete", 1).map(drop)
    }

    /// Signals init, an exec, or everything.
    pub fn kill(&mut self, id: &str, exec_id: &str, signal: u32) -> Result<()> {
        self.task.check("Kill", &kill_request(id, exec_id, signal))
    }

    /// Deletes a container or an exec; the status that it ended with.
    pub fn delete(&mut self, id: &str, exec_id: &str) -> Result<u32> {
        let answer: DeleteResponse = self.task.check("Delete", &delete_request(id, exec_id))?;
        Ok(answer.exit_status)
    }

    /// What the shim says of a process.
    pub fn state(&mut self, id: &str, exec_id: &str) -> Result<StateResponse> {
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        self.task.check("State", &StateRequest { id, exec_id })
    }

    /// Kills a running container's init and deletes the container; its status.
    pub fn end(&mut self, id: &str) -> Result<u32> {
        self.kill(id, "", 9)?;
        self.wait(id, "")?;
        self.delete(id, "")
    }

    /// Asks the shim to end, which it does if it has no container.
    pub fn shutdown(&mut self) -> Result<()> {
        self.task.check("Shutdown", &ShutdownRequest::default())
    }
}

/// Creation without streams and mounts: the bundle's own root file system is used.
pub fn create_request(id: &str, bundle: &str) -> CreateTaskRequest {
    CreateTaskRequest {
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        ..CreateTaskRequest::default()
    }
}

/// A start of init or an exec.
pub fn start_request(id: &str, exec_id: &str) -> StartRequest {
    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
    StartRequest { id, exec_id }
}

/// A wait for init or an exec.
pub fn wait_request(id: &str, exec_id: &str) -> WaitRequest {
    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
    WaitRequest { id, exec_id }
}

/// A deletion of a container or an exec.
pub fn delete_request(id: &str, exec_id: &str) -> DeleteRequest {
    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
    DeleteRequest { id, exec_id }
}

/// A signal to init or an exec.
pub fn kill_request(id: &str, exec_id: &str, signal: u32) -> KillRequest {
    KillRequest {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        signal,
        all: false,
    }
}

/// A further process without streams.
pub fn exec_request(id: &str, exec_id: &str, argv: &[&str]) -> ExecProcessRequest {
    let process = serde_json::json!({"cwd": "/", "args": argv, "env": ["PATH=/bin"],
                                     "user": {"uid": 0, "gid": 0}});
    ExecProcessRequest {
        id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        spec: Some(Any {
            type_url: PROCESS.to_owned(),
            value: process.to_string().into_bytes(),
        }),
        ..ExecProcessRequest::default()
    }
}

/// A message as containerd writes it to a shim's standard input.
pub fn encoded(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}
