//! System calls and library calls that need `unsafe`: the only folder of this crate that has any.

pub(crate) mod fanotify;
pub(crate) mod fuse;
mod inflate;
mod lease;
mod map;
mod memory;
mod process;
pub(crate) mod verity;

pub(crate) use inflate::{Blocks, Inflater, Stop, Wrap};
pub(crate) use lease::is_open_elsewhere;
pub(crate) use map::Map;
pub(crate) use memory::{FreeMemory, give_back, keep_no_large_pieces};
pub(crate) use process::{ignore_termination, inherited, set_name};
