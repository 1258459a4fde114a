//! Starts as traces: once a start is over, its timeline goes to an OpenTelemetry collector.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::plain_client;
use crate::mount::Lazy;
use crate::timeline::{Event, Start, What};

/// How often is looked for starts that are over.
const PERIOD: Duration = Duration::from_secs(2);
/// A collector that does not answer is given up after this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where a collector takes traces, below its address.
const PATH: &str = "/v1/traces";

/// The way to a collector.
pub(super) struct Traces {
    exporter: opentelemetry_otlp::SpanExporter,
}

impl Traces {
    /// The collector at `endpoint`, such as `http://127.0.0.1:4318`.
    pub(super) fn new(endpoint: &str) -> Result<Self> {
        let unusable = |reason: String| Error::Unusable {
            what: format!("traces.endpoint {endpoint}"),
            reason,
        };
        let client = plain_client(PATIENCE).map_err(|error| unusable(error.to_string()))?;
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(PATIENCE)
            .with_endpoint(format!("{}{PATH}", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let resource = Resource::builder_empty()
            .with_service_name("xebec-snapshotter")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        exporter.set_resource(&resource);
        Ok(Self { exporter })
    }

    /// Sends every start that is over, each once, for ever. One that the collector does not take is
    /// lost, and the log says so.
    pub(super) async fn send_all(self, lazy: Arc<Lazy>) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let lazy = Arc::clone(&lazy);
            // Naming the files reads indexes.
            let over = tokio::task::spawn_blocking(move || lazy.starts_over()).await;
            for start in over.unwrap_or_default() {
                if let Err(error) = self.send(&start).await {
                    tracing::warn!(image = start.image, error, "a trace is lost");
                }
            }
        }
    }

    async fn send(&self, start: &Start) -> Result<(), String> {
        let sent = self.exporter.export(spans(start)).await;
        sent.map_err(|error| error.to_string())
    }
}

/// A span for the start and one below it for each event. The same start has the same IDs.
fn spans(start: &Start) -> Vec<SpanData> {
    let began = UNIX_EPOCH + Duration::new(start.began.seconds, start.began.nanos);
    let key = format!("{} {} {began:?}", start.image, start.top);
    let trace = TraceId::from_bytes(first(&Digest::of(key.as_bytes())));
    let ids = Ids { trace, key };
    let ends = start.events.iter().map(|event| event.at + event.took);
    let whole = Span {
        number: 0,
        name: "start",
        at: 0,
        took: ends.max().unwrap_or_default(),
        attributes: vec![
            KeyValue::new("image", start.image.clone()),
            KeyValue::new("layer.top", start.top.to_string()),
            KeyValue::new("events.dropped", start.dropped as i64),
        ],
    };
    let events = start.events.iter().zip(1..).map(|(event, number)| Span {
        number,
        name: name(&event.what),
        at: event.at,
        took: event.took,
        attributes: attributes(event),
    });
    std::iter::once(whole)
        .chain(events)
        .map(|span| span.data(&ids, began))
        .collect()
}

/// What all spans of a trace have in common.
struct Ids {
    trace: TraceId,
    key: String,
}

impl Ids {
    fn span(&self, number: u64) -> SpanId {
        let key = format!("{} {number}", self.key);
        SpanId::from_bytes(first(&Digest::of(key.as_bytes())))
    }
}

struct Span {
    /// 0 is the start itself.
    number: u64,
    name: &'static str,
    /// Microseconds.
    at: u64,
    took: u64,
    attributes: Vec<KeyValue>,
}

impl Span {
    fn data(self, ids: &Ids, began: SystemTime) -> SpanData {
        let start_time = began + Duration::from_micros(self.at);
        SpanData {
            span_context: SpanContext::new(
                ids.trace,
                ids.span(self.number),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: match self.number {
                0 => SpanId::INVALID,
                _ => ids.span(0),
            },
            parent_span_is_remote: false,
            span_kind: match self.name {
                "fetch" | "resolve" => SpanKind::Client,
                _ => SpanKind::Internal,
            },
            name: self.name.into(),
            start_time,
            end_time: start_time + Duration::from_micros(self.took),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("xebec-snapshotter").build(),
        }
    }
}

fn name(what: &What) -> &'static str {
    match what {
        What::Resolve => "resolve",
        What::Open { .. } => "open",
        What::Prepare { .. } => "prepare",
        What::Profile { .. } => "profile",
        What::Mount { .. } => "mount",
        What::Fetch { .. } => "fetch",
        What::Wait { .. } => "wait",
    }
}

