//! The real daemon, driven by the generated client as containerd drives it.

mod daemon;
mod kernel;
mod lazy;
mod life;
mod metrics;
mod quota;
mod registry;
mod sessions;
mod snapshots_api;
