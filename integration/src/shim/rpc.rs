//! A ttrpc client that is polite by default and as rude as a test wants.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use xebec_proto::prost::Message;
use xebec_proto::ttrpc::{KeyValue, Request, Response, Status};

use crate::error::{Error, Result};

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_mins(2);
/// Type byte of a request's frame.
pub const REQUEST: u8 = 1;
/// Type byte of a response's frame.
const RESPONSE: u8 = 2;

/// One connection. Streams are answered in whatever order; answers that nobody has asked for yet
/// are kept.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    service: String,
    last_stream: u32,
    early: HashMap<u32, Response>,
    metadata: Vec<KeyValue>,
}

impl Client {
    /// Connects to a socket; `service` is the one that [`Client::call`] calls.
    pub fn connect(path: &Path, service: &str) -> Result<Self> {
        let socket = UnixStream::connect(path).map_err(Error::file("connect to", path))?;
        socket
            .set_read_timeout(Some(DEADLINE))
            .map_err(Error::system("limit the wait for an answer"))?;
        Ok(Self {
            socket,
            service: service.to_owned(),
            last_stream: 0,
            early: HashMap::new(),
            metadata: Vec::new(),
        })
    }

    /// Has later calls carry metadata.
    pub fn set_metadata(&mut self, pairs: &[(&str, &str)]) {
        let pair = |(key, value): &(&str, &str)| KeyValue {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        self.metadata = pairs.iter().map(pair).collect();
    }

    /// Calls a method: its answer, or the status that it was refused with.
    pub fn call<R: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<std::result::Result<R, Status>> {
        let stream = self.send(method, request)?;
        self.answer(stream)
    }

    /// Calls a method that has to succeed.
    pub fn check<R: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<R> {
        self.call(method, request)?
            .map_err(|status| Error::invalid(format!("{method} of the shim"), status.message))
    }

    /// Sends a call without waiting; the stream on which its answer will come.
    pub fn send(&mut self, method: &str, request: &impl Message) -> Result<u32> {
        let stream = if self.last_stream == 0 {
            1
        } else {
            self.last_stream + 2
        };
        self.last_stream = stream;
        let request = Request {
            service: self.service.clone(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            metadata: self.metadata.clone(),
            ..Request::default()
        };
        self.send_bytes(&frame(REQUEST, stream, &request.encode_to_vec()))?;
        Ok(stream)
    }

    /// The answer on a stream.
    pub fn answer<R: Message + Default>(
        &mut self,
        stream: u32,
    ) -> Result<std::result::Result<R, Status>> {
        let response = loop {
            if let Some(response) = self.early.remove(&stream) {
                break response;
            }
            let (stream, response) = self.receive()?;
            self.early.insert(stream, response);
        };
        match response.status {
            Some(status) if status.code != 0 => Ok(Err(status)),
            _ => R::decode(response.payload.as_slice())
                .map(Ok)
                .map_err(|e| Error::invalid("the shim's answer", e)),
        }
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket
            .write_all(bytes)
            .map_err(Error::system("write to the shim"))
    }

    /// The next answer, on whatever stream.
    pub fn receive(&mut self) -> Result<(u32, Response)> {
        let (kind, stream, body) = read_frame(&mut self.socket)?
            .ok_or_else(|| Error::invalid("the shim", "it hung up"))?;
        if kind != RESPONSE {
            return Err(Error::invalid("the shim's frame", format!("type {kind}")));
        }
        let response = Response::decode(body.as_slice())
            .map_err(|e| Error::invalid("the shim's answer", e))?;
        Ok((stream, response))
    }
}

/// A frame of any kind around `body`.
pub fn frame(kind: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([kind, 0]);
    frame.extend(body);
    frame
}

/// Reads a frame: type, stream and body; `None` at the end.
pub(super) fn read_frame(from: &mut impl Read) -> Result<Option<(u8, u32, Vec<u8>)>> {
    let what = || Error::system("read a ttrpc frame");
    let mut header = [0; 10];
    let got = from.read(&mut header).map_err(what())?;
    if got == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[got..]).map_err(what())?;
    let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _] = header;
    let mut body = vec![0; u32::from_be_bytes([l0, l1, l2, l3]) as usize];
    from.read_exact(&mut body).map_err(what())?;
    Ok(Some((kind, u32::from_be_bytes([s0, s1, s2, s3]), body)))
}

/// An answer without an error.
pub(super) fn empty_answer(stream: u32) -> Vec<u8> {
    frame(RESPONSE, stream, &Response::default().encode_to_vec())
}
