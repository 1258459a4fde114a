//! Serving: frames come one at a time, calls run side by side, each answer is sent whole.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_local};
use xebec_proto::ttrpc::{Request, Response};

use super::frame::{self, Frame};
use crate::error::{Code, Result};
use crate::log;
use crate::trace::{self, Trace};

/// How often a request is tried: one that ends its server every time must not do so for ever.
const MOST_ATTEMPTS: u32 = 3;

/// What a server serves.
pub trait Service: 'static {
    /// Handles one call and returns the encoded response message.
    fn call(
        self: Rc<Self>,
        service: &str,
        method: &str,
        payload: &[u8],
    ) -> impl Future<Output = Result<Vec<u8>>>;

    /// True for calls that change nothing, only wait or look, and may be dropped when the caller
    /// hangs up or the shim ends.
    fn only_waits(&self, method: &str) -> bool;

    /// True for calls that may be made again when nobody knows how far an earlier server came.
    fn is_repeatable(&self, method: &str) -> bool;
}

/// Sends a frame over a connection.
pub type Answer = Box<dyn Fn(u32, Vec<u8>)>;

/// A ttrpc server; its connections are held by somebody else, who feeds it their frames.
pub struct Server<S> {
    service: Rc<S>,
    busy: Rc<Busy>,
    answer: Rc<Answer>,
    connections: RefCell<HashMap<u32, Connection>>,
}

/// What a connection needs to have remembered.
#[derive(Default)]
struct Connection {
    last_stream: u32,
    /// Dropped with the connection, which ends the calls that only wait.
    waits: JoinSet<()>,
}

/// How many calls are being answered, without those that only wait.
#[derive(Default)]
struct Busy {
    calls: Cell<usize>,
    idle: Notify,
}

struct BusyGuard(Rc<Busy>);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get() - 1);
        if self.0.calls.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}

impl<S: Service> Server<S> {
    /// A server for `service`.
    pub fn new(service: Rc<S>, answer: Answer) -> Server<S> {
        Server {
            service,
            busy: Rc::default(),
            answer: Rc::new(answer),
            connections: RefCell::default(),
        }
    }

    /// Takes one frame of a connection. `attempt` counts how often it has been given to a server;
    /// what earlier ones did of it is not known. Must run inside a `LocalSet`.
    pub fn take(&self, connection: u32, attempt: u32, frame: &[u8]) {
        let mut connections = self.connections.borrow_mut();
        let state = connections.entry(connection).or_default();
        while state.waits.try_join_next().is_some() {}
        let Some(frame) = Frame::decode(frame) else {
            return log::error(format_args!("a frame without a header"));
        };
        let (stream, request) = match admit(frame, state.last_stream) {
            Ok(admitted) => admitted,
            Err((stream, refusal)) => {
                return (self.answer)(connection, encode(stream, &refusal));
            }
        };
        state.last_stream = stream;
        let only_waits = self.service.only_waits(&request.method);
        let is_repeatable =
            only_waits || (attempt <= MOST_ATTEMPTS && self.service.is_repeatable(&request.method));
        if attempt > 1 && !is_repeatable {
            let text = format!("the shim was restarted during {}", request.method);
            let refusal = frame::refusal(Code::Unavailable, text);
            return (self.answer)(connection, encode(stream, &refusal));
        }
        let answer = Rc::clone(&self.answer);
        let send = move |response: &Response| answer(connection, encode(stream, response));
        let call = handle(Rc::clone(&self.service), request, send);
        if only_waits {
            state.waits.spawn_local(call);
            return;
        }
        self.busy.calls.set(self.busy.calls.get() + 1);
        let guard = BusyGuard(Rc::clone(&self.busy));
        spawn_local(async move {
            call.await;
            drop(guard);
        });
    }

    /// A connection has ended.
    pub fn closed(&self, connection: u32) {
        self.connections.borrow_mut().remove(&connection);
    }

    /// Waits until every call has its answer, at most `limit`.
    pub async fn drain(&self, limit: Duration) {
        let idle = async {
            loop {
                let notified = self.busy.idle.notified();
                if self.busy.calls.get() == 0 {
                    return;
                }
                notified.await;
            }
        };
        if tokio::time::timeout(limit, idle).await.is_err() {
            log::warn(format_args!(
                "calls are still being answered after {limit:?}"
            ));
        }
    }
}

/// Checks a frame: the request in it, or the stream to refuse and why.
fn admit(frame: Frame, last_stream: u32) -> std::result::Result<(u32, Request), (u32, Response)> {
    let invalid = |stream, text: &str| {
        (
            stream,
            frame::refusal(Code::InvalidArgument, text.to_owned()),
        )
    };
    let (header, body) = match frame {
        Frame::Message(header, body) => (header, body),
        Frame::TooLong(header) => {
            let text = format!(
                "message length {} exceed maximum message size of {}",
                header.length,
                frame::MAX_MESSAGE
            );
            return Err((header.stream, frame::refusal(Code::ResourceExhausted, text)));
        }
    };
    if header.kind != frame::REQUEST {
        return Err(invalid(header.stream, "only unary requests are served"));
    }
    if header.stream % 2 == 0 {
        return Err(invalid(
            header.stream,
            "StreamID must be odd for client initiated streams",
        ));
    }
    if header.stream <= last_stream {
        return Err(invalid(
            header.stream,
            "StreamID cannot be re-used and must increment",
        ));
    }
    match Request::decode(body.as_slice()) {
        Ok(request) => Ok((header.stream, request)),
        Err(error) => Err(invalid(
            header.stream,
            &format!("unmarshal request: {error}"),
        )),
    }
}

