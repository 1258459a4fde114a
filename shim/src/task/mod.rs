//! Tasks: containers, their processes, and the service that containerd calls.

mod container;
mod document;
pub mod exits;
mod inherit;
pub(crate) mod keys;
mod process;
mod record;
pub(crate) mod sandbox;
mod service;
mod state;
mod stats;

pub use inherit::Inheritance;
pub use record::Record;
pub use service::{Shim, TaskService};
