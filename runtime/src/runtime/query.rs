//! Questions about containers.

use std::path::Path;

use oci_spec::runtime::{LinuxResources, Process};

use super::Runtime;
use crate::cgroup::{Cgroup, CgroupPath};
use crate::error::{Error, Result};
use crate::spec::{self, CONFIG_FILE, load_bundle, parse_process};
use crate::state::{ContainerId, ContainerState, Record, StateDir};

pub(super) fn state(runtime: &Runtime, id: &ContainerId) -> Result<ContainerState> {
    let dir = StateDir::open(&runtime.options.root, id)?;
    let record = dir.record()?;
    Ok(record.view(dir.status(&record)))
}

pub(super) fn pids(runtime: &Runtime, id: &ContainerId) -> Result<Vec<i32>> {
    Ok(cgroup(runtime, id)?.pids(true)?)
}

pub(super) fn cgroup(runtime: &Runtime, id: &ContainerId) -> Result<Cgroup> {
    cgroup_of(&StateDir::open(&runtime.options.root, id)?.record()?)
}

pub(super) fn cgroup_of(record: &Record) -> Result<Cgroup> {
    Ok(Cgroup::open(&CgroupPath::from_full(&record.cgroup)?)?)
}

pub(super) fn process_of(runtime: &Runtime, id: &ContainerId) -> Result<(Process, Vec<String>)> {
    let record = StateDir::open(&runtime.options.root, id)?.record()?;
    let bundle = load_bundle(&record.bundle)?;
    let process = bundle.spec.process().clone().ok_or_else(|| Error::Spec {
        file: bundle.path.join(CONFIG_FILE).display().to_string(),
        field: "process".to_owned(),
        reason: "process property must not be empty".to_owned(),
    })?;
    Ok((process, bundle.warnings))
}

/// Reads a process document; with what was ignored in it.
pub fn read_process(file: &Path) -> Result<(Process, Vec<String>)> {
    let text = std::fs::read(file).map_err(Error::file("open", file))?;
    parse_process(file, &text)
}

/// Parses a document of `linux.resources`, as `update` takes it; `origin` is named in errors.
pub fn parse_resources(origin: &Path, text: &[u8]) -> Result<LinuxResources> {
    spec::parse_resources(origin, text)
}
