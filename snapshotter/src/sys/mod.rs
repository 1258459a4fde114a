//! System calls that need `unsafe`: the only folder of this crate that has any.

mod map;

pub(crate) use map::Map;
