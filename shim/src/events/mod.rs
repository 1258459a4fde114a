//! Events for containerd: in the order they happened, on one connection, kept until containerd
//! has them.
//!
//! While containerd is down nothing new can be asked of the shim, so the queue holds at most the
//! exits and out-of-memory kills of what is running.

pub mod oom;

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use prost::{Message, Name};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::spawn_local;
use xebec_proto::events_ttrpc::ForwardRequest;
use xebec_proto::types::Envelope;

use crate::error::Code;
use crate::log;
use crate::ttrpc::Client;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// How long containerd may take to accept one event.
const CALL: Duration = Duration::from_secs(5);
/// Pauses between attempts while containerd cannot be reached.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Takes events; clones feed the same queue.
#[derive(Debug, Clone)]
pub struct Publisher {
    namespace: Rc<str>,
    queue: UnboundedSender<Envelope>,
    /// Events taken and not yet delivered.
    pending: watch::Sender<usize>,
}

impl Publisher {
    /// Starts the delivery to containerd's ttrpc socket. Must run inside a `LocalSet`.
    pub fn start(namespace: &str, containerd: PathBuf) -> Publisher {
        let (queue, events) = unbounded_channel();
        let pending = watch::Sender::new(0);
        spawn_local(deliver(containerd, events, pending.clone()));
        Publisher {
            namespace: namespace.into(),
            queue,
            pending,
        }
    }

    /// Queues one event under its topic, `/tasks/…`.
    pub fn publish<M: Name>(&self, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(xebec_proto::pack(event)),
        };
        self.pending.send_modify(|count| *count += 1);
        if self.queue.send(envelope).is_err() {
            log::error(format_args!("event {topic} is lost: delivery has ended"));
        }
    }

    /// Waits until everything queued is delivered, at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let mut pending = self.pending.subscribe();
        let empty = pending.wait_for(|count| *count == 0);
        if tokio::time::timeout(limit, empty).await.is_err() {
            let count = *self.pending.borrow();
            log::error(format_args!(
                "{count} events could not be delivered in {limit:?}"
            ));
        }
    }
}

async fn deliver(
    containerd: PathBuf,
    mut events: UnboundedReceiver<Envelope>,
    pending: watch::Sender<usize>,
) {
    let mut client = None;
    while let Some(envelope) = events.recv().await {
        let payload = ForwardRequest {
            envelope: Some(envelope),
        }
        .encode_to_vec();
        let mut pause = FIRST_PAUSE;
        // The next event waits for this one: a retry never changes the order.
        while let Err(error) = attempt(&containerd, &mut client, &payload).await {
            log::debug(format_args!("event not delivered yet: {error}"));
            client = None;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        pending.send_modify(|count| *count -= 1);
    }
}

/// Delivers one event. An answer that a retry would only repeat counts as delivered.
async fn attempt(containerd: &Path, client: &mut Option<Client>, payload: &[u8]) -> io::Result<()> {
    // A connection that containerd closed since the last event is found out by using it; the
    // event then goes over a new one at once.
    let reused = client.is_some();
    match forward(containerd, client, payload).await {
        Err(_) if reused => {
            *client = None;
            forward(containerd, client, payload).await
        }
        result => result,
    }
}

async fn forward(containerd: &Path, client: &mut Option<Client>, payload: &[u8]) -> io::Result<()> {
    let call = async {
        let connected = match client {
            Some(connected) => connected,
            None => client.insert(Client::connect(containerd).await?),
        };
        connected.call(SERVICE, "Forward", payload.to_vec()).await
    };
    match tokio::time::timeout(CALL, call)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??
    {
        Ok(_) => Ok(()),
        Err(status) if worth_retrying(status.code) => Err(io::Error::other(status.message)),
        Err(status) => {
            log::error(format_args!(
                "containerd refused an event: {}",
                status.message
            ));
            Ok(())
        }
    }
}

fn worth_retrying(code: i32) -> bool {
    [Code::Unavailable, Code::DeadlineExceeded]
        .iter()
        .any(|known| *known as i32 == code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Result};
    use crate::ttrpc::{Server, Service};
    use std::cell::RefCell;
    use tokio::net::UnixListener;
    use tokio::task::LocalSet;
    use xebec_proto::events::TaskStart;

    /// Records the pids of events, in order of arrival.
    #[derive(Default)]
    struct Containerd {
        pids: RefCell<Vec<u32>>,
    }

    impl Service for Containerd {
        async fn call(self: Rc<Self>, _: &str, _: &str, payload: &[u8]) -> Result<Vec<u8>> {
            let envelope = ForwardRequest::decode(payload).unwrap().envelope.unwrap();
            let start: TaskStart = xebec_proto::unpack(&envelope.event.unwrap())
                .unwrap()
                .unwrap();
            if start.pid == 13 {
                return Err(Error::InvalidArgument("unlucky".into()));
            }
            self.pids.borrow_mut().push(start.pid);
            Ok(Vec::new())
        }

        fn only_waits(&self, _: &str) -> bool {
            false
        }
    }

    fn serve(path: &Path, service: &Rc<Containerd>) -> tokio::task::JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        let server = Server::new(Rc::clone(service));
        spawn_local(async move { server.serve(&listener).await })
    }

    fn start(pid: u32) -> TaskStart {
        TaskStart {
            container_id: "c".into(),
            pid,
        }
    }

    #[test]
    fn events_survive_a_restart_of_containerd_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ttrpc");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let containerd = Rc::new(Containerd::default());
            let publisher = Publisher::start("ns", path.clone());
            // Nobody listens yet.
            for pid in 1..=3 {
                publisher.publish("/tasks/start", &start(pid));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
            let first = serve(&path, &containerd);
            publisher.flush(CALL).await;
            first.abort();
            std::fs::remove_file(&path).unwrap();
            for pid in 4..=6 {
                publisher.publish("/tasks/start", &start(pid));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
            let _second = serve(&path, &containerd);
            publisher.flush(CALL).await;
            assert_eq!(*containerd.pids.borrow(), [1, 2, 3, 4, 5, 6]);
        });
    }

    #[test]
    fn an_event_that_containerd_refuses_does_not_block_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ttrpc");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let containerd = Rc::new(Containerd::default());
            let _serving = serve(&path, &containerd);
            let publisher = Publisher::start("ns", path.clone());
            for pid in 12..=14 {
                publisher.publish("/tasks/start", &start(pid));
            }
            publisher.flush(CALL).await;
            assert_eq!(*containerd.pids.borrow(), [12, 14]);
        });
    }
}
