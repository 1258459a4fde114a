//! A template learns which pages a first request touches, of a clone that has answered one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::Runtime;
use super::query::{cgroup_of, pids_of};
use super::standstill::Pause;
use crate::error::{Error, Result};
use crate::state::{ContainerId, StateDir};
use crate::template::{MemoryMode, Template, Templates, present_in, write_hot};

/// What a template is to learn from whom.
#[derive(Clone, Debug)]
pub struct RecordRequest {
    /// Directory of the templates.
    pub templates: PathBuf,
    /// The template's name.
    pub template: ContainerId,
    /// A clone of it in the mode `uffd`, which no other one has been recorded for.
    pub clone: ContainerId,
}

pub(super) fn record(runtime: &Runtime, request: &RecordRequest) -> Result<Template> {
    let dir = StateDir::open(&runtime.options.root, &request.clone)?;
    let record = dir.record()?;
    let cgroup = cgroup_of(&record)?;
    let mut pause = Pause::of(Some(&cgroup), dir.status(&record));
    pause.begin()?;
    let store = Templates::new(request.templates.clone());
    let recorded = pids_of(&record).and_then(|pids| {
        let found = by_inner_pid(&pids)?;
        store.set_hot(&request.template, |template, to| {
            write_hot(&template.images(MemoryMode::Eager), to, |pid, run| {
                // Of a process that has ended nothing is known.
                let Some((path, pagemap)) = found.get(&pid) else {
                    return Ok(vec![false; run.pages as usize]);
                };
                present_in(pagemap, run).map_err(Error::file("read", path))
            })
        })
    });
    let thawed = pause.end();
    recorded.and_then(|template| thawed.map(|()| template))
}

/// The memory of processes, by the pids that they have in their innermost namespace.
fn by_inner_pid(pids: &[i32]) -> Result<HashMap<i32, (PathBuf, File)>> {
    let mut found = HashMap::new();
    for pid in pids {
        let path = PathBuf::from(format!("/proc/{pid}/pagemap"));
        let pagemap = File::open(&path).map_err(Error::file("open", &path))?;
        if let Some(inner) = inner_pid(*pid)? {
            found.insert(inner, (path, pagemap));
        }
    }
    Ok(found)
}

fn inner_pid(pid: i32) -> Result<Option<i32>> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(Error::file("read", Path::new(&path)))?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    Ok(line.and_then(|all| all.split_whitespace().last()?.parse().ok()))
}
