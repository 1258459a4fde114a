//! The daemon: one event loop that serves the Task API until the last container is gone.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use crate::error::{Context, Result};
use crate::events::{Publisher, oom};
use crate::spawner::Spawner;
use crate::task::exits::{self, Reaper};
use crate::task::{Shim, TaskService};
use crate::ttrpc::Server;
use crate::{log, sys};

/// How long the last answers and events may take when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long an idle blocking thread stays: long enough for the steps of one start.
const THREAD_IDLE: Duration = Duration::from_millis(500);

/// What a daemon starts from.
#[derive(Debug)]
pub struct Daemon {
    /// containerd namespace.
    pub namespace: String,
    /// containerd's ttrpc socket.
    pub containerd: PathBuf,
    /// Path of the socket to serve.
    pub socket: PathBuf,
    /// The same, listening and non-blocking.
    pub listener: UnixListener,
}

/// Runs the daemon to its end. The process must have a single thread still.
pub fn run(daemon: Daemon) -> Result<()> {
    sys::keep_heap_small();
    let spawner = Arc::new(Spawner::fork()?);
    let signals = sys::child_signals().context(|| "watch for dying children".into())?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context(|| "become a subreaper".into())?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(THREAD_IDLE)
        .thread_stack_size(512 * 1024)
        .build()
        .context(|| "start the event loop".into())?;
    LocalSet::new().block_on(&runtime, async {
        let signals = sys::watch(signals).context(|| "watch for dying children".into())?;
        let socket = daemon.socket.clone();
        let result = serve(daemon, spawner, signals).await;
        // Gone before the process is: who connects now would wait for nobody.
        match std::fs::remove_file(&socket) {
            // A `delete` that ran meanwhile found it without a server and removed it.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                log::warn(format_args!("remove {}: {error}", socket.display()));
            }
            _ => {}
        }
        result
    })
}

async fn serve(
    daemon: Daemon,
    spawner: Arc<Spawner>,
    signals: AsyncFd<std::os::fd::OwnedFd>,
) -> Result<()> {
    let listener = tokio::net::UnixListener::from_std(daemon.listener)
        .context(|| format!("serve {}", daemon.socket.display()))?;
    let reaper = Rc::new(Reaper::default());
    let publisher = Publisher::start(&daemon.namespace, daemon.containerd);
    let shim = Rc::new(Shim {
        namespace: daemon.namespace,
        socket: daemon.socket,
        publisher: publisher.clone(),
        reaper: Rc::clone(&reaper),
        spawner,
        oom: oom::Watch::start().context(|| "watch for OOM kills".into())?,
        shutdown: Notify::new(),
    });
    spawn_local(keep_spawner(Arc::clone(&shim.spawner), Rc::clone(&reaper)));
    spawn_local(async move {
        if let Err(error) = reaper.watch(&signals).await {
            log::error(format_args!("collect orphans: {error}"));
        }
    });
    let server = Server::new(Rc::new(TaskService::new(Rc::clone(&shim))));
    tokio::select! {
        () = server.serve(&listener) => {}
        () = shim.shutdown.notified() => {}
    }
    drop(listener);
    server.drain(FAREWELL).await;
    publisher.flush(FAREWELL).await;
    Ok(())
}

/// Replaces the spawner if it dies, so that a request that killed it does not take the other
/// containers of the pod along.
async fn keep_spawner(spawner: Arc<Spawner>, reaper: Rc<Reaper>) {
    loop {
        let pid = spawner.pid();
        reaper.claim(pid);
        match exits::open(pid) {
            Ok(pidfd) => {
                let status = exits::wait(&pidfd).await.status;
                log::error(format_args!("the spawner ended with status {status}"));
            }
            Err(error) => return log::error(format_args!("watch the spawner: {error}")),
        }
        reaper.release(pid);
        spawner.give_up();
        // Forking needs the blocking threads gone; they leave soon when idle.
        while let Err(error) = spawner.fork_again() {
            log::debug(format_args!("no new spawner yet: {error}"));
            tokio::time::sleep(THREAD_IDLE).await;
        }
    }
}
