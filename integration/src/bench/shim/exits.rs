//! containerd's stream of events: when it tells of exits, beside when they happened.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Runtime;
use tonic::Status;
use xebec_proto::events::TaskExit;
use xebec_proto::events_stream::SubscribeRequest;
use xebec_proto::events_stream::events_client::EventsClient;
use xebec_proto::types::Envelope;

use crate::error::{Error, Result};
use crate::grpc;

const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// How long the stream may take to tell of its first event.
const FIRST: Duration = Duration::from_mins(1);
/// How long one container is waited for until another one is run.
const PATIENCE: Duration = Duration::from_secs(1);

/// One exit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exit {
    /// When it happened, as the shim says.
    pub(super) at: SystemTime,
    /// When the stream told of it.
    pub(super) arrived: SystemTime,
}

type Told = std::result::Result<(String, Exit), String>;

/// A subscription to exits.
pub(super) struct Exits {
    told: Receiver<Told>,
    _runtime: Runtime,
}

impl Exits {
    /// Subscribes. containerd does not say when a subscription has begun, so `run` is called, with
    /// a number, to run a container to its end until one of the exits is told of.
    pub(super) fn follow(run: impl Fn(u32) -> Result<()>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(hurry)
            .enable_all()
            .build()
            .map_err(Error::system("start the runtime of a subscription"))?;
        let (tell, told) = channel();
        runtime.spawn(async move {
            if let Err(reason) = listen(&tell).await {
                // Nobody listens any more if this fails.
                let _ = tell.send(Err(reason));
            }
        });
        let exits = Self {
            told,
            _runtime: runtime,
        };
        let deadline = Instant::now() + FIRST;
        for number in 0.. {
            run(number)?;
            match exits.next(PATIENCE) {
                Ok(Some(_)) => break,
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => return Err(Error::invalid("events", "there are none")),
                Err(error) => return Err(error),
            }
        }
        Ok(exits)
    }

    /// The exits of these containers, all of which have been run.
    pub(super) fn of(&self, ids: &[String], patience: Duration) -> Result<Vec<Exit>> {
        let mut missing: BTreeSet<&str> = ids.iter().map(|id| &**id).collect();
        let mut exits = Vec::new();
        while let Some(id) = missing.first() {
            let Some((of, exit)) = self.next(patience)? else {
                return Err(Error::invalid(
                    format!("exit of {id}"),
                    "nothing tells of it",
                ));
            };
            if missing.remove(&*of) {
                exits.push(exit);
            }
        }
        Ok(exits)
    }

    fn next(&self, patience: Duration) -> Result<Option<(String, Exit)>> {
        match self.told.recv_timeout(patience) {
            Ok(Ok(told)) => Ok(Some(told)),
            Ok(Err(reason)) => Err(Error::invalid("containerd's events", reason)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Error::invalid(
                "containerd's events",
                "the stream has ended",
            )),
        }
    }
}

/// Puts this thread before others: how long it waits for a processor is not what is measured.
fn hurry() {
    // Where it is not allowed, figures are a little higher.
    let _ = rustix::process::setpriority_process(None, -20);
}

async fn listen(tell: &Sender<Told>) -> std::result::Result<(), String> {
    let status = |status: Status| format!("{}: {}", status.code(), status.message());
    let channel = grpc::connect(Path::new(CONTAINERD), FIRST).await;
    let channel = channel.map_err(|error| error.to_string())?;
    let request = SubscribeRequest {
        filters: vec![r#"topic=="/tasks/exit""#.to_owned()],
    };
    let stream = EventsClient::new(channel).subscribe(request).await;
    let mut stream = stream.map_err(status)?.into_inner();
    while let Some(envelope) = stream.message().await.map_err(status)? {
        let arrived = SystemTime::now();
        let told = exit(envelope, arrived).ok_or("an event that is no exit")?;
        if tell.send(Ok(told)).is_err() {
            break;
        }
    }
    Ok(())
}

fn exit(envelope: Envelope, arrived: SystemTime) -> Option<(String, Exit)> {
    let exit: TaskExit = xebec_proto::unpack(&envelope.event?)?.ok()?;
    let at = exit.exited_at?.try_into().ok()?;
    Some((exit.container_id, Exit { at, arrived }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_read_from_its_envelope() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        let event = TaskExit {
            container_id: "c".into(),
            exited_at: Some(at.into()),
            ..Default::default()
        };
        let envelope = Envelope {
            event: Some(xebec_proto::pack(&event)),
            ..Default::default()
        };
        let (id, told) = exit(envelope, SystemTime::now()).unwrap();
        assert_eq!((&*id, told.at), ("c", at));
        assert!(exit(Envelope::default(), SystemTime::now()).is_none());
    }
}
