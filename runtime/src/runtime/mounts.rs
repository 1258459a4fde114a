//! Mounts of a running container: added and removed as crun's `mounts` command does.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{Mode, OFlags, open};
use serde::Deserialize;

use super::Runtime;
use super::lifecycle::init_of;
use crate::caller::Caller;
use crate::cgroup::CgroupPath;
use crate::error::{Error, Result};
use crate::launch::{
    HotChange, HotJob, change_mounts, no_user_namespace, open_trees_inside, user_namespace,
};
use crate::plan::{FieldError, MountContext, MountLabel, MountPlan, plan_mounts, relative_target};
use crate::rootfs::{HostPart, HostTrees, RootTree, open_parts};
use crate::spec::{Namespaces, load_bundle};
use crate::state::{ContainerId, Record, StateDir};

/// The two forms of the file: a list, or a configuration of which only `mounts` counts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    List(Vec<Mount>),
    Configuration { mounts: Vec<Mount> },
}

pub(super) fn add(runtime: &Runtime, id: &ContainerId, file: &Path) -> Result<()> {
    let mounts = read(file)?;
    let record = record_of(runtime, id)?;
    let bundle = load_bundle(&record.bundle, record.config.as_deref())?;
    let linux = bundle.spec.linux().clone().unwrap_or_default();
    // A container may have no cgroup of its own, and then nothing to mount of it.
    let hierarchy = CgroupPath::from_full(&record.cgroup)
        .map(|path| path.mount().to_owned())
        .unwrap_or_default();
    // Whatever namespaces the container has are taken for its own.
    let namespaces = Namespaces {
        create: record.namespaces,
        join: Vec::new(),
    };
    let context = MountContext {
        namespaces: &namespaces,
        cgroup_path: &record.cgroup,
        cgroup_mount: &hierarchy,
        label: MountLabel::of(&bundle.spec).map_err(|e| refused(&record.bundle, e))?,
        propagation: (libc::MS_SLAVE, true),
        bundle: &record.bundle,
        uid_mappings: linux.uid_mappings().as_deref().unwrap_or_default(),
        gid_mappings: linux.gid_mappings().as_deref().unwrap_or_default(),
        joined_user: None,
    };
    let plans = plan_mounts(&mounts, &context).map_err(|e| refused(file, e))?;
    let parts = if Caller::probe()?.privileged {
        open_parts(&plans, user_namespace)?
    } else {
        open_inside(&record, &plans)?
    };
    change(&record, HotChange::Add(plans, parts))
}

/// Opens what mounts take from the host as root of the container's user namespace, which a caller
/// without privileges owns.
fn open_inside(record: &Record, plans: &[MountPlan]) -> Result<Vec<HostPart>> {
    let path = format!("/proc/{}/ns/user", record.pid);
    let user = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::file("open namespace", &path))?;
    // Checked after opening: nobody else can have got the pid before.
    init_of(record)?.ok_or(Error::NotRunning)?;
    let opened = open_trees_inside(&user, || {
        let root = open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::file("open", "/"))?;
        Ok(HostTrees {
            root: RootTree::Clone(root),
            mounts: open_parts(plans, no_user_namespace)?,
            devices: Vec::new(),
        })
    });
    opened.map(|trees| trees.mounts)
}

pub(super) fn remove(runtime: &Runtime, id: &ContainerId, file: &Path) -> Result<()> {
    let mounts = read(file)?;
    let record = record_of(runtime, id)?;
    // In the opposite order: a later mount may lie on an earlier one.
    let targets = mounts
        .iter()
        .rev()
        .map(|mount| relative_target(mount.destination()).map_err(|e| refused(file, e)));
    change(&record, HotChange::Remove(targets.collect::<Result<_>>()?))
}

fn change(record: &Record, change: HotChange) -> Result<()> {
    if record.namespaces & libc::CLONE_NEWNS as u64 == 0 {
        let reason = "cannot change mounts: the container's are the host's";
        return Err(Error::Unsupported(reason.to_owned()));
    }
    let init = init_of(record)?.ok_or(Error::NotRunning)?;
    change_mounts(&mut HotJob {
        init,
        namespaces: record.namespaces,
        privileged: Caller::probe()?.privileged,
        change,
    })
}

fn record_of(runtime: &Runtime, id: &ContainerId) -> Result<Record> {
    StateDir::open(&runtime.options.root, id)?.record()
}

fn read(file: &Path) -> Result<Vec<Mount>> {
    let text = std::fs::read(file).map_err(Error::file("open", file))?;
    match serde_json::from_slice(&text) {
        Ok(Document::List(mounts) | Document::Configuration { mounts }) => Ok(mounts),
        Err(e) => Err(refused(
            file,
            FieldError {
                field: "mounts".to_owned(),
                reason: format!("no list of mounts: {e}"),
            },
        )),
    }
}

fn refused(file: impl Into<PathBuf>, error: FieldError) -> Error {
    Error::Spec {
        file: file.into().display().to_string(),
        field: error.field,
        reason: error.reason,
    }
}
