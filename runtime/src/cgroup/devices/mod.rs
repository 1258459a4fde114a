//! Which devices a container may use, as a BPF program on its cgroup.
//!
//! Rules read as the runtime spec says: for each kind of access the last rule that matches
//! decides, and what no rule matches is denied. The devices every container needs are allowed
//! last, as runc does it.

mod attach;
mod program;
mod rules;

use oci_spec::runtime::LinuxDeviceCgroup;

use super::error::Result;

pub use program::{DeviceProgram, Instruction};

/// Compiles `linux.resources.devices` into the program that enforces them; pure.
pub fn compile(rules: &[LinuxDeviceCgroup]) -> Result<DeviceProgram> {
    let mut all = rules
        .iter()
        .enumerate()
        .map(|(index, rule)| rules::Rule::from_spec(index, rule))
        .collect::<Result<Vec<_>>>()?;
    all.extend(rules::DEFAULTS);
    Ok(program::emit(&all))
}

#[cfg(test)]
mod tests;