/// One call from request to answer.
async fn handle<S: Service>(service: Rc<S>, request: Request, send: impl Fn(&Response)) {
    let result = trace::within(
        Trace::of(&request.metadata),
        service.call(&request.service, &request.method, &request.payload),
    )
    .await;
    send(&match result {
        Ok(payload) => Response {
            status: None,
            payload,
        },
        Err(error) => frame::refusal(error.code(), error.to_string()),
    });
}

fn encode(stream: u32, response: &Response) -> Vec<u8> {
    let bytes = frame::encode(frame::RESPONSE, stream, response);
    if bytes.len() - frame::HEADER <= frame::MAX_MESSAGE {
        return bytes;
    }
    let text = "the answer exceeds the maximum message size".to_owned();
    let refusal = frame::refusal(Code::ResourceExhausted, text);
    frame::encode(frame::RESPONSE, stream, &refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::task::LocalSet;

    /// Answers with its payload; `Slow` does so after every later `Echo`.
    struct Echo {
        released: Notify,
    }

    impl Service for Echo {
        async fn call(self: Rc<Self>, _: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
            match method {
                "Echo" => self.released.notify_one(),
                "Slow" => self.released.notified().await,
                _ => return Err(Error::Unimplemented(format!("method {method}"))),
            }
            Ok(payload.to_vec())
        }

        fn only_waits(&self, method: &str) -> bool {
            method == "Slow"
        }

        fn is_repeatable(&self, method: &str) -> bool {
            method == "Echo"
        }
    }

    /// A server and the answers that it gives.
    struct Client {
        server: Server<Echo>,
        answers: UnboundedReceiver<Vec<u8>>,
    }

    impl Client {
        fn send(&self, attempt: u32, bytes: &[u8]) {
            self.server.take(1, attempt, bytes);
        }

        async fn response(&mut self) -> (u32, Response) {
            let bytes = self.answers.recv().await.unwrap();
            match Frame::decode(&bytes).unwrap() {
                Frame::Message(header, body) => {
                    (header.stream, Response::decode(body.as_slice()).unwrap())
                }
                Frame::TooLong(_) => panic!("oversized answer"),
            }
        }

        async fn refused(&mut self, attempt: u32, bytes: &[u8]) -> (u32, i32) {
            self.send(attempt, bytes);
            let (stream, answer) = self.response().await;
            (stream, answer.status.unwrap().code)
        }
    }

    fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Client) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (sender, answers) = unbounded_channel();
            let service = Rc::new(Echo {
                released: Notify::new(),
            });
            let answer = Box::new(move |_, frame| sender.send(frame).unwrap());
            let server = Server::new(service, answer);
            test(Client { server, answers }).await;
        });
    }

    fn call(stream: u32, method: &str, payload: &[u8]) -> Vec<u8> {
        let request = Request {
            service: "s".into(),
            method: method.into(),
            payload: payload.to_vec(),
            ..Default::default()
        };
        frame::encode(frame::REQUEST, stream, &request)
    }

    #[test]
    fn calls_on_one_connection_overtake_each_other() {
        with_server(async |mut client| {
            client.send(1, &call(1, "Slow", b"one"));
            client.send(1, &call(3, "Echo", b"two"));
            let mut streams = [client.response().await.0, client.response().await.0];
            streams.sort_unstable();
            assert_eq!(streams, [1, 3]);
        });
    }

    #[test]
    fn bad_frames_get_the_right_status_and_the_connection_lives_on() {
        with_server(async |mut client| {
            let garbage = [0, 0, 0, 2, 0, 0, 0, 7, 1, 0, 0xff, 0xff];
            let data = {
                let mut frame = call(5, "Echo", b"");
                frame[8] = 3;
                frame
            };
            for (bytes, stream, code) in [
                (&*call(1, "Nope", b""), 1, Code::Unimplemented),
                (&call(2, "Echo", b""), 2, Code::InvalidArgument),
                (&call(1, "Echo", b""), 1, Code::InvalidArgument),
                (&data, 5, Code::InvalidArgument),
                (&garbage, 7, Code::InvalidArgument),
                (
                    &[0x01, 0, 0, 0, 0, 0, 0, 9, 1, 0],
                    9,
                    Code::ResourceExhausted,
                ),
            ] {
                assert_eq!(client.refused(1, bytes).await, (stream, code as i32));
            }
            client.send(1, &call(11, "Echo", b"still here"));
            assert_eq!(client.response().await.1.payload, b"still here");
        });
    }

    #[test]
    fn what_an_earlier_server_may_have_done_is_done_again_only_if_that_does_no_harm() {
        with_server(async |mut client| {
            client.send(2, &call(1, "Echo", b"again"));
            assert_eq!(client.response().await.1.payload, b"again");
            let unavailable = Code::Unavailable as i32;
            for (attempt, stream, method) in [(2, 3, "Nope"), (MOST_ATTEMPTS + 1, 5, "Echo")] {
                let refused = client.refused(attempt, &call(stream, method, b"")).await;
                assert_eq!(refused, (stream, unavailable));
            }
        });
    }
}
