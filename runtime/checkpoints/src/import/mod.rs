//! A checkpoint becomes a bundle that a restore can begin with, as far as it may be trusted.
//!
//! `config` (pure) makes `config.json` of the dumped one, `check` and `mounts` look for what CRIU would
//! do outside of the container, `diff` brings the root file system up to date, [`make_bundle`] does
//! all of it.

mod bundle;
mod capabilities;
mod check;
mod config;
mod cpu;
mod diff;
mod mounts;

pub use bundle::{Bundle, make_bundle};
pub use config::{Bind, Wishes};
pub use cpu::processor_features;
