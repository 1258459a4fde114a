//! Events for containerd, handed to the supervisor in the order they happen, each together with
//! the change that it tells of.

pub mod oom;

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use prost::{Message, Name};
use xebec_proto::events_ttrpc::ForwardRequest;
use xebec_proto::ttrpc::Request;
use xebec_proto::types::Envelope;

use crate::link::Link;
use crate::supervisor::message::{Change, Importance};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// Topic of the events that are never dropped.
const EXIT: &str = "/tasks/exit";

/// Takes events.
#[derive(Debug, Clone)]
pub struct Publisher {
    namespace: Rc<str>,
    link: Arc<Link>,
}

impl Publisher {
    /// A publisher of one containerd namespace.
    pub fn new(namespace: &str, link: Arc<Link>) -> Publisher {
        Publisher {
            namespace: namespace.into(),
            link,
        }
    }

    /// Publishes an event under its topic, `/tasks/…`, and commits the changes it tells of.
    pub(crate) fn publish<M: Name>(&self, changes: Vec<Change>, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(xebec_proto::pack(event)),
        };
        let forward = ForwardRequest {
            envelope: Some(envelope),
        };
        let request = Request {
            service: SERVICE.to_owned(),
            method: "Forward".to_owned(),
            payload: forward.encode_to_vec(),
            ..Default::default()
        };
        let importance = if topic == EXIT {
            Importance::Vital
        } else {
            Importance::Ordinary
        };
        self.link
            .commit_event(changes, &request.encode_to_vec(), importance);
    }
}
