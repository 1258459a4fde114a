//! The daemon's life: lock, socket, readiness, signals, end.

mod engine;
mod lock;
mod logging;
mod metrics;
mod notify;
mod room;
mod socket;
pub mod status;
mod store_metrics;
mod traces;

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use xebec_proto::snapshots::snapshots_server::SnapshotsServer;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::fetch::Passed;
use crate::mount::Lazy;
use crate::service::{Front, Images, MAX_PREPARING, Service, Snapshotter};
use socket::Socket;

/// Threads that run the event loop; all work that blocks happens elsewhere.
const WORKERS: usize = 2;
/// Threads for work that blocks: room for every waiting Prepare and plenty for the rest.
const MAX_BLOCKING: usize = 2 * MAX_PREPARING;
/// How long a thread for blocking calls waits for the next one.
const BLOCKING_IDLE: Duration = Duration::from_secs(2);
/// How long a daemon that was told to end, or killed, may take to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How long calls under way may take when the daemon is told to end.
const GRACE: Duration = Duration::from_secs(10);
/// Labels of a snapshot are bounded by containerd; this is its own default message size.
const MAX_MESSAGE: usize = 16 << 20;

/// Starts logging, for a process that is no daemon.
pub(crate) fn log(filter: &str) -> Result<()> {
    logging::start(filter)
}

/// Serves until SIGTERM or SIGINT.
pub fn run(config: &Config) -> Result<()> {
    logging::start(&config.log)?;
    crate::rootless::check_privileges()?;
    raise_file_limit();
    crate::sys::keep_no_large_pieces();
    std::fs::create_dir_all(&config.root).map_err(Error::io("create", &config.root))?;
    let _lock = lock::RootLock::take(&config.root, LOCK_PATIENCE)?;
    let passed = config.registry.cri.as_ref().map(|_| {
        let file = config.root.join("credentials.json");
        Arc::new(Passed::open(file))
    });
    let lazy = engine::open(config, passed.clone())?;
    let snapshotter = Arc::new(Snapshotter::open(
        &config.root,
        lazy.clone(),
        config.async_remove,
    )?);
    let warden = match &lazy {
        Some(lazy) => Some(room::Warden::start(
            &snapshotter,
            Arc::clone(lazy.space()),
            (&config.store).into(),
        )?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(MAX_BLOCKING)
        .thread_keep_alive(BLOCKING_IDLE)
        .thread_name("xebec-snap")
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("start threads: {error}")))?;
    let outcome = runtime.block_on(async {
        let images = match (&config.registry.cri, passed) {
            (Some(cri), Some(passed)) => Some(Images::new(&cri.socket, passed)?),
            _ => None,
        };
        if let (Some(endpoint), Some(lazy)) = (&config.traces.endpoint, &lazy) {
            tokio::spawn(traces::Traces::new(endpoint)?.send_all(Arc::clone(lazy)));
        }
        let serving = serve(config, lazy.clone(), Arc::clone(&snapshotter), images);
        match config.metrics.address.clone() {
            None => serving.await,
            Some(address) => tokio::select! {
                outcome = serving => outcome,
                Err(error) = metrics::serve(address, lazy.clone(), (&config.store).into()) => Err(error),
            },
        }
    });
    runtime.shutdown_timeout(GRACE);
    drop(warden);
    // Before the snapshotter goes: what can stay mounted for a successor must.
    if let Some(lazy) = lazy {
        lazy.shutdown();
    }
    drop(snapshotter);
    outcome
}

/// Every mounted tree and every large file that is read needs descriptors; a snapshotter without
/// any left stops containerd's garbage collection too.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = ?limit.current, "the limit of open files stays low");
    }
}

async fn serve(
    config: &Config,
    lazy: Option<Arc<Lazy>>,
    snapshotter: Arc<Snapshotter>,
    images: Option<Images>,
) -> Result<()> {
    let containerd = Socket::bind(&config.address)?;
    let status = Socket::bind(&status::socket_path(&config.address))?;
    let (end, mut ended) = watch::channel(());
    let mut stopped = ended.clone();
    let incoming = UnixListenerStream::new(containerd.listener()?);
    let service = SnapshotsServer::new(Service::new(Arc::clone(&snapshotter)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let front = Front {
        snapshots: service,
        images,
    };
    let server =
        tokio::spawn(
            Server::builder().serve_with_incoming_shutdown(front, incoming, async move {
                let _ = ended.changed().await;
            }),
        );
    let reporter = status::Reporter::new(config, lazy, Arc::clone(&snapshotter));
    let listener = status.listener()?;
    let answering = tokio::spawn(async move {
        tokio::select! {
            () = reporter.serve(listener) => {}
            _ = stopped.changed() => {}
        }
    });
    // What an earlier daemon did not get to delete; nobody waits for it.
    tokio::task::spawn_blocking(move || {
        if let Err(error) = snapshotter.cleanup() {
            tracing::error!(%error, "clean up after an earlier daemon");
        }
    });
    notify::send("READY=1");
    tracing::info!(address = %config.address.display(), root = %config.root.display(), "serving");
    let signal = wait_for_signal().await?;
    tracing::info!(signal, "ending");
    notify::send("STOPPING=1");
    drop(end);
    let _ = answering.await;
    match tokio::time::timeout(GRACE, server).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(Error::Internal(format!("serve: {error}"))),
        Ok(Err(error)) => Err(Error::Internal(format!("serve: {error}"))),
        Err(_) => {
            tracing::warn!("calls under way were cut off");
            Ok(())
        }
    }
}

async fn wait_for_signal() -> Result<&'static str> {
    let listen =
        |kind| signal(kind).map_err(|e| Error::Internal(format!("listen for signals: {e}")));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}
