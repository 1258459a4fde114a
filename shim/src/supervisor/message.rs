//! What supervisor, worker and launching processes say to each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use xebec_runtime::WantedTemplate;

use crate::io::overflow::Overflow;

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When the shim learnt of it.
    pub at: SystemTime,
}

impl Exit {
    /// An exit that happens now.
    pub fn now(status: u32) -> Exit {
        Exit {
            status,
            at: SystemTime::now(),
        }
    }
}

/// What the supervisor tells of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Insight {
    /// Since its start.
    pub(super) age_ms: u64,
    /// How many workers there have been, the present one included.
    pub(super) workers: u32,
    /// Events that containerd has not taken yet.
    pub(super) pending_events: usize,
    pub(super) connections: usize,
    /// Requests without an answer.
    pub(super) open_requests: usize,
    /// Launches under way.
    pub(super) launches: usize,
    /// Processes that are watched.
    pub(super) children: usize,
}

/// What waits in the streams that are open, by their keys.
pub(crate) type Levels = BTreeMap<String, Level>;

/// What waits in a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Level {
    /// Bytes at its source.
    pub(crate) unread: Option<u64>,
    /// Bytes at its target; absent if that is no pipe.
    pub(crate) untaken: Option<u64>,
}

/// From the supervisor to its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// A record that an earlier worker left, with the descriptors kept under its key.
    Record { key: String, record: String },
    /// All records are told; these children are watched.
    Ready { children: Vec<i32> },
    /// A frame of containerd's, raw; a frame that is too long comes as its header alone.
    /// `attempt` counts the workers that have seen it, this one included.
    Frame { connection: u32, attempt: u32 },
    /// containerd has closed that connection.
    Closed { connection: u32 },
    /// A launch has succeeded; the process, if it was to leave one, is watched from now on.
    Launched { ticket: u64, pid: Option<i32> },
    /// A launch has failed, in the runtime's own words.
    NotLaunched { ticket: u64, message: String },
    /// The answer to an inquiry.
    Insight { insight: Insight, streams: Levels },
    /// A watched child has died. It stays a zombie, and its pid its own, until it is forgotten.
    Exited { pid: i32, exit: Exit },
    /// A stream has come to its end.
    Ended { key: String },
}

/// From the worker to its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// What has changed, all of it or nothing. With `event` the raw part is an encoded ttrpc
    /// request that tells containerd.
    Commit {
        changes: Vec<Change>,
        event: Option<Importance>,
    },
    /// The raw part is a frame that answers a request of this connection.
    Answer { connection: u32 },
    /// Start a process. Its pid is kept as the record under `key`, for a successor that has not
    /// heard of it.
    Launch {
        ticket: u64,
        key: Option<String>,
        request: Request,
    },
    /// Copy a stream until it ends or its key is dropped. The descriptors are its source and its
    /// target, but for the one that is to be opened.
    Copy { key: String, copying: Copying },
    /// End a standard input once what has been written to it so far is through.
    CloseInput { key: String },
    /// Resize the terminal that this stream comes from; in characters.
    Resize {
        key: String,
        columns: u16,
        rows: u16,
    },
    /// Until [`ToSupervisor::Release`], a child that nobody watches may be one that is about to
    /// be: collect no orphans.
    Hold,
    /// Takes one hold back.
    Release,
    /// How is the supervisor? It answers with [`ToWorker::Insight`].
    Inquire,
    /// The shim is about to end: who asked for it is told so with what is said next, and this
    /// worker has no successor.
    Ending,
    /// Nothing is left to do: end once containerd has its events and answers.
    Bye,
}

/// A change of what survives the worker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// Keep `record` under `key`. With a number, so many of the message's descriptors take the
    /// place of those that were kept; without, those stay.
    Put {
        key: String,
        record: String,
        fds: Option<usize>,
    },
    /// Forget every record and every stream whose key begins so, with its descriptors.
    Drop { prefix: String },
    /// The streams whose key begins so will be made again: stop copying, but let those at the other
    /// sides of fifos see no end until then.
    TakeBack { prefix: String },
    /// The streams whose key begins so are not held any more.
    Release { prefix: String },
    /// Tell of this child's end.
    Watch { pid: i32 },
    /// Its end has been dealt with.
    Forget { pid: i32 },
}

