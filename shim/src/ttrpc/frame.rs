//! Frames: length (4 bytes), stream id (4 bytes), type and flags (1 byte each), big endian.

use prost::Message;
use xebec_proto::ttrpc::{Response, Status};

use crate::error::Code;

/// Bytes of a header.
pub(crate) const HEADER: usize = 10;
/// Longest message that the protocol allows, in bytes.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;

/// Type byte of a request.
pub(crate) const REQUEST: u8 = 1;
/// Type byte of a response.
pub(crate) const RESPONSE: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) length: usize,
    pub(crate) stream: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
}

impl Header {
    pub(crate) fn decode(bytes: [u8; HEADER]) -> Header {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = bytes;
        Header {
            length: u32::from_be_bytes([l0, l1, l2, l3]) as usize,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind,
            flags,
        }
    }

    pub(crate) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&(self.length as u32).to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8] = self.kind;
        bytes[9] = self.flags;
        bytes
    }
}

/// A frame as it came: header and message, or the header alone of a message that is too long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A message of a length that the protocol allows.
    Message(Header, Vec<u8>),
    /// A longer one.
    TooLong(Header),
}

impl Frame {
    /// Takes the bytes of one frame apart, as a [`Splitter`] yields them.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Frame> {
        let (header, body) = bytes.split_first_chunk::<HEADER>()?;
        let header = Header::decode(*header);
        Some(if header.length > MAX_MESSAGE {
            Frame::TooLong(header)
        } else {
            Frame::Message(header, body.to_vec())
        })
    }
}

/// Cuts a stream of bytes into frames. A message that is too long is skipped, so that the stream
/// stays in step; only its header comes out.
#[derive(Debug, Default)]
pub struct Splitter {
    bytes: Vec<u8>,
    /// What is still to come of a message that is too long.
    skip: usize,
}

impl Splitter {
    /// Takes what was read and returns the frames that are complete with it.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                if self.skip == 0 {
                    frames.push(std::mem::take(&mut self.bytes));
                }
                continue;
            }
            // Grows with what arrives: a length alone reserves no memory.
            let wanted = self.missing().min(bytes.len());
            self.bytes.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            let length = self.length();
            if length > Some(MAX_MESSAGE) {
                self.skip = length.unwrap_or_default();
            } else if length.is_some() && self.missing() == 0 {
                frames.push(std::mem::take(&mut self.bytes));
            }
        }
        frames
    }

    /// Length of the message, once the header is there.
    fn length(&self) -> Option<usize> {
        let header = self.bytes.first_chunk::<HEADER>()?;
        Some(Header::decode(*header).length)
    }

    /// Bytes until the header, or else the frame, is complete.
    fn missing(&self) -> usize {
        HEADER + self.length().unwrap_or(0) - self.bytes.len()
    }
}

/// Encodes `message` as one frame, header first.
pub(crate) fn encode(kind: u8, stream: u32, message: &impl Message) -> Vec<u8> {
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

/// A response that carries an error and no payload.
pub(crate) fn refusal(code: Code, message: String) -> Response {
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

    fn request(service: &str) -> Request {
        Request {
            service: service.into(),
            method: "m".into(),
            ..Default::default()
        }
    }

    #[test]
    fn frames_come_out_whole_wherever_the_stream_is_cut() {
        let frames = [
            encode(REQUEST, 1, &request("one")),
            encode(REQUEST, 3, &request("")),
        ];
        let stream = frames.concat();
        for size in 1..=stream.len() {
            let mut splitter = Splitter::default();
            let got: Vec<_> = stream
                .chunks(size)
                .flat_map(|chunk| splitter.feed(chunk))
                .collect();
            assert_eq!(got, frames, "in chunks of {size}");
        }
        let Some(Frame::Message(header, body)) = Frame::decode(&frames[1]) else {
            panic!("no message");
        };
        assert_eq!((header.stream, header.kind), (3, REQUEST));
        assert_eq!(Request::decode(body.as_slice()).unwrap(), request(""));
    }

    #[test]
    fn of_an_oversized_message_the_header_is_told_and_the_next_one_read() {
        let header = Header {
            length: MAX_MESSAGE + 1,
            stream: 1,
            kind: REQUEST,
            flags: 0,
        };
        let mut stream = header.encode().to_vec();
        stream.resize(HEADER + header.length, 0xaa);
        let next = encode(REQUEST, 3, &request("s"));
        stream.extend_from_slice(&next);
        let mut splitter = Splitter::default();
        let frames: Vec<_> = stream
            .chunks(60_000)
            .flat_map(|chunk| splitter.feed(chunk))
            .collect();
        assert_eq!(frames.len(), 2);
        assert_eq!(Frame::decode(&frames[0]), Some(Frame::TooLong(header)));
        assert_eq!(frames[1], next);
    }
}
