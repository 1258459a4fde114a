//! A container's record: its id, its files below the state root, its status.

mod id;
mod view;

pub use id::ContainerId;
pub use view::{ContainerState, Status};
