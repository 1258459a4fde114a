//! Frames: length (4 bytes), stream id (4 bytes), type and flags (1 byte each), big endian.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use xebec_proto::ttrpc::{Response, Status};

use crate::error::Code;

/// Bytes of a header.
pub(super) const HEADER: usize = 10;
/// Longest message that the protocol allows, in bytes.
pub(super) const MAX_MESSAGE: usize = 4 << 20;

/// Type byte of a request.
pub(super) const REQUEST: u8 = 1;
/// Type byte of a response.
pub(super) const RESPONSE: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: usize,
    pub(super) stream: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
}

impl Header {
    pub(super) fn decode(bytes: [u8; HEADER]) -> Header {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = bytes;
        Header {
            length: u32::from_be_bytes([l0, l1, l2, l3]) as usize,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind,
            flags,
        }
    }

    pub(super) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&(self.length as u32).to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8] = self.kind;
        bytes[9] = self.flags;
        bytes
    }
}

/// What came in. A message that is too long is skipped, so that the stream stays in step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Message(Header, Vec<u8>),
    TooLong(Header),
}

/// Reads one frame; `None` at a clean end of the stream.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut bytes = [0; HEADER];
    let first = from.read(&mut bytes).await?;
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut bytes[first..]).await?;
    let header = Header::decode(bytes);
    let mut body = from.take(header.length as u64);
    if header.length > MAX_MESSAGE {
        let skipped = tokio::io::copy(&mut body, &mut tokio::io::sink()).await?;
        return if skipped == header.length as u64 {
            Ok(Some(Frame::TooLong(header)))
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        };
    }
    // Grows with what arrives: a length alone reserves no memory.
    let mut message = Vec::with_capacity(header.length.min(64 * 1024));
    if body.read_to_end(&mut message).await? != header.length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame::Message(header, message)))
}

/// Encodes `message` as one frame, header first.
pub(super) fn encode(kind: u8, stream: u32, message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(HEADER + length);
    frame.extend_from_slice(
        &Header {
            length,
            stream,
            kind,
            flags: 0,
        }
        .encode(),
    );
    message.encode_raw(&mut frame);
    frame
}

/// Writes one encoded frame.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    to.write_all(frame).await
}

/// A response that carries an error and no payload.
pub(super) fn refusal(code: Code, message: String) -> Response {
    let status = Status {
        code: code as i32,
        message,
        details: Vec::new(),
    };
    Response {
        status: Some(status),
        payload: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xebec_proto::ttrpc::Request;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_header_survives_the_round_trip() {
        let header = Header {
            length: 0x0001_0203,
            stream: 7,
            kind: REQUEST,
            flags: 1,
        };
        assert_eq!(header.encode(), [0, 1, 2, 3, 0, 0, 0, 7, 1, 1]);
        assert_eq!(Header::decode(header.encode()), header);
    }

    #[test]
    fn an_encoded_message_is_read_back() {
        let request = Request {
            service: "s".into(),
            method: "m".into(),
            ..Default::default()
        };
        let bytes = encode(REQUEST, 3, &request);
        let Some(Frame::Message(header, body)) = run(read(&mut bytes.as_slice())).unwrap() else {
            panic!("no message");
        };
        assert_eq!((header.stream, header.kind), (3, REQUEST));
        assert_eq!(Request::decode(body.as_slice()).unwrap(), request);
    }

    #[test]
    fn the_end_between_frames_is_clean_and_inside_a_frame_is_not() {
        assert_eq!(run(read(&mut [].as_slice())).unwrap(), None);
        let request = Request {
            service: "service".into(),
            ..Default::default()
        };
        let bytes = encode(REQUEST, 1, &request);
        for cut in 1..bytes.len() {
            let error = run(read(&mut &bytes[..cut])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }

    #[test]
    fn an_oversized_message_is_skipped_and_the_next_one_read() {
        let length = MAX_MESSAGE + 1;
        let long = Header {
            length,
            stream: 1,
            kind: REQUEST,
            flags: 0,
        };
        let mut bytes = long.encode().to_vec();
        bytes.resize(HEADER + length, 0xaa);
        bytes.extend(encode(REQUEST, 3, &Request::default()));
        let mut from = bytes.as_slice();
        assert_eq!(run(read(&mut from)).unwrap(), Some(Frame::TooLong(long)));
        assert!(
            matches!(run(read(&mut from)).unwrap(), Some(Frame::Message(h, _)) if h.stream == 3)
        );
    }
}
