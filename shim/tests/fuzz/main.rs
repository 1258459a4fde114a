//! What containerd, or who pretends to be it, sends to a shim, mutated: no panic, no hang, and an
//! answer to every call. The manner is that of the snapshotter's fuzzing, whose harness it is.

#[path = "../../../snapshotter/tests/fuzz/harness.rs"]
mod harness;

use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use prost_types::Any;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::LocalSet;
use xebec_proto::ttrpc::{KeyValue, Request, Response};
use xebec_proto::{pack, runc_options, runtimeoptions};
use xebec_shim::error::{Error, Result};
use xebec_shim::options::Options;
use xebec_shim::ttrpc::{Server, Service, Splitter};

/// Answers with what it was sent, and refuses what is not `Echo`.
struct Echo;

impl Service for Echo {
    async fn call(self: Rc<Self>, _: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        match method {
            "Echo" => Ok(payload.to_vec()),
            _ => Err(Error::Unimplemented(format!("method {method}"))),
        }
    }

    fn only_waits(&self, method: &str) -> bool {
        method == "Wait"
    }

    fn is_repeatable(&self, _: &str) -> bool {
        false
    }
}

fn frame(kind: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([kind, 0]);
    frame.extend(body);
    frame
}

fn call(stream: u32, method: &str) -> Vec<u8> {
    let request = Request {
        service: "s".into(),
        method: method.into(),
        payload: b"payload".to_vec(),
        timeout_nano: 5,
        metadata: vec![KeyValue {
            key: "traceparent".into(),
            value: "00-1-2-01".into(),
        }],
    };
    frame(1, stream, &request.encode_to_vec())
}

/// Complete frames at the start of `bytes`, which is what has to be answered.
fn frames(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((header, rest)) = bytes.split_first_chunk::<10>() {
        let [l0, l1, l2, l3, ..] = *header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if rest.len() < length {
            break;
        }
        bytes = &rest[length..];
        count += 1;
    }
    count
}

#[test]
fn ttrpc() {
    let one = [call(1, "Echo"), call(3, "Nope"), call(5, "Echo")].concat();
    let odd = [call(2, "Echo"), frame(3, 7, b"data"), call(9, "Echo")].concat();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    harness::run("ttrpc", vec![one, odd], |bytes| {
        let answers = LocalSet::new().block_on(&runtime, converse(bytes));
        let mut rest = answers.as_slice();
        let mut count = 0;
        while let Some((header, body)) = rest.split_first_chunk::<10>() {
            let [l0, l1, l2, l3, _, _, _, _, kind, _] = *header;
            let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            assert_eq!(kind, 2);
            Response::decode(&body[..length]).unwrap();
            rest = &body[length..];
            count += 1;
        }
        assert!(rest.is_empty(), "half an answer");
        // A call that only waits may end with its connection, unanswered.
        let waits = bytes.windows(4).any(|word| word == b"Wait");
        assert!(count == frames(bytes) || waits && count < frames(bytes));
    });
}

/// Sends everything at once, and collects the answers.
async fn converse(bytes: &[u8]) -> Vec<u8> {
    let (sender, mut frames) = unbounded_channel();
    let answer = Box::new(move |_, frame| sender.send(frame).unwrap());
    let server = Server::new(Rc::new(Echo), answer);
    for frame in Splitter::default().feed(bytes) {
        server.take(1, 1, &frame);
    }
    server.drain(Duration::from_mins(1)).await;
    let mut answers = Vec::new();
    while let Ok(frame) = frames.try_recv() {
        let frame: Vec<u8> = frame;
        answers.extend(frame);
    }
    answers
}

#[test]
fn options() {
    let runc = pack(&runc_options::Options {
        binary_name: "crun".into(),
        root: "/r".into(),
        io_uid: 7,
        ..Default::default()
    });
    let generic = pack(&runtimeoptions::Options {
        config_body: b"BinaryName = \"crun\"\nSystemdCgroup = true\n".to_vec(),
        ..Default::default()
    });
    let seeds = [runc, generic].map(|any| any.encode_to_vec());
    harness::run("options", seeds.into(), |bytes| {
        if let Ok(any) = Any::decode(bytes)
            && let Ok(options) = Options::decode(Some(&any))
        {
            // What is accepted is kept in the bundle, and has to come back.
            let json = serde_json::to_vec(&options).unwrap();
            let again: Options = serde_json::from_slice(&json).unwrap();
            assert_eq!(again.state_root("n"), options.state_root("n"));
            assert_eq!(again.binary_name, options.binary_name);
        }
    });
}