fn attributes(event: &Event) -> Vec<KeyValue> {
    let layer = |layer: &Digest| KeyValue::new("layer", layer.to_string());
    match &event.what {
        What::Resolve => Vec::new(),
        What::Open { layer: digest } | What::Prepare { layer: digest } => vec![layer(digest)],
        What::Profile { reads } => {
            vec![KeyValue::new("reads", reads.unwrap_or_default() as i64)]
        }
        What::Mount { by } => vec![KeyValue::new("by", by.clone())],
        What::Fetch {
            layer: digest,
            cause,
            offset,
            bytes,
        } => vec![
            layer(digest),
            KeyValue::new("cause", cause.clone()),
            KeyValue::new("offset", *offset as i64),
            KeyValue::new("bytes", *bytes as i64),
        ],
        What::Wait {
            layer: digest,
            file,
            bytes,
            ..
        } => vec![
            layer(digest),
            KeyValue::new("file", file.clone()),
            KeyValue::new("bytes", *bytes as i64),
        ],
    }
}

/// The first bytes of a digest.
fn first<const N: usize>(digest: &Digest) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest.as_bytes()[..N]);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;

    use super::*;
    use crate::snapshots::record::Timestamp;

    fn start() -> Start {
        let layer = Digest::of(b"layer");
        let event = |at, took, what| Event { at, took, what };
        let wait = What::Wait {
            layer,
            file: "bin/sh".to_owned(),
            bytes: 7,
            place: (0, 0),
        };
        Start {
            image: "h/i:v".to_owned(),
            top: Digest::of(b"top"),
            began: Timestamp {
                seconds: 1000,
                nanos: 5,
            },
            open: false,
            events: vec![event(0, 10, What::Resolve), event(20, 2000, wait)],
            dropped: 0,
        }
    }

    /// Takes one request, answers with `status`, and hands out its head and body.
    fn collector(status: &'static str) -> (String, std::thread::JoinHandle<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let taken = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let count = client.read(&mut buffer).unwrap();
                assert!(count > 0, "the request ended early");
                request.extend_from_slice(&buffer[..count]);
                let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else {
                    continue;
                };
                let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
                let length = head.split("content-length: ").nth(1).unwrap();
                let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
                if request.len() == end + 4 + length {
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    client.write_all(answer.as_bytes()).unwrap();
                    return (head, request.split_off(end + 4));
                }
            }
        });
        (endpoint, taken)
    }

    #[tokio::test]
    async fn a_start_arrives_as_a_span_with_its_events_below() {
        let (endpoint, taken) = collector("200 OK");
        Traces::new(&endpoint)
            .unwrap()
            .send(&start())
            .await
            .unwrap();
        let (head, body) = taken.join().unwrap();
        assert!(head.starts_with("post /v1/traces "), "{head}");
        let mut request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        let of_service = request.resource_spans.remove(0);
        let service = format!("{:?}", of_service.resource);
        assert!(service.contains("xebec-snapshotter"), "{service}");
        let spans = &of_service.scope_spans[0].spans;
        let told: Vec<_> = spans
            .iter()
            .map(|span| {
                (
                    &*span.name,
                    span.end_time_unix_nano - span.start_time_unix_nano,
                )
            })
            .collect();
        let expected = [
            ("start", 2_020_000),
            ("resolve", 10_000),
            ("wait", 2_000_000),
        ];
        assert_eq!(told, expected);
        assert!(spans.iter().all(|span| span.trace_id == spans[0].trace_id));
        assert!(spans[0].parent_span_id.is_empty());
        assert_eq!(spans[2].parent_span_id, spans[0].span_id);
        assert_eq!(spans[2].start_time_unix_nano, 1_000_000_020_005);
        assert!(format!("{:?}", spans[2].attributes).contains("bin/sh"));
    }

    #[tokio::test]
    async fn a_collector_that_refuses_is_an_error_and_a_bad_address_too() {
        let (endpoint, taken) = collector("400 Bad Request");
        let refused = Traces::new(&endpoint).unwrap().send(&start()).await;
        assert!(refused.is_err());
        taken.join().unwrap();
        let error = Traces::new("no address").err().unwrap().to_string();
        assert!(error.contains("traces.endpoint no address"), "{error}");
    }
}
