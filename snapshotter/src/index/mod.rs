//! The index of a layer and the merging of a chain of them into one tree.
