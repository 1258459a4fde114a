//! Questions about containers.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Process};

use super::Runtime;
use crate::cgroup::{Cgroup, CgroupPath};
use crate::error::{Error, Result};
use crate::spec::{self, load_bundle, parse_process};
use crate::state::{self, ContainerId, ContainerState, Record, StateDir};
use crate::sys::Regex;

pub(super) fn state(runtime: &Runtime, id: &ContainerId) -> Result<ContainerState> {
    let dir = StateDir::open(&runtime.options.root, id)?;
    let record = dir.record()?;
    Ok(record.view(dir.status(&record)))
}

pub(super) fn config_path(runtime: &Runtime, id: &ContainerId) -> Result<PathBuf> {
    let record = StateDir::open(&runtime.options.root, id)?.record()?;
    Ok(record
        .config
        .unwrap_or_else(|| record.bundle.join(spec::CONFIG_FILE)))
}

pub(super) fn matching(runtime: &Runtime, pattern: &str) -> Result<Vec<ContainerId>> {
    let refused =
        || Error::InvalidArgument(format!("{pattern:?} is no extended regular expression"));
    let regex = CString::new(pattern)
        .ok()
        .and_then(|pattern| Regex::new(&pattern))
        .ok_or_else(refused)?;
    let matches =
        |id: &ContainerId| CString::new(id.as_str()).is_ok_and(|name| regex.matches(&name));
    let mut ids = state::ids(&runtime.options.root)?;
    ids.retain(matches);
    Ok(ids)
}

pub(super) fn pids(runtime: &Runtime, id: &ContainerId) -> Result<Vec<i32>> {
    let record = StateDir::open(&runtime.options.root, id)?.record()?;
    pids_of(&record)
}

/// Processes of a container; none when its cgroup is gone, as a scope is with its last process.
pub(super) fn pids_of(record: &Record) -> Result<Vec<i32>> {
    let cgroup = &record.cgroup;
    if !cgroup.as_os_str().is_empty() && !cgroup.exists() {
        return Ok(Vec::new());
    }
    Ok(cgroup_of(record)?.pids(true)?)
}

pub(super) fn cgroup(runtime: &Runtime, id: &ContainerId) -> Result<Cgroup> {
    cgroup_of(&StateDir::open(&runtime.options.root, id)?.record()?)
}

pub(super) fn cgroup_of(record: &Record) -> Result<Cgroup> {
    if record.cgroup.as_os_str().is_empty() {
        let reason = "the container has no cgroup of its own";
        return Err(Error::Unsupported(reason.to_owned()));
    }
    Ok(Cgroup::open(&CgroupPath::from_full(&record.cgroup)?)?)
}

pub(super) fn process_of(runtime: &Runtime, id: &ContainerId) -> Result<(Process, Vec<String>)> {
    let record = StateDir::open(&runtime.options.root, id)?.record()?;
    let bundle = load_bundle(&record.bundle, record.config.as_deref())?;
    let process = bundle.spec.process().clone().ok_or_else(|| Error::Spec {
        file: bundle.file.display().to_string(),
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
