//! A container's record: its id, its files below the state root, its status.

mod for_runc;
mod generation;
mod id;
mod process;
mod readiness;
mod record;
mod store;
mod time;
mod view;

pub use id::ContainerId;
pub(crate) use process::{ProcessFacts, is_ending};
pub(crate) use readiness::NOTIFY_SOCKET;
pub(crate) use record::{AgentAddress, Record};
pub use store::Listing;
pub(crate) use store::{Lent, StateDir, ids, list};
pub use time::rfc3339;
pub use view::{ContainerState, Status};
