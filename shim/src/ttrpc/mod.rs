//! ttrpc, the light RPC between containerd and its shims: a small server for unary calls. A frame
//! is a 10-byte header and a protobuf `Request` or `Response`.
//!
//! Streams are not offered: no method of the Task or Events service that a shim needs uses them.

pub(crate) mod frame;
mod server;

pub use frame::Splitter;
pub use server::{Answer, Server, Service};
