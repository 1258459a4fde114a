//! Carrying a plan out: one `clone3`, a parent and a child.
//!
//! [`parent`] and [`child`] are the whole story of a start, to be read side by side. They speak
//! over one socket pair ([`channel`]); whatever the child needs is in its job before it exists.

mod agent;
mod channel;
mod child;
mod criu;
mod enter;
mod finish;
mod hooks;
mod hot;
mod identity;
mod inside;
mod joins;
mod labels;
mod namespaces;
mod parent;
mod placeholder;
mod processors;
mod program;
mod stdio;
mod userns;

pub(crate) use agent::Agent;
pub(crate) use child::InitJob;
pub(crate) use criu::{CriuJob, RootMount, StagedFilesystem, Staging, start_criu};
pub(crate) use enter::ExecJob;
pub(crate) use finish::FinishJob;
pub(crate) use hooks::{ChildHookIo, run_all_hooks, run_hooks};
pub(crate) use hot::{HotChange, HotJob, change_mounts};
pub(crate) use inside::{no_user_namespace, open_trees_inside};
pub(crate) use joins::{OpenNamespace, check_maps, open_joins, shares_network};
pub(crate) use labels::selinux_is_enabled;
pub(crate) use namespaces::Joined;
pub(crate) use parent::{Birth, ExecLaunch, InitLaunch, launch_exec, launch_init, settle};
pub(crate) use placeholder::Placeholder;
pub(crate) use stdio::{ChildStdio, TerminalReceiver, connect_console, connect_to};
pub(crate) use userns::{own_user_namespace, user_namespace};
