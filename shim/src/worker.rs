//! The worker: one event loop that serves the Task API until the last container is gone. It may
//! be killed at any time: what it must not lose it has told its supervisor, and its successor
//! begins with that.

use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::blocking;
use crate::error::{Context, Result};
use crate::events::Publisher;
use crate::io::Ends;
use crate::link::Link;
use crate::spans::Spans;
use crate::supervisor::Identity;
use crate::supervisor::message::ToWorker;
use crate::supervisor::wire::Inbox;
use crate::task::exits::Exits;
use crate::task::{Inheritance, Shim, TaskService};
use crate::ttrpc::Server;

/// How long the last answers may take when the shim ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long an idle blocking thread stays: long enough for the steps of one start.
const THREAD_IDLE: Duration = Duration::from_millis(500);

/// Runs the worker to the end of the shim; `socket` leads to the supervisor.
pub fn run(socket: UnixStream, identity: Identity, supervisor: Pid) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(blocking::THREADS)
        .thread_keep_alive(THREAD_IDLE)
        .thread_stack_size(512 * 1024)
        .build()
        .context(|| "start the event loop".into())?;
    LocalSet::new().block_on(&runtime, serve(Link::new(socket), identity, supervisor))
}

async fn serve(link: Link, identity: Identity, supervisor: Pid) -> Result<()> {
    let link = Arc::new(link);
    let ready = link.listen().context(|| "watch the supervisor".into())?;
    let exits = Rc::new(Exits::default());
    let ends = Rc::new(Ends::default());
    let shim = Rc::new(Shim {
        publisher: Publisher::new(&identity.namespace, Arc::clone(&link)),
        namespace: identity.namespace,
        socket: identity.socket,
        supervisor: supervisor.as_raw_pid() as u32,
        exits: Rc::clone(&exits),
        ends: Rc::clone(&ends),
        link: Arc::clone(&link),
        spans: Spans::of_environment(),
        shutdown: Notify::new(),
    });
    let service = Rc::new(TaskService::new(Rc::clone(&shim)));
    let answers = Arc::clone(&link);
    let server = Server::new(
        Rc::clone(&service),
        Box::new(move |connection, frame| answers.answer(connection, &frame)),
    );
    let serving = async {
        let mut inbox = Inbox::default();
        let mut inheritance = Inheritance::default();
        loop {
            let message = link.next(&ready, &mut inbox).await?;
            match message.head {
                ToWorker::Record { key, record } => inheritance.add(&key, record, message.fds),
                ToWorker::Ready { children } => {
                    for pid in &children {
                        exits.expect(*pid);
                    }
                    service
                        .inherit(std::mem::take(&mut inheritance), &children)
                        .await;
                }
                ToWorker::Frame {
                    connection,
                    attempt,
                } => {
                    server.take(connection, attempt, &message.raw);
                }
                ToWorker::Closed { connection } => server.closed(connection),
                ToWorker::Exited { pid, exit } => exits.exited(pid, exit),
                ToWorker::Ended { key } => ends.ended(&key),
                // The link deals with these.
                ToWorker::Launched { .. }
                | ToWorker::NotLaunched { .. }
                | ToWorker::Insight { .. } => {}
            }
        }
    };
    tokio::select! {
        result = serving => return result,
        result = link.keep_sending() => return result.context(|| "tell the supervisor".into()),
        () = shim.shutdown.notified() => {}
    }
    server.drain(FAREWELL).await;
    shim.spans.finish().await;
    link.bye().await.context(|| "say farewell".into())
}
