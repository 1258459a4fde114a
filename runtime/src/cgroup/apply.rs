//! Carrying out a [`ResourcePlan`] on a cgroup.

use rustix::io::Errno;

use super::error::{CgroupError, Result};
use super::files;
use super::plan::{Entry, OnRefusal, ResourcePlan};
use super::{Cgroup, Controllers, ControllersPolicy};

/// A limit that was left out under [`ControllersPolicy::IgnoreMissing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The spec field.
    pub field: String,
    /// The controller that the host does not offer.
    pub controller: String,
}

impl Cgroup {
    /// Writes every value of `plan`, enabling controllers that the cgroup does not have yet.
    ///
    /// Nothing is written if a needed controller is missing and the policy requires it, or if a
    /// limit fails its usage check. The answer lists the limits that were left out.
    pub fn apply(&self, plan: &ResourcePlan, policy: ControllersPolicy) -> Result<Vec<Skipped>> {
        let mut skipped = Vec::new();
        if plan.is_empty() {
            return Ok(skipped);
        }
        let needed = plan.controllers();
        let have = if needed.is_empty() {
            needed
        } else {
            self.enable(needed)?
        };
        let mut entries = Vec::with_capacity(plan.entries().len());
        for entry in plan.entries() {
            if is_worth_a_try(entry, have) {
                entries.push(entry);
            } else {
                skip(entry, policy, &mut skipped)?;
            }
        }
        self.check_usage(plan)?;
        let mut postponed = Vec::new();
        for entry in entries {
            self.write_entry(entry, policy, &mut postponed, &mut skipped)?;
        }
        for entry in postponed {
            files::write(self.fd(), &entry.file, &entry.value)
                .map_err(|errno| self.refused(entry, &entry.file, &entry.value, errno))?;
        }
        Ok(skipped)
    }

    /// Refuses a memory limit below the present use, where the plan asks for that.
    pub(crate) fn check_usage(&self, plan: &ResourcePlan) -> Result<()> {
        if plan.usage_checks().is_empty() {
            return Ok(());
        }
        let text = files::read_optional(self.fd(), self.full_path(), "memory.current")?;
        let Some(usage) = text.and_then(|text| text.trim().parse::<u64>().ok()) else {
            return Ok(());
        };
        match plan
            .usage_checks()
            .iter()
            .find(|check| check.limit <= usage)
        {
            Some(check) => Err(CgroupError::LimitBelowUsage {
                field: check.field,
                limit: check.limit,
                usage,
            }),
            None => Ok(()),
        }
    }

    fn write_entry<'p>(
        &self,
        entry: &'p Entry,
        policy: ControllersPolicy,
        postponed: &mut Vec<&'p Entry>,
        skipped: &mut Vec<Skipped>,
    ) -> Result<()> {
        let Err(errno) = files::write(self.fd(), &entry.file, &entry.value) else {
            return Ok(());
        };
        match (&entry.on_refusal, errno) {
            (OnRefusal::IgnoreAbsent, Errno::NOENT) => Ok(()),
            (OnRefusal::Postpone, Errno::INVAL) => {
                postponed.push(entry);
                Ok(())
            }
            (OnRefusal::Instead { file, value }, Errno::NOENT) => {
                files::write(self.fd(), file, value)
                    .map_err(|errno| self.refused(entry, file, value, errno))
            }
            // A file of a controller that this runtime has no name for.
            (_, Errno::NOENT)
                if entry.controller != "cgroup"
                    && Controllers::by_name(&entry.controller).is_none() =>
            {
                skip(entry, policy, skipped)
            }
            _ => Err(self.refused(entry, &entry.file, &entry.value, errno)),
        }
    }

    fn refused(&self, entry: &Entry, file: &str, value: &str, errno: Errno) -> CgroupError {
        CgroupError::Apply {
            field: entry.field.to_string(),
            value: value.to_owned(),
            path: self.full_path().join(file),
            source: errno.into(),
        }
    }
}

/// Everything but a binding limit whose controller is known to be missing.
fn is_worth_a_try(entry: &Entry, have: Controllers) -> bool {
    entry.on_refusal == OnRefusal::IgnoreAbsent
        || Controllers::by_name(&entry.controller).is_none_or(|needed| have.contains(needed))
}

fn skip(entry: &Entry, policy: ControllersPolicy, skipped: &mut Vec<Skipped>) -> Result<()> {
    let field = entry.field.to_string();
    let controller = entry.controller.to_string();
    match policy {
        ControllersPolicy::Require => Err(CgroupError::ControllerMissing { field, controller }),
        ControllersPolicy::IgnoreMissing => {
            skipped.push(Skipped { field, controller });
            Ok(())
        }
    }
}
