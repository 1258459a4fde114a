//! Spans of traced calls, for a collector of OpenTelemetry: OTLP over HTTP, off unless the
//! environment or an option names one.
//!
//! A call that came with a sampled trace context becomes a span below the caller's, and the phases
//! of a start spans below that. They wait in a bounded queue and leave together, from the event
//! loop and after the answer: no call waits for a collector. What that does not take is lost, and
//! the log says so.

mod endpoint;
mod message;
mod post;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use tokio::sync::{Mutex, Notify};
use tokio::task::spawn_local;

use crate::error::Result;
use crate::task::Answered;
use crate::{log, trace};
pub(crate) use endpoint::Endpoint;
use opentelemetry_proto::tonic::trace::v1::Span;

/// How long spans wait for others.
const PERIOD: Duration = Duration::from_millis(200);
/// How many may wait; each has a few hundred bytes.
const MOST: usize = 256;
/// How long the last ones may take when the shim ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Takes the spans of a shim to its collector.
#[derive(Debug, Default)]
pub struct Spans {
    /// `None`: there is no collector, and nothing is done.
    endpoint: RefCell<Option<Rc<Endpoint>>>,
    queue: RefCell<Vec<Span>>,
    /// Spans that found the queue full, since it left last.
    dropped: Cell<usize>,
    ready: Notify,
    /// Held while spans are sent.
    sending: Mutex<()>,
    /// The collector did not take the last ones, and the log says so.
    is_failing: Cell<bool>,
}

impl Spans {
    /// Has the collector that the environment names, if it names one. Must run inside a `LocalSet`.
    pub(crate) fn of_environment() -> Rc<Spans> {
        let spans = Rc::new(Spans::default());
        match Endpoint::of_environment(|name| std::env::var(name).ok()) {
            Ok(Some(endpoint)) => spans.send_to(endpoint),
            Ok(None) => {}
            Err(error) => log::warn(format_args!("no spans: {error}")),
        }
        spans
    }

    /// Has the collector that the option `name` of a container names, if it names one; it comes
    /// before that of the environment. Must run inside a `LocalSet`.
    pub(crate) fn use_option(self: &Rc<Self>, name: &str, url: &str) -> Result<()> {
        if !url.is_empty() {
            self.send_to(Endpoint::of_option(name, url)?);
        }
        Ok(())
    }

    fn send_to(self: &Rc<Self>, endpoint: Endpoint) {
        let earlier = self.endpoint.replace(Some(Rc::new(endpoint)));
        if earlier.is_none() {
            drop(spawn_local(Rc::clone(self).send_all()));
        }
    }

    /// A call of the running trace has been answered.
    pub(crate) fn record(&self, call: &Answered<'_>) {
        let Some(trace) = trace::current().filter(|trace| trace.is_sampled()) else {
            return;
        };
        let phases = trace.take_phases();
        if self.endpoint.borrow().is_none() {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        for span in message::spans(&trace, call, &phases) {
            if queue.len() < MOST {
                queue.push(span);
            } else {
                self.dropped.set(self.dropped.get() + 1);
            }
        }
        self.ready.notify_one();
    }

    async fn send_all(self: Rc<Self>) {
        loop {
            self.ready.notified().await;
            tokio::time::sleep(PERIOD).await;
            self.send().await;
        }
    }

    /// Sends what waits.
    async fn send(&self) {
        let _turn = self.sending.lock().await;
        let endpoint = self.endpoint.borrow().clone();
        let (spans, dropped) = (self.queue.take(), self.dropped.take());
        let Some(endpoint) = endpoint.filter(|_| !spans.is_empty()) else {
            return;
        };
        if dropped > 0 {
            log::warn(format_args!("{dropped} spans are lost: too many at once"));
        }
        let count = spans.len();
        let body = message::request(spans).encode_to_vec();
        let sent = post::post(&endpoint, &body).await;
        drop(body);
        if let Err(error) = &sent
            && !self.is_failing.get()
        {
            let address = endpoint.address;
            log::warn(format_args!(
                "{count} spans are lost, and more until {address} takes some: {error}"
            ));
        }
        self.is_failing.set(sent.is_err());
        crate::sys::trim_heap();
    }

    /// Sends the last ones, if that can be hoped for.
    pub(crate) async fn finish(&self) {
        if self.is_failing.get() {
            return;
        }
        if tokio::time::timeout(FAREWELL, self.send()).await.is_err() {
            log::warn(format_args!(
                "the last spans are lost: {FAREWELL:?} have passed"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;
    use std::time::Instant;
    use tokio::task::LocalSet;
    use xebec_proto::ttrpc::KeyValue;

    /// Records some calls of a trace with those flags.
    async fn record(spans: &Spans, flags: &str, calls: usize) {
        let context = KeyValue {
            key: "traceparent".into(),
            value: format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"),
        };
        let call = Answered {
            service: "s",
            method: "M",
            id: "c",
            exec_id: "",
            asked: Instant::now(),
            took: Duration::from_micros(1),
            error: None,
        };
        let work = async { (0..calls).for_each(|_| spans.record(&call)) };
        trace::within(Trace::of(&[context]), work).await;
    }

    #[test]
    fn only_so_many_sampled_calls_wait_and_only_for_a_collector() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let spans = Rc::new(Spans::default());
            record(&spans, "01", 1).await;
            assert!(spans.queue.borrow().is_empty());
            // Whoever had this port does not listen any more.
            let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", closed.local_addr().unwrap());
            drop(closed);
            spans.use_option("option", &url).unwrap();
            record(&spans, "00", 1).await;
            assert!(spans.queue.borrow().is_empty());
            record(&spans, "01", MOST + 5).await;
            assert_eq!((spans.queue.borrow().len(), spans.dropped.get()), (MOST, 5));
            spans.send().await;
            assert!(spans.is_failing.get());
            assert_eq!((spans.queue.borrow().len(), spans.dropped.get()), (0, 0));
        });
    }
}
