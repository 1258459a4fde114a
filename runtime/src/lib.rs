//! OCI runtime: takes a bundle, makes a container of it, and looks after it until it is deleted.
//!
//! A start is told in three rooms: [`spec`] turns `config.json` into checked types, [`plan`]
//! (pure) turns those and the host's facts into a launch plan, [`launch`] carries the plan out
//! with one `clone3` and a child that neither allocates nor parses. [`rootfs`] mounts, [`cgroup`]
//! and [`seccomp`] do what their names say, [`state`] keeps the record of each container.
//!
//! The library starts no thread (but [`serve_pages`], which is a program of its own), no subprocess but hooks, CRIU for checkpoints, and the two programs
//! that map the ids of a user who is not root, and no async runtime. It prints nothing: the caller decides what to
//! log. Only [`protect_own_binary`] executes the caller's program again, before anything else.

mod begin;
mod caller;
pub mod cgroup;
mod checkpoint;
mod error;
mod features;
mod hex;
mod launch;
mod mapped;
mod netdev;
mod own_binary;
mod pages;
mod plan;
#[cfg(test)]
mod properties;
mod publish;
mod request;
mod resctrl;
mod rootfs;
mod runtime;
pub mod seccomp;
mod signals;
mod spec;
pub mod state;
mod sys;
mod template;

pub use begin::begin;
pub use checkpoint::{
    CgroupsMode, CheckpointRequest, CriuOptions, NetworkLock, PageServer, RestoreOptions,
    stand_in_for_tar,
};
pub use error::{ChildFailure, Error, Result, Step};
pub use features::features;
pub use mapped::OwnerMap;
pub use own_binary::protect_own_binary;
pub use pages::{PageProgram, serve_pages};
pub use request::{
    Console, CreateRequest, ExecRequest, Launched, Stdio, TemplateAccess, adopt_writable,
    reserve_preserved,
};
pub use runtime::{
    CloneRequest, RecordRequest, Runtime, RuntimeOptions, TemplateRequest, parse_resources,
    read_process,
};
pub use signals::{Signals, receive_descriptor};
pub use spec::{SPEC_VERSION, spec_template};
pub use state::{ContainerId, ContainerState, Listing, Status, rfc3339};
pub use template::{
    CLONE_ANNOTATIONS, Fit, MemoryMode, TEMPLATE_RECORD, TEMPLATES, Template, Templates,
    WantedTemplate,
};
