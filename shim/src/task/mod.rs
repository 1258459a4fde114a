//! Tasks: containers, their processes, and the service that containerd calls.

mod container;
mod document;
pub mod exits;
mod process;
mod record;
pub(crate) mod sandbox;
mod service;
mod state;
mod stats;

pub use record::Record;
pub use service::{Shim, TaskService};
