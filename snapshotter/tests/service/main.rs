//! The real daemon, driven by the generated client as containerd drives it.

mod daemon;
mod life;
mod snapshots_api;
