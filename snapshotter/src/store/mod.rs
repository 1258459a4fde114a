//! The node's store of verified layer data.
