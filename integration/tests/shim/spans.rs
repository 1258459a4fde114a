//! Spans of traced calls, as a collector of OpenTelemetry gets them.

use std::net::TcpListener;

use integration::collector::{Collector, Span};
use integration::ctr::Ctr;
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;
use integration::shim::{Shim, command, create_request, kill_request};
use xebec_proto::task::CreateTaskResponse;
use xebec_proto::{pack, runtimeoptions};

use crate::{INVALID_ARGUMENT, NOT_FOUND, assert_restored, bundle, host, refused};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// The calls that are traced, and the phases that each of them has.
const PHASES: [(&str, &[&str]); 5] = [
    ("Create", &["streams", "mount", "launch", "console"]),
    ("Start", &["start"]),
    ("Exec", &[]),
    ("Start", &["streams", "launch", "console"]),
    ("Kill", &[]),
];

/// Has the calls that follow be part of a trace.
fn be_traced(shim: &mut Shim, flags: &str) {
    let parent = format!("00-{TRACE}-{CALLER}-{flags}");
    let metadata = [("traceparent", &*parent), ("tracestate", "a=1")];
    shim.task.set_metadata(&metadata);
}

/// Starts a shim as a containerd does whose environment has `variables`.
fn start(host: &NativeHost, bundle: &str, id: &str, variables: &[(&str, &str)]) -> Shim {
    let mut start = command(host, bundle, id, &["start"]);
    start.envs(variables.iter().copied());
    Shim::started_by(host, id, start, b"").unwrap()
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<Vec<_>>().concat()
}

fn method(span: &Span) -> &str {
    span.name.rsplit('/').next().unwrap_or_default()
}

#[track_caller]
fn find<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let found = spans.iter().find(|span| method(span) == name);
    found.unwrap_or_else(|| panic!("no {name} in {spans:#?}"))
}

#[test]
fn traced_calls_and_the_phases_of_a_start_are_spans_below_the_callers() {
    let host = host();
    let collector = Collector::start(&host).unwrap();
    let bundle = bundle(&host, "c", &["sleep", "1000"]);
    let before = Inventory::of(&host).unwrap();
    let endpoint = collector.endpoint();
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint)];
    let mut shim = start(&host, bundle.path(), "c", &variables);
    // Nobody's trace, and one that nobody wants to see.
    shim.pid().unwrap();
    be_traced(&mut shim, "00");
    shim.pid().unwrap();
    be_traced(&mut shim, "01");
    shim.create("c", bundle.path()).unwrap();
    shim.start_process("c", "").unwrap();
    shim.exec("c", "e", &["true"]).unwrap();
    shim.start_process("c", "e").unwrap();
    let kill = kill_request("c", "x", 9);
    assert_eq!(refused(shim.task.call::<()>("Kill", &kill)).0, NOT_FOUND);
    let spans = collector.spans_when(|spans| spans.iter().any(|span| method(span) == "Kill"));
    let spans = spans.unwrap();
    the_calls_are_below_their_caller(&spans);
    the_phases_are_below_their_calls(&spans);

    a_successor_goes_on(&host, &mut shim, &collector);
    // What comes right before the end of the shim comes through, too.
    shim.end("c").unwrap();
    shim.shutdown().unwrap();
    let is_last = |span: &Span| method(span) == "Shutdown";
    let spans = collector.spans_when(|spans| spans.iter().any(is_last));
    let spans = spans.unwrap();
    find(&spans, "Delete");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let mut ids: Vec<_> = spans.iter().map(|span| &span.span_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), spans.len(), "ids are not unique: {spans:#?}");
    assert_restored(&host, &before);
}

fn the_calls_are_below_their_caller(spans: &[Span]) {
    let mut calls: Vec<&str> = Vec::new();
    for span in spans.iter().filter(|span| span.name.contains('/')) {
        assert_eq!(hex(&span.parent_span_id), CALLER, "{span:#?}");
        assert_eq!(span.trace_state, "a=1");
        assert_eq!(span.kind, 2, "it serves");
        calls.push(&span.name);
    }
    let service = "containerd.task.v3.Task";
    let expected = PHASES.map(|(method, _)| format!("{service}/{method}"));
    assert_eq!(calls, expected);
    let create = format!("{:?}", find(spans, "Create").attributes);
    assert!(create.contains("container.id"), "{create}");
    let kill = find(spans, "Kill");
    let status = kill.status.as_ref().expect("it has failed");
    assert_eq!(status.code, 2);
    assert!(status.message.contains('x'), "{status:?}");
    let attributes = format!("{:?}", kill.attributes);
    assert!(attributes.contains("IntValue(5)"), "{attributes}");
}

fn the_phases_are_below_their_calls(spans: &[Span]) {
    let calls = spans.iter().filter(|span| span.name.contains('/'));
    for (call, (_, phases)) in calls.zip(PHASES) {
        let below = spans
            .iter()
            .filter(|span| span.parent_span_id == call.span_id);
        let below: Vec<&Span> = below.collect();
        let names: Vec<&str> = below.iter().map(|span| &*span.name).collect();
        assert_eq!(names, phases, "{}", call.name);
        let mut at = call.start_time_unix_nano;
        for phase in below {
            assert!(at <= phase.start_time_unix_nano, "{spans:#?}");
            at = phase.end_time_unix_nano;
            assert!(phase.start_time_unix_nano <= at, "{spans:#?}");
        }
        assert!(at <= call.end_time_unix_nano, "{spans:#?}");
    }
}

