//! Groups of the resctrl file system: made, joined and removed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::ResctrlPlan;
use crate::state::ContainerId;

/// The groups that a container's processes are in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// Directory of the class of service.
    group: PathBuf,
    /// The class is the container's own, and goes with it.
    owned: bool,
    /// Directory of the container's monitoring group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    monitor: Option<PathBuf>,
}

impl Membership {
    /// The groups that a container is to have; none where there is no resctrl and nothing that
    /// needs one. Nothing is made yet.
    pub(crate) fn of(plan: &ResctrlPlan, id: &ContainerId) -> Result<Option<Self>> {
        let text = fs::read_to_string("/proc/self/mountinfo")
            .map_err(Error::file("read", "/proc/self/mountinfo"))?;
        match (mount_point(&text), plan.unavailable) {
            (Some(root), _) => Ok(Some(Self::below(&root, plan, id))),
            (None, Some(reason)) => Err(Error::Unsupported(reason.to_owned())),
            (None, None) => Ok(None),
        }
    }

    fn below(root: &Path, plan: &ResctrlPlan, id: &ContainerId) -> Self {
        let group = root.join(plan.class.as_deref().unwrap_or(id.as_str()));
        Self {
            monitor: plan
                .monitoring
                .then(|| group.join("mon_groups").join(id.as_str())),
            owned: plan.class.is_none(),
            group,
        }
    }

    /// Makes the groups and puts a process, with all its children to come, into them.
    pub(crate) fn enter(&self, plan: &ResctrlPlan, pid: i32) -> Result<()> {
        let existed = self.group.is_dir();
        match (&plan.schemata, existed) {
            (Some(wanted), true) if !self.owned => self.compare(wanted)?,
            (None, false) if !self.owned => {
                return Err(Error::Unsupported(format!(
                    "linux.intelRdt.closID: there is no group {}",
                    self.group.display()
                )));
            }
            (schemata, _) => {
                make_directory(&self.group)?;
                if let Some(schemata) = schemata {
                    self.set(schemata)?;
                }
            }
        }
        if let Some(monitor) = &self.monitor {
            make_directory(monitor)?;
        }
        self.add(pid)
    }

    /// Puts a further process into the groups.
    pub(crate) fn add(&self, pid: i32) -> Result<()> {
        for group in [Some(&self.group), self.monitor.as_ref()]
            .into_iter()
            .flatten()
        {
            let file = group.join("tasks");
            fs::write(&file, pid.to_string()).map_err(Error::file("write", file))?;
        }
        Ok(())
    }

    /// Changes what the class may use.
    pub(crate) fn set(&self, schemata: &str) -> Result<()> {
        let file = self.group.join("schemata");
        fs::write(&file, format!("{schemata}\n")).map_err(Error::file("write", file))
    }

    /// Removes what is the container's own; what is gone already is fine.
    pub(crate) fn remove(&self) -> Result<()> {
        let own = self.owned.then_some(&self.group);
        for group in self.monitor.as_ref().into_iter().chain(own) {
            match fs::remove_dir(group) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::file("remove", group)(e)),
            }
        }
        Ok(())
    }

    /// A class that others have made keeps what it has: what is asked for must be the same.
    fn compare(&self, wanted: &str) -> Result<()> {
        let file = self.group.join("schemata");
        let has = fs::read_to_string(&file).map_err(Error::file("read", &file))?;
        let has = parse(&has);
        for (key, value) in parse(wanted) {
            if has.get(&key) != Some(&value) {
                let group = self.group.display();
                return Err(Error::Unsupported(format!(
                    "linux.intelRdt: the existing group {group} has other schemata than {wanted:?}"
                )));
            }
        }
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::file("mkdir", path)(e)),
        _ => Ok(()),
    }
}

/// `L3:0=00ff;1=ff` → one entry for each resource and domain, without leading zeros.
fn parse(schemata: &str) -> BTreeMap<(String, String), String> {
    let mut entries = BTreeMap::new();
    for line in schemata.lines() {
        let Some((resource, domains)) = line.split_once(':') else {
            continue;
        };
        for (domain, value) in domains.split(';').filter_map(|part| part.split_once('=')) {
            let key = (resource.trim().to_owned(), domain.trim().to_owned());
            entries.insert(key, value.trim().trim_start_matches('0').to_owned());
        }
    }
    entries
}

/// Where `mountinfo` has resctrl mounted (`proc_pid_mountinfo(5)`).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_resctrl = after.split(' ').next() == Some("resctrl");
        is_resctrl.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_by_its_type() {
        let text = "24 30 0:22 / /proc rw - proc proc rw\n\
                    40 30 0:35 / /sys/fs/resctrl rw,relatime shared:9 - resctrl resctrl rw\n";
        assert_eq!(mount_point(text), Some(PathBuf::from("/sys/fs/resctrl")));
        assert_eq!(mount_point("24 30 0:22 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn schemata_are_compared_by_value() {
        let has = parse("    MB:0= 20;1= 70\n    L3:0=00ff;1=c0\n");
        for (key, value) in parse("L3:1=0c0;0=ff\nMB:0=20") {
            assert_eq!(has.get(&key), Some(&value), "{key:?}");
        }
        assert_ne!(has.get(&("L3".into(), "0".into())), Some(&"f".to_owned()));
    }

    #[test]
    fn only_a_class_of_its_own_goes_with_the_container() {
        let id: ContainerId = "c1".parse().expect("valid");
        let root = Path::new("/r");
        let own = Membership::below(root, &ResctrlPlan::default(), &id);
        assert_eq!((own.group.as_path(), own.owned), (Path::new("/r/c1"), true));
        let shared = ResctrlPlan {
            class: Some("gold".into()),
            monitoring: true,
            ..ResctrlPlan::default()
        };
        let shared = Membership::below(root, &shared, &id);
        assert_eq!(
            (shared.group.as_path(), shared.owned),
            (Path::new("/r/gold"), false)
        );
        assert_eq!(shared.monitor, Some("/r/gold/mon_groups/c1".into()));
    }
}
