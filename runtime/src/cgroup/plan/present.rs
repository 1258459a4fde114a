//! Limits that depend on each other, as they are in force: an update names only what changes.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::cgroup::Cgroup;
use crate::cgroup::error::Result;
use crate::cgroup::files;

/// The values of `memory.max`, `memory.swap.max` and `cpu.max`; absent are those without a limit
/// or without a controller. The cgroup itself is the record: nobody else's change is undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Present {
    memory: Option<i64>,
    swap: Option<i64>,
    quota: Option<i64>,
    period: Option<u64>,
}

impl Cgroup {
    /// Reads the limits in force.
    pub fn present(&self) -> Result<Present> {
        let read = |file| files::read_optional(self.fd(), self.full_path(), file);
        let number = |text: Option<String>| text.and_then(|text| text.trim().parse().ok());
        let mut present = Present {
            memory: number(read("memory.max")?),
            swap: number(read("memory.swap.max")?),
            ..Present::default()
        };
        if let Some(text) = read("cpu.max")? {
            let mut words = text.split_whitespace();
            present.quota = words.next().and_then(|quota| quota.parse().ok());
            present.period = words.next().and_then(|period| period.parse().ok());
        }
        Ok(present)
    }
}

impl Present {
    /// Adds to an update what the values in it are to be understood with: a sum of memory and swap
    /// needs the memory limit and the other way round, and a quota needs its period.
    #[must_use]
    pub fn complete(&self, resources: &LinuxResources) -> LinuxResources {
        let mut resources = resources.clone();
        if let Some(memory) = resources.memory() {
            resources.set_memory(Some(self.complete_memory(*memory)));
        }
        if let Some(cpu) = resources.cpu() {
            resources.set_cpu(Some(self.complete_cpu(cpu.clone())));
        }
        resources
    }

    fn complete_memory(&self, mut memory: LinuxMemory) -> LinuxMemory {
        let given = |value: Option<i64>| value.filter(|value| *value != 0);
        match (given(memory.limit()), given(memory.swap())) {
            (None, Some(1..)) => {
                memory.set_limit(self.memory);
            }
            (Some(1..), None) => {
                let sum = self
                    .memory
                    .zip(self.swap)
                    .map(|(memory, swap)| memory + swap);
                memory.set_swap(sum);
            }
            _ => {}
        }
        memory
    }

    fn complete_cpu(&self, mut cpu: LinuxCpu) -> LinuxCpu {
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        match (quota, period) {
            (None, Some(_)) => {
                cpu.set_quota(self.quota);
            }
            (Some(_), None) => {
                cpu.set_period(self.period);
            }
            _ => {}
        }
        cpu
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const PRESENT: Present = Present {
        memory: Some(100),
        swap: Some(50),
        quota: Some(7000),
        period: Some(20_000),
    };

    fn completed(present: Present, update: Value) -> Value {
        let update = serde_json::from_value(update).expect("resources");
        serde_json::to_value(present.complete(&update)).expect("JSON")
    }

    #[test]
    fn what_changes_alone_is_completed_by_what_is_in_force() {
        let table = [
            (
                json!({"memory": {"swap": 180}}),
                json!({"memory": {"limit": 100, "swap": 180}}),
            ),
            (
                json!({"memory": {"limit": 120}}),
                json!({"memory": {"limit": 120, "swap": 150}}),
            ),
            (
                json!({"memory": {"limit": -1}}),
                json!({"memory": {"limit": -1}}),
            ),
            (
                json!({"memory": {"swap": -1}}),
                json!({"memory": {"swap": -1}}),
            ),
            (
                json!({"cpu": {"period": 9}}),
                json!({"cpu": {"quota": 7000, "period": 9}}),
            ),
            (
                json!({"cpu": {"quota": 9}}),
                json!({"cpu": {"quota": 9, "period": 20_000}}),
            ),
            (json!({"cpu": {"shares": 9}}), json!({"cpu": {"shares": 9}})),
            (json!({"pids": {"limit": 9}}), json!({"pids": {"limit": 9}})),
        ];
        for (update, whole) in table {
            assert_eq!(completed(PRESENT, update), whole);
        }
    }

    #[test]
    fn without_limits_in_force_an_update_stays_as_it_is() {
        let update = json!({"memory": {"limit": 120}, "cpu": {"period": 9}});
        assert_eq!(completed(Present::default(), update.clone()), update);
    }
}
