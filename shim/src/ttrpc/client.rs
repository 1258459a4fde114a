//! Calling: one call at a time, which is all that ordered events need.

use std::io;
use std::path::Path;

use prost::Message;
use tokio::net::UnixStream;
use xebec_proto::ttrpc::{Request, Response, Status};

use super::frame::{self, Frame};

/// A connection to a ttrpc server.
pub struct Client {
    stream: UnixStream,
    next_stream: u32,
}

impl Client {
    /// Connects to the unix socket at `path`.
    pub async fn connect(path: &Path) -> io::Result<Client> {
        Ok(Client {
            stream: UnixStream::connect(path).await?,
            next_stream: 1,
        })
    }

    /// Calls a method and returns its payload, or the status it answered with. After an I/O
    /// error, or when the call was dropped half-way, the client must not be used again.
    pub async fn call(
        &mut self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
    ) -> io::Result<Result<Vec<u8>, Status>> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            ..Default::default()
        };
        let stream = self.next_stream;
        self.next_stream += 2;
        let bytes = frame::encode(frame::REQUEST, stream, &request);
        frame::write(&mut self.stream, &bytes).await?;
        loop {
            let frame = frame::read(&mut self.stream).await?;
            let Some(Frame::Message(header, body)) = frame else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            if header.kind != frame::RESPONSE || header.stream != stream {
                continue;
            }
            let response = Response::decode(body.as_slice()).map_err(io::Error::other)?;
            return Ok(match response.status {
                Some(status) if status.code != 0 => Err(status),
                _ => Ok(response.payload),
            });
        }
    }
}