/// How a stream is copied.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Copying {
    /// Both sides are pipes.
    pub(crate) splices: bool,
    /// The supervisor opens the client's fifo. A worker that died with the only descriptor of it
    /// would show an end to whom is at its other side.
    pub(crate) opens: Option<Opens>,
    /// Nothing is moved, and no end noticed, until [`Change::Release`]: what a client has typed would
    /// go with a creation that is taken back, and its end would be shown for the container's.
    pub(crate) held: bool,
    /// What the reader of a fifo does not take at once is stored.
    pub(crate) storing: Option<Storing>,
}

/// A fifo to be opened, which is one side of a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Opens {
    Source(PathBuf),
    Target(PathBuf),
}

/// How output that nobody reads is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Storing {
    pub(crate) overflow: Overflow,
    /// Where it is spilled to.
    pub(crate) file: PathBuf,
    /// It comes from a terminal, where lines end with CR LF.
    pub(crate) is_terminal: bool,
}

/// What becomes of an event that containerd does not take for a long time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Importance {
    /// It is kept whatever happens: an exit.
    Vital,
    /// The oldest of these go when there are too many.
    Ordinary,
}

/// A process to be started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// A container's process, by the runtime library.
    Runtime(RuntimeRequest),
    /// A program on the host; the descriptors become its 3, 4, 5.
    Program {
        program: PathBuf,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
    },
}

/// A container's process. The raw part is the JSON of an exec's OCI Process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RuntimeRequest {
    /// Runtime state directory.
    pub(crate) root: PathBuf,
    /// Container id.
    pub(crate) id: String,
    pub(crate) ignore_missing_controllers: bool,
    pub(crate) systemd_cgroup: bool,
    /// Which of the descriptors stdin, stdout, stderr, console come along, in this order.
    pub(crate) descriptors: [bool; 4],
    pub(crate) launch: Launch,
}

/// What is done with a container by a process of its own, most often to start one in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Launch {
    /// Init of a new container.
    Init {
        bundle: PathBuf,
        no_pivot: bool,
        no_new_keyring: bool,
    },
    /// A further process.
    Exec,
    /// Init of a new container, as a checkpoint or a template has it.
    Restore {
        bundle: PathBuf,
        origin: Origin,
        no_pivot: bool,
    },
    /// CRIU, which dumps the container; nothing of it stays.
    Checkpoint(Checkpoint),
}

/// Where an init comes from that executes no program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Origin {
    Checkpoint(Images),
    Template(TemplateClone),
}

impl Origin {
    /// Directory of CRIU's logs and statistics.
    pub(crate) fn work(&self) -> &Path {
        match self {
            Origin::Checkpoint(images) => &images.work,
            Origin::Template(clone) => &clone.work,
        }
    }
}

/// A clone of a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TemplateClone {
    /// Directory of the templates.
    pub(crate) templates: PathBuf,
    pub(crate) wanted: WantedTemplate,
    /// Directory of CRIU's logs and statistics.
    pub(crate) work: PathBuf,
}

/// Where CRIU's files are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Images {
    /// Directory of the images.
    pub(crate) path: PathBuf,
    /// Directory of logs and statistics.
    pub(crate) work: PathBuf,
}

/// How a container is dumped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) images: Images,
    pub(crate) leave_running: bool,
    pub(crate) tcp_established: bool,
    pub(crate) ext_unix_sk: bool,
    pub(crate) shell_job: bool,
    pub(crate) file_locks: bool,
    /// The network namespace is left as it is, the only one that may be.
    pub(crate) empty_network: bool,
    /// What CRIU does about cgroups, in the words of runc's flag; empty for the default.
    pub(crate) cgroups_mode: String,
}

/// The answer of a launching process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Launched {
        pid: i32,
    },
    /// It is done, and has left no process.
    Done,
    Failed {
        message: String,
    },
}
