//! Serving: connections are read one frame at a time, calls run side by side, each answer is
//! written whole.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::{JoinSet, spawn_local};
use xebec_proto::ttrpc::{Request, Response};

use super::frame::{self, Frame};
use crate::error::{Code, Result};
use crate::log;

/// What a server serves.
pub trait Service: 'static {
    /// Handles one call and returns the encoded response message.
    fn call(
        self: Rc<Self>,
        service: &str,
        method: &str,
        payload: &[u8],
    ) -> impl Future<Output = Result<Vec<u8>>>;

    /// True for calls that only wait and may be dropped when the caller hangs up.
    fn only_waits(&self, method: &str) -> bool;
}

/// A ttrpc server on one listener.
pub struct Server<S> {
    service: Rc<S>,
    busy: Rc<Busy>,
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
    pub fn new(service: Rc<S>) -> Server<S> {
        Server {
            service,
            busy: Rc::default(),
        }
    }

    /// Accepts connections for ever. Must run inside a `LocalSet`.
    pub async fn serve(&self, listener: &UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(spawn_local(self.connection(stream))),
                Err(error) => {
                    log::error(format_args!("accept a connection: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves one connection to its end. Must run inside a `LocalSet`.
    pub fn connection(&self, stream: UnixStream) -> impl Future<Output = ()> + use<S> {
        connection(stream, Rc::clone(&self.service), Rc::clone(&self.busy))
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

/// A connection's sending side; a frame is written under the lock.
type Sender = Rc<Mutex<OwnedWriteHalf>>;

async fn connection<S: Service>(stream: UnixStream, service: Rc<S>, busy: Rc<Busy>) {
    let (mut reader, writer) = stream.into_split();
    let writer: Sender = Rc::new(Mutex::new(writer));
    // Dropped with the connection, which ends the calls that only wait.
    let mut waits = JoinSet::new();
    let mut last_stream = 0;
    loop {
        while waits.try_join_next().is_some() {}
        let frame = match frame::read(&mut reader).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => return log::debug(format_args!("ttrpc connection: {error}")),
        };
        let (stream, request) = match admit(frame, last_stream) {
            Ok(admitted) => admitted,
            Err((stream, refusal)) => {
                answer(&writer, stream, &refusal).await;
                continue;
            }
        };
        last_stream = stream;
        let call = handle(Rc::clone(&service), Rc::clone(&writer), stream, request);
        match call {
            (call, true) => drop(waits.spawn_local(call)),
            (call, false) => {
                busy.calls.set(busy.calls.get() + 1);
                let guard = BusyGuard(Rc::clone(&busy));
                drop(spawn_local(async move {
                    call.await;
                    drop(guard);
                }));
            }
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

/// One call from request to written answer, and whether it only waits.
fn handle<S: Service>(
    service: Rc<S>,
    writer: Sender,
    stream: u32,
    request: Request,
) -> (impl Future<Output = ()>, bool) {
    let only_waits = service.only_waits(&request.method);
    let call = async move {
        let result = service
            .call(&request.service, &request.method, &request.payload)
            .await;
        let response = match result {
            Ok(payload) => Response {
                status: None,
                payload,
            },
            Err(error) => {
                log::debug(format_args!("{} failed: {error}", request.method));
                frame::refusal(error.code(), error.to_string())
            }
        };
        answer(&writer, stream, &response).await;
    };
    (call, only_waits)
}

async fn answer(writer: &Sender, stream: u32, response: &Response) {
    let mut bytes = frame::encode(frame::RESPONSE, stream, response);
    if bytes.len() - frame::HEADER > frame::MAX_MESSAGE {
        let text = "the answer exceeds the maximum message size".to_owned();
        let refusal = frame::refusal(Code::ResourceExhausted, text);
        bytes = frame::encode(frame::RESPONSE, stream, &refusal);
    }
    if let Err(error) = frame::write(&mut *writer.lock().await, &bytes).await {
        // The caller hung up; whoever calls next finds the state as it is.
        log::debug(format_args!("answer on stream {stream}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use tokio::io::AsyncWriteExt;
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
    }

    fn with_server<F: Future<Output = ()>>(test: impl FnOnce(UnixStream) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (client, server) = UnixStream::pair().unwrap();
            let service = Rc::new(Echo {
                released: Notify::new(),
            });
            spawn_local(connection(server, service, Rc::default()));
            test(client).await;
        });
    }

    fn request(method: &str, payload: &[u8]) -> Request {
        let payload = payload.to_vec();
        Request {
            service: "s".into(),
            method: method.into(),
            payload,
            ..Default::default()
        }
    }

    async fn response(from: &mut UnixStream) -> (u32, Response) {
        match frame::read(from).await.unwrap().unwrap() {
            Frame::Message(header, body) => {
                (header.stream, Response::decode(body.as_slice()).unwrap())
            }
            Frame::TooLong(_) => panic!("oversized answer"),
        }
    }

    async fn refused(client: &mut UnixStream, bytes: &[u8]) -> (u32, i32) {
        client.write_all(bytes).await.unwrap();
        let (stream, answer) = response(client).await;
        (stream, answer.status.unwrap().code)
    }

    #[test]
    fn calls_on_one_connection_overtake_each_other() {
        with_server(async |mut client| {
            let slow = frame::encode(frame::REQUEST, 1, &request("Slow", b"one"));
            let fast = frame::encode(frame::REQUEST, 3, &request("Echo", b"two"));
            client.write_all(&[slow, fast].concat()).await.unwrap();
            let mut streams = [response(&mut client).await.0, response(&mut client).await.0];
            streams.sort_unstable();
            assert_eq!(streams, [1, 3]);
        });
    }

    #[test]
    fn bad_frames_get_the_right_status_and_the_connection_lives_on() {
        with_server(async |mut client| {
            let unknown = frame::encode(frame::REQUEST, 1, &request("Nope", b""));
            assert_eq!(
                refused(&mut client, &unknown).await,
                (1, Code::Unimplemented as i32)
            );
            let even = frame::encode(frame::REQUEST, 2, &request("Echo", b""));
            assert_eq!(
                refused(&mut client, &even).await,
                (2, Code::InvalidArgument as i32)
            );
            let reused = frame::encode(frame::REQUEST, 1, &request("Echo", b""));
            assert_eq!(
                refused(&mut client, &reused).await,
                (1, Code::InvalidArgument as i32)
            );
            let data = frame::encode(3, 5, &request("Echo", b""));
            assert_eq!(
                refused(&mut client, &data).await,
                (5, Code::InvalidArgument as i32)
            );
            let garbage = [0, 0, 0, 2, 0, 0, 0, 7, 1, 0, 0xff, 0xff];
            assert_eq!(
                refused(&mut client, &garbage).await,
                (7, Code::InvalidArgument as i32)
            );
            let mut long = vec![0x01, 0, 0, 0, 0, 0, 0, 9, 1, 0];
            long.resize(long.len() + (1 << 24), 0);
            assert_eq!(
                refused(&mut client, &long).await,
                (9, Code::ResourceExhausted as i32)
            );
            let good = frame::encode(frame::REQUEST, 11, &request("Echo", b"still here"));
            client.write_all(&good).await.unwrap();
            assert_eq!(response(&mut client).await.1.payload, b"still here");
        });
    }
}
