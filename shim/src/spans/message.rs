//! What a collector is told, in the messages of OTLP.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use crate::task::Answered;
use crate::trace::{Phase, Trace};

/// Name of the service, and of the instrumentation.
const NAME: &str = "containerd-shim-xebec-v2";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Flags of a span: it is sampled, and whether its parent is another process' is known; it is.
const SAMPLED: u32 = 0x01;
const KNOWN: u32 = 0x100;
const REMOTE: u32 = 0x200;
/// Longest text of an error that is told, in bytes.
const TEXT: usize = 512;

/// The span of a call, then those of its phases.
pub(super) fn spans(trace: &Trace, call: &Answered<'_>, phases: &[Phase]) -> Vec<Span> {
    // One reading of the clock, so that the spans fit each other.
    let now = (SystemTime::now(), Instant::now());
    let whole = call_span(trace, call, now);
    let parts = phases.iter().map(|phase| {
        let (start, end) = times(now, phase.began, phase.took);
        Span {
            trace_id: whole.trace_id.clone(),
            span_id: span_id(),
            trace_state: whole.trace_state.clone(),
            parent_span_id: whole.span_id.clone(),
            flags: SAMPLED | KNOWN,
            name: phase.name.to_owned(),
            kind: SpanKind::Internal as i32,
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            ..Span::default()
        }
    });
    let parts: Vec<Span> = parts.collect();
    std::iter::once(whole).chain(parts).collect()
}

fn call_span(trace: &Trace, call: &Answered<'_>, now: (SystemTime, Instant)) -> Span {
    let (start, end) = times(now, call.asked, call.took);
    let code = call.error.map_or(0, |error| error.code() as i64);
    let mut attributes = vec![
        text("rpc.system", "ttrpc"),
        text("rpc.service", call.service),
        text("rpc.method", call.method),
        attribute("rpc.grpc.status_code", Value::IntValue(code)),
        text("container.id", call.id),
    ];
    if !call.exec_id.is_empty() {
        attributes.push(text("containerd.exec.id", call.exec_id));
    }
    let status = call.error.map(|error| {
        let message = error.to_string();
        Status {
            message: message[..message.floor_char_boundary(TEXT)].to_owned(),
            code: StatusCode::Error as i32,
        }
    });
    Span {
        trace_id: trace.id().to_vec(),
        span_id: span_id(),
        trace_state: trace.state.to_string(),
        parent_span_id: trace.caller().to_vec(),
        flags: SAMPLED | KNOWN | REMOTE,
        name: format!("{}/{}", call.service, call.method),
        kind: SpanKind::Server as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        attributes,
        status,
        ..Span::default()
    }
}

/// Start and end in nanoseconds of Unix time.
fn times(now: (SystemTime, Instant), began: Instant, took: Duration) -> (u64, u64) {
    let nanos = |at: SystemTime| {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    };
    let start = now.0 - now.1.duration_since(began);
    (nanos(start), nanos(start + took))
}

/// An id that no other span of the trace has. The process is part of it: keys that a worker has
/// from its supervisor are those of its successor, too.
fn span_id() -> Vec<u8> {
    let here = (std::process::id(), Instant::now());
    let id = RandomState::new().hash_one(here);
    id.max(1).to_be_bytes().to_vec()
}

/// The whole request.
pub(super) fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Resource {
        attributes: vec![text("service.name", NAME), text("service.version", VERSION)],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: NAME.to_owned(),
        version: VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}
