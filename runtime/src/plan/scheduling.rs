//! Where and when a process runs: scheduler, I/O priority, processors, memory nodes.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Scheduler,
};
use serde::{Deserialize, Serialize};

use super::FieldError;
use crate::sys::SchedAttr;

/// Highest number that a list of processors or nodes may name: the kernel's own limit
/// (`CONFIG_NR_CPUS`) is never higher.
const HIGHEST: usize = 8191;

/// A set of processors or memory nodes, in the form the kernel takes: bits in 64-bit words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BitSet(Vec<u64>);

impl BitSet {
    /// Parses the kernel's list format, such as `0-3,7`.
    pub(crate) fn parse(list: &str) -> Result<Self, String> {
        let number = |text: &str| match text.trim().parse::<usize>() {
            Ok(number) if number <= HIGHEST => Ok(number),
            Ok(number) => Err(format!("{number} is more than {HIGHEST}")),
            Err(_) => Err(format!("{list:?} is no list such as 0-3,7")),
        };
        let mut words = Vec::new();
        for range in list.split(',').filter(|range| !range.trim().is_empty()) {
            let (first, last) = match range.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(range)?, number(range)?),
            };
            if first > last {
                return Err(format!("{range:?} ends before it begins"));
            }
            words.resize(words.len().max(last / 64 + 1), 0);
            for bit in first..=last {
                words[bit / 64] |= 1 << (bit % 64);
            }
        }
        Ok(Self(words))
    }

    /// Its words; bit 0 of the first is number 0.
    pub(crate) fn words(&self) -> &[u64] {
        &self.0
    }

    /// Those below 64, for the log.
    pub(crate) fn lowest(&self) -> u64 {
        self.0.first().copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Processors for a process that is added to a container (`execCPUAffinity`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AffinityPlan {
    /// For the runtime while it makes the process.
    pub(crate) initial: Option<BitSet>,
    /// For the process once it is in the container's cgroup.
    pub(crate) last: Option<BitSet>,
}

impl AffinityPlan {
    pub(super) fn from_spec(wanted: &ExecCPUAffinity) -> Result<Self, FieldError> {
        let set = |name: &str, list: &Option<String>| match list.as_deref() {
            None | Some("") => Ok(None),
            Some(list) => BitSet::parse(list)
                .map(Some)
                .map_err(|reason| FieldError::new(&format!("execCPUAffinity.{name}"), &reason)),
        };
        Ok(Self {
            initial: set("initial", wanted.initial())?,
            last: set("final", wanted.cpu_affinity_final())?,
        })
    }
}

/// Arguments of `set_mempolicy(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryPolicyPlan {
    /// Mode and flags in one number.
    pub(crate) mode: i32,
    pub(crate) nodes: BitSet,
}

impl MemoryPolicyPlan {
    pub(super) fn from_spec(wanted: &LinuxMemoryPolicy) -> Result<Self, FieldError> {
        let nodes = BitSet::parse(wanted.nodes().as_deref().unwrap_or_default())
            .map_err(|reason| format!("invalid memory policy nodes: {reason}"))
            .map_err(|reason| FieldError::new("memoryPolicy.nodes", &reason))?;
        let (mode, nodes_fit) = match wanted.mode() {
            MemoryPolicyModeType::MpolDefault => (0, nodes.is_empty()),
            MemoryPolicyModeType::MpolPreferred => (1, true),
            MemoryPolicyModeType::MpolBind => (2, !nodes.is_empty()),
            MemoryPolicyModeType::MpolInterleave => (3, !nodes.is_empty()),
            MemoryPolicyModeType::MpolLocal => (4, nodes.is_empty()),
            MemoryPolicyModeType::MpolPreferredMany => (5, !nodes.is_empty()),
            MemoryPolicyModeType::MpolWeightedInterleave => (6, !nodes.is_empty()),
        };
        if !nodes_fit {
            let mode = wanted.mode();
            let reason = if nodes.is_empty() {
                format!("set_mempolicy: invalid argument: {mode} needs at least one node")
            } else {
                format!("set_mempolicy: invalid argument: {mode} takes no nodes")
            };
            return Err(FieldError::new("memoryPolicy.nodes", &reason));
        }
        let flag = |flag: &MemoryPolicyFlagType| match flag {
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        };
        let flags = wanted.flags().iter().flatten().map(flag);
        Ok(Self {
            mode: flags.fold(mode, |mode, bit| mode | bit),
            nodes,
        })
    }
}

/// Class and level in one number (`ioprio_set(2)`).
pub(super) fn io_priority(wanted: &LinuxIOPriority) -> Result<i32, FieldError> {
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = wanted.priority();
    if !(0..8).contains(&level) {
        let reason = format!("invalid ioPriority.Priority: {level}");
        return Err(FieldError::new("ioPriority.priority", &reason));
    }
    Ok(class << 13 | level as i32)
}

/// Arguments of `sched_setattr(2)`; what belongs to another policy is refused in runc's words.
pub(super) fn scheduler(wanted: &Scheduler) -> Result<SchedAttr, FieldError> {
    use LinuxSchedulerPolicy as Policy;
    let refuse = |field: &str, reason: &str| Err(FieldError::new(field, reason));
    let kind = wanted.policy();
    let policy = match kind {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIso => return refuse("scheduler.policy", "SCHED_ISO is not in Linux"),
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => 6,
    };
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        let reason = format!("invalid scheduler.nice: {nice} when scheduler.policy is {kind}");
        return refuse("scheduler.nice", &reason);
    }
    let priority = wanted.priority().unwrap_or(0);
    if priority != 0 && !matches!(kind, Policy::SchedFifo | Policy::SchedRr) {
        let reason = "scheduler.priority can only be specified for SchedFIFO or SchedRR policy";
        return refuse("scheduler.priority", reason);
    }
    if !(0..=99).contains(&priority) {
        return refuse("scheduler.priority", "must be from 1 to 99");
    }
    let [runtime, deadline, period] =
        [wanted.runtime(), wanted.deadline(), wanted.period()].map(|time| time.unwrap_or(0));
    if *kind != Policy::SchedDeadline && runtime | deadline | period != 0 {
        let reason =
            "scheduler runtime/deadline/period can only be specified for SchedDeadline policy";
        return refuse("scheduler", reason);
    }
    let flags = wanted.flags().iter().flatten().copied().map(scheduler_flag);
    Ok(SchedAttr {
        policy,
        flags: flags.fold(0, |all, bit| all | bit),
        nice,
        priority: priority as u32,
        runtime,
        deadline,
        period,
        ..SchedAttr::default()
    })
}

fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_bits() {
        let words = |list| BitSet::parse(list).map(|set| set.0);
        assert_eq!(words("0-3,7"), Ok(vec![0x8f]));
        assert_eq!(words("64, 1"), Ok(vec![2, 1]));
        assert_eq!(words(""), Ok(vec![]));
        for bad in ["x", "3-1", "1-", "-1", "99999999999", "8192"] {
            assert!(BitSet::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_memory_policy_takes_nodes_as_its_mode_demands() {
        let table = [
            (r#"{"mode":"MPOL_DEFAULT"}"#, Some((0, vec![]))),
            (r#"{"mode":"MPOL_LOCAL","nodes":"0"}"#, None),
            (r#"{"mode":"MPOL_BIND"}"#, None),
            (r#"{"mode":"MPOL_BIND","nodes":"a"}"#, None),
            (r#"{"mode":"MPOL_PREFERRED"}"#, Some((1, vec![]))),
            (
                r#"{"mode":"MPOL_INTERLEAVE","nodes":"0-1","flags":["MPOL_F_STATIC_NODES"]}"#,
                Some((0x8003, vec![3])),
            ),
            (
                r#"{"mode":"MPOL_BIND","nodes":"1","flags":["MPOL_F_NUMA_BALANCING"]}"#,
                Some((0x2002, vec![2])),
            ),
        ];
        for (json, expected) in table {
            let wanted = serde_json::from_str(json).expect("well formed");
            let plan = MemoryPolicyPlan::from_spec(&wanted);
            let plan = plan.map(|plan| (plan.mode, plan.nodes.0)).ok();
            assert_eq!(plan, expected, "{json}");
        }
    }

    #[test]
    fn a_scheduler_that_cannot_be_names_its_field() {
        let table = [
            (r#"{"policy":"SCHED_BATCH","nice":19}"#, None),
            (r#"{"policy":"SCHED_FIFO","priority":99}"#, None),
            (
                r#"{"policy":"SCHED_DEADLINE","runtime":1,"deadline":2,"period":3}"#,
                None,
            ),
            (
                r#"{"policy":"SCHED_OTHER","nice":20}"#,
                Some("scheduler.nice"),
            ),
            (
                r#"{"policy":"SCHED_OTHER","priority":1}"#,
                Some("scheduler.priority"),
            ),
            (
                r#"{"policy":"SCHED_RR","priority":100}"#,
                Some("scheduler.priority"),
            ),
            (
                r#"{"policy":"SCHED_RR","priority":-1}"#,
                Some("scheduler.priority"),
            ),
            (r#"{"policy":"SCHED_OTHER","period":1}"#, Some("scheduler")),
            (r#"{"policy":"SCHED_ISO"}"#, Some("scheduler.policy")),
        ];
        for (json, field) in table {
            let wanted = serde_json::from_str(json).expect("well formed");
            let refused = scheduler(&wanted).map_err(|e| e.field).err();
            assert_eq!(refused.as_deref(), field, "{json}");
        }
    }

    #[test]
    fn an_io_priority_has_eight_levels() {
        for (level, value) in [(0, Some(0x4000)), (7, Some(0x4007)), (8, None), (-1, None)] {
            let json = format!(r#"{{"class":"IOPRIO_CLASS_BE","priority":{level}}}"#);
            let wanted = serde_json::from_str(&json).expect("well formed");
            assert_eq!(io_priority(&wanted).ok(), value, "{level}");
        }
    }
}
