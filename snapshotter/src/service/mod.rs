//! containerd's snapshots API over the node's snapshots.
