//! System calls that need `unsafe`: the only folder of this crate that has any.

mod map;
mod memory;

pub(crate) use map::Map;
pub(crate) use memory::give_back;