fn a_successor_goes_on(host: &NativeHost, shim: &mut Shim, collector: &Collector) {
    crate::kill_worker(host, shim.pid().unwrap());
    shim.state("c", "").unwrap();
    let is_state = |span: &Span| method(span) == "State";
    collector
        .spans_when(|spans| spans.iter().any(is_state))
        .unwrap();
}

/// A collector that never answers, and its endpoint.
fn silent_collector(host: &NativeHost) -> (TcpListener, String) {
    let silent = host.in_network(|| TcpListener::bind("127.0.0.1:0"));
    let silent = silent.unwrap().unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    (silent, endpoint)
}

#[test]
fn a_shim_ends_though_its_worker_is_killed_between_the_answer_and_the_farewell() {
    let host = host();
    // The worker waits a second for this collector before it says farewell.
    let (_silent, endpoint) = silent_collector(&host);
    let bundle = bundle(&host, "c", &["sleep", "1000"]);
    let before = Inventory::of(&host).unwrap();
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint)];
    let mut shim = start(&host, bundle.path(), "c", &variables);
    be_traced(&mut shim, "01");
    shim.create("c", bundle.path()).unwrap();
    shim.delete("c", "").unwrap();
    let script = "read x; exec pkill -KILL -x xebec-worker";
    let mut killer = host.spawn(&["sh", "-c", script]).unwrap();
    shim.shutdown().unwrap();
    drop(killer.stdin.take());
    killer.wait().unwrap();
    // The connection is still there: a shim that had a new worker would stay for it.
    assert_restored(&host, &before);
    assert!(!shim.is_listening());
}

#[test]
fn a_collector_that_takes_nothing_holds_nothing_up() {
    let host = host();
    let bundle = bundle(&host, "c", &["sleep", "1000"]);
    let (_silent, silent_endpoint) = silent_collector(&host);
    let before = Inventory::of(&host).unwrap();
    for (id, endpoint) in [
        ("silent", &*silent_endpoint),
        ("closed", "http://127.0.0.1:1"),
        ("nonsense", "https://nonsense"),
    ] {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)];
        let mut shim = start(&host, bundle.path(), id, &variables);
        be_traced(&mut shim, "01");
        shim.create("c", bundle.path()).unwrap();
        shim.start_process("c", "").unwrap();
        for _ in 0..1000 {
            shim.state("c", "").unwrap();
        }
        shim.end("c").unwrap();
        shim.shutdown().unwrap();
        assert_restored(&host, &before);
    }
}

#[test]
fn a_collector_may_be_an_option_and_comes_before_that_of_the_environment() {
    let host = host();
    let collector = Collector::start(&host).unwrap();
    let bundle = bundle(&host, "c", &["sleep", "1000"]);
    let before = Inventory::of(&host).unwrap();
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")];
    let mut shim = start(&host, bundle.path(), "c", &variables);
    be_traced(&mut shim, "01");
    let mut request = create_request("c", bundle.path());
    let mut create = |endpoint: &str| {
        let config = format!("TracesEndpoint = {endpoint:?}\n");
        request.options = Some(pack(&runtimeoptions::Options {
            config_body: config.into_bytes(),
            ..Default::default()
        }));
        shim.task.call::<CreateTaskResponse>("Create", &request)
    };
    let (code, message) = refused(create("https://127.0.0.1"));
    assert_eq!(code, INVALID_ARGUMENT);
    let expected = "TracesEndpoint: \"https://127.0.0.1\": it does not begin with http://";
    assert_eq!(message, expected);
    create(&collector.endpoint()).unwrap().unwrap();
    let is_made = |span: &Span| method(span) == "Create" && span.status.is_none();
    let made = collector.spans_when(|spans| spans.iter().any(is_made));
    made.unwrap();
    shim.end("c").unwrap();
    shim.shutdown().unwrap();
    assert_restored(&host, &before);
}

#[test]
fn a_traced_containerd_and_its_shim_tell_one_trace() {
    let services = [Service::Registry, Service::Containerd];
    let host = NativeHost::start(HostOptions::with(&services)).unwrap();
    let collector = Collector::start(&host).unwrap();
    let image = host.push("busybox").unwrap();
    host.stop(Service::Containerd).unwrap();
    let endpoint = collector.endpoint();
    let traced =
        format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint} exec containerd >/srv/traced.log 2>&1");
    let mut containerd = host.spawn(&["sh", "-c", &traced]).unwrap();
    let is_up = "until ctr version; do sleep 0.1; done";
    host.check_sh(is_up).unwrap();
    let ctr = Ctr::new(&host);
    ctr.pull(&image, "overlayfs").unwrap();
    let run = [
        "ctr",
        "run",
        "--rm",
        "--runtime",
        "io.containerd.xebec.v2",
        &image,
        "c",
        "true",
    ];
    host.check(&run).unwrap();
    // Both have a span for the call: containerd's is the parent of the shim's.
    let spans = collector.spans_when(|spans| {
        let served = spans
            .iter()
            .filter(|span| span.kind == 2 && method(span) == "Create");
        let mut served = served.filter(|span| span.name.starts_with("containerd.task."));
        served.any(|span| spans.iter().any(|it| it.span_id == span.parent_span_id))
    });
    spans.unwrap();
    containerd.kill().unwrap();
    containerd.wait().unwrap();
}
