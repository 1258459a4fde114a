//! Checkpoint and restore by CRIU: what runc and crun do, with images that they understand.
//!
//! [`options`] is what callers ask for, [`plan`] (pure) turns that and the container into CRIU's
//! options, [`session`] talks with one `criu swrk`, [`log`] finds the cause of a failure in what
//! CRIU wrote, [`messages`] is how its images are written, [`image`] looks into them, [`network`] completes
//! them, [`policy`] forbids what an operator forbids, [`tar`] is a program that
//! CRIU runs. The steps themselves are operations of [`crate::Runtime`].

mod descriptors;
mod image;
mod log;
pub(crate) mod messages;
mod network;
mod options;
mod plan;
mod policy;
mod session;
mod tar;

pub(crate) use descriptors::{read_descriptors, streams_of, write_descriptors};
pub(crate) use image::{external_mounts, has_cgroups};
pub(crate) use log::cause;
pub(crate) use network::name_network;
pub use options::{
    CgroupsMode, CheckpointRequest, CriuOptions, NetworkLock, PageServer, RestoreOptions,
};
pub(crate) use plan::masked_paths;
pub(crate) use plan::{
    Directories, Dumped, Mountpoint, Restored, bind_destinations, config_files, dump_options,
    external_namespace, mountpoints, names_empty_directory, namespace_key, restore_options,
};
pub(crate) use policy::check as check_policy;
pub(crate) use session::{Answer, Notice, Session};
pub(crate) use tar::TAR;
pub use tar::stand_in_for_tar;
