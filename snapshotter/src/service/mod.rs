//! containerd's snapshots API over the node's snapshots and its lazy layers.

mod absent;
pub(crate) mod chain;
mod du;
mod grpc;
mod images;
pub(crate) mod labels;
mod locks;
mod lowers;
mod room;
mod snapshotter;
mod spare;

pub use du::{DiskUse, ImageUse, LayerUse};
pub use grpc::{MAX_PREPARING, Service};
pub use images::{Front, Images};
pub use snapshotter::{LayerState, Prepared, Snapshotter};
