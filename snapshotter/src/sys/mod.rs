//! System calls and library calls that need `unsafe`: the only folder of this crate that has any.

mod inflate;
mod map;
mod memory;

pub(crate) use inflate::{Blocks, Inflater, Stop, Wrap};
pub(crate) use map::Map;
pub(crate) use memory::give_back;
