//! containerd's side of a shim's events: takes all of them, in the order in which they come.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use xebec_proto::events::{TaskExit, TaskOom};
use xebec_proto::events_ttrpc::ForwardRequest;
use xebec_proto::prost::Message;
use xebec_proto::ttrpc::Request;
use xebec_proto::types::Envelope;
use xebec_proto::unpack;

use super::rpc;
use crate::error::{Error, Result};

/// How long an event may take to come.
const DEADLINE: Duration = Duration::from_mins(1);

type Shared = Arc<(Mutex<Vec<Envelope>>, Condvar)>;

/// All events so far.
#[derive(Debug)]
pub struct Events {
    taken: Shared,
}

impl Events {
    /// Serves the Events service at `path` for as long as this process lives.
    pub(super) fn listen(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).map_err(Error::file("listen at", path))?;
        let taken = Shared::default();
        let shared = Arc::clone(&taken);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                let shared = Arc::clone(&shared);
                // A shim that goes away ends its connection in the middle of anything.
                std::thread::spawn(move || serve(stream, &shared).unwrap_or_default());
            }
        });
        Ok(Self { taken })
    }

    /// Waits until `enough` of what has come, and returns that.
    pub fn wait(&self, enough: impl Fn(&[Envelope]) -> bool) -> Result<Vec<Envelope>> {
        let (list, changed) = &*self.taken;
        let end = Instant::now() + DEADLINE;
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        while !enough(&list) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = format!("not what was waited for: {:#?}", lines(&list));
                return Err(Error::invalid("the shim's events", reason));
            }
            let waited = changed.wait_timeout(list, left);
            list = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(list.clone())
    }

    /// Waits for `count` events of `topic` and returns everything so far as one line each.
    pub fn lines_until(&self, topic: &str, count: usize) -> Result<Vec<String>> {
        let enough = |list: &[Envelope]| {
            let of_topic = list.iter().filter(|event| event.topic == topic);
            of_topic.count() >= count
        };
        self.wait(enough).map(|list| lines(&list))
    }
}

/// Topics without `/tasks/`; exits with the process' id and status, and OOM kills with whose.
fn lines(list: &[Envelope]) -> Vec<String> {
    let line = |event: &Envelope| {
        let topic = event.topic.trim_start_matches("/tasks/");
        let Some(any) = &event.event else {
            return topic.to_owned();
        };
        if let Some(Ok(exit)) = unpack::<TaskExit>(any) {
            return format!("{topic} {} {}", exit.id, exit.exit_status);
        }
        if let Some(Ok(oom)) = unpack::<TaskOom>(any) {
            return format!("{topic} {}", oom.container_id);
        }
        topic.to_owned()
    };
    list.iter().map(line).collect()
}

fn serve(mut stream: UnixStream, shared: &Shared) -> Result<()> {
    use std::io::Write;
    while let Some((_, number, body)) = rpc::read_frame(&mut stream)? {
        let invalid = |e| Error::invalid("an event", e);
        let request = Request::decode(body.as_slice()).map_err(invalid)?;
        let forward = ForwardRequest::decode(request.payload.as_slice()).map_err(invalid)?;
        let (list, changed) = &**shared;
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        list.extend(forward.envelope);
        changed.notify_all();
        drop(list);
        stream
            .write_all(&rpc::empty_answer(number))
            .map_err(Error::system("answer an event"))?;
    }
    Ok(())
}
