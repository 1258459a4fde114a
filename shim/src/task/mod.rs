//! Tasks: containers, their processes, and the service that containerd calls.

mod calls;
mod container;
mod document;
pub(crate) mod dump;
pub mod exits;
mod inherit;
pub(crate) mod keys;
mod process;
mod record;
pub(crate) mod sandbox;
mod service;
mod state;
mod stats;
mod timings;

pub(crate) use calls::Answered;
pub use inherit::Inheritance;
pub use record::Record;
pub use service::{Shim, TaskService};
