//! The snapshots of this node: records, layer directories and their state transitions.
