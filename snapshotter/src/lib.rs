//! Placeholder that the first commits of this crate replace.
