//! Which devices a container may use, as a BPF program on its cgroup.
//!
//! Rules read as the runtime spec says: for each kind of access the last rule that matches
//! decides, and what no rule matches is denied. The devices every container needs are allowed
//! last, as runc does it.

mod attach;
mod list;
mod program;
mod rules;

use oci_spec::runtime::LinuxDeviceCgroup;

use super::error::Result;

pub(crate) use list::AllowList;
pub use program::{DeviceProgram, Instruction};

/// Compiles `linux.resources.devices` into the program that enforces them; pure.
pub fn compile(rules: &[LinuxDeviceCgroup]) -> Result<DeviceProgram> {
    Ok(program::emit(&with_defaults(rules)?))
}

/// The same rules as a list of what is allowed, which has no exceptions.
pub(crate) fn allow_list(rules: &[LinuxDeviceCgroup]) -> Result<AllowList> {
    Ok(list::from_rules(&with_defaults(rules)?))
}

fn with_defaults(rules: &[LinuxDeviceCgroup]) -> Result<Vec<rules::Rule>> {
    let mut all = rules
        .iter()
        .enumerate()
        .filter_map(|(index, rule)| rules::Rule::from_spec(index, rule).transpose())
        .collect::<Result<Vec<_>>>()?;
    all.extend(rules::DEFAULTS);
    Ok(all)
}

#[cfg(test)]
mod tests;
