//! A cgroup's statistics in the shape of runc's `events`: the names and units of cgroup v1, which
//! its readers know. What is not counted on this host is left out or zero, as runc does it.

use serde_json::{Map, Value, json};
use xebec_runtime::cgroup::{
    CpuStats, HugetlbStats, IoDevice, IoStats, MemoryStats, PidsStats, Psi, Stats,
};

/// The `data` of a `stats` event.
pub(super) fn document(stats: &Stats) -> Value {
    json!({
        "cpu": cpu(stats.cpu.unwrap_or_default()),
        "cpuset": cpuset(),
        "memory": memory(stats.memory.as_ref()),
        "pids": pids(stats.pids.unwrap_or_default()),
        "blkio": blkio(stats.io.as_ref()),
        "hugetlb": hugetlb(stats.hugetlb.as_deref().unwrap_or_default()),
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// Go's `omitempty`: members that are zero, empty or null are not there.
fn without_empty(document: Value) -> Value {
    let Value::Object(members) = document else {
        return document;
    };
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    };
    members
        .into_iter()
        .filter(|(_, value)| !is_empty(value))
        .collect::<Map<_, _>>()
        .into()
}

fn insert(mut document: Value, key: &str, value: Value) -> Value {
    if let Some(members) = document.as_object_mut() {
        members.insert(key.to_owned(), value);
    }
    document
}

fn cpu(cpu: CpuStats) -> Value {
    // cgroup v1 counted nanoseconds.
    let usage = without_empty(json!({"total": cpu.usage_usec * 1000}));
    let usage = insert(usage, "kernel", json!(cpu.system_usec * 1000));
    let usage = insert(usage, "user", json!(cpu.user_usec * 1000));
    let throttling = without_empty(json!({
        "periods": cpu.nr_periods,
        "throttledPeriods": cpu.nr_throttled,
        "throttledTime": cpu.throttled_usec * 1000,
    }));
    let document = without_empty(json!({"psi": cpu.psi.map(pressure)}));
    let document = insert(document, "usage", usage);
    insert(document, "throttling", throttling)
}

/// Has no counterpart in cgroup v2, but its readers expect the members.
fn cpuset() -> Value {
    json!({
        "cpu_exclusive": 0,
        "mem_hardwall": 0,
        "mem_exclusive": 0,
        "memory_migrate": 0,
        "memory_spread_page": 0,
        "memory_spread_slab": 0,
        "memory_pressure": 0,
        "sched_load_balance": 0,
        "sched_relax_domain_level": 0,
    })
}

fn memory(memory: Option<&MemoryStats>) -> Value {
    let nothing = MemoryStats::default();
    let memory = memory.unwrap_or(&nothing);
    // cgroup v1 counted memory and swap together.
    let (swap_usage, swap_limit) = match (memory.swap_usage, memory.swap_limit) {
        (Some(usage), Some(limit)) => (
            usage + memory.usage,
            // An unlimited one stays unlimited.
            limit.saturating_add(if limit == u64::MAX {
                0
            } else {
                memory.usage_limit
            }),
        ),
        _ => (memory.usage, memory.usage_limit),
    };
    let document = without_empty(json!({
        "cache": memory.stat.get("file").copied().unwrap_or(0),
        "raw": memory.stat,
        "psi": memory.psi.map(pressure),
    }));
    let max_usage = memory.max_usage.unwrap_or(0);
    let usage = memory_entry(memory.usage, max_usage, memory.usage_limit);
    let document = insert(document, "usage", usage);
    let document = insert(document, "swap", memory_entry(swap_usage, 0, swap_limit));
    let document = insert(document, "kernel", memory_entry(0, 0, 0));
    insert(document, "kernelTCP", memory_entry(0, 0, 0))
}

fn memory_entry(usage: u64, max: u64, limit: u64) -> Value {
    let entry = without_empty(json!({"usage": usage, "max": max}));
    insert(insert(entry, "limit", json!(limit)), "failcnt", json!(0))
}

fn pids(pids: PidsStats) -> Value {
    let limit = if pids.limit == u64::MAX {
        0
    } else {
        pids.limit
    };
    without_empty(json!({"current": pids.current, "limit": limit}))
}

fn blkio(io: Option<&IoStats>) -> Value {
    let devices = io.map(|io| io.devices.as_slice()).unwrap_or_default();
    without_empty(json!({
        "ioServiceBytesRecursive": io_entries(devices, |d| (d.rbytes, d.wbytes)),
        "ioServicedRecursive": io_entries(devices, |d| (d.rios, d.wios)),
        "psi": io.and_then(|io| io.psi).map(pressure),
    }))
}

fn io_entries(devices: &[IoDevice], figures: fn(&IoDevice) -> (u64, u64)) -> Vec<Value> {
    let entry = |device: &IoDevice, op, value: u64| {
        without_empty(json!({
            "major": device.major, "minor": device.minor, "op": op, "value": value,
        }))
    };
    let both = devices.iter().flat_map(|device| {
        let (read, write) = figures(device);
        [entry(device, "Read", read), entry(device, "Write", write)]
    });
    both.collect()
}

fn hugetlb(sizes: &[HugetlbStats]) -> Value {
    let one = |pages: &HugetlbStats| {
        let entry = without_empty(json!({"usage": pages.current}));
        (
            pages.page_size.clone(),
            insert(entry, "failcnt", json!(pages.failcnt)),
        )
    };
    sizes.iter().map(one).collect::<Map<_, _>>().into()
}

fn pressure(psi: Psi) -> Value {
    json!({"some": psi.some, "full": psi.full})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_names_are_those_of_cgroup_v1() {
        let stats = Stats {
            cpu: Some(CpuStats {
                usage_usec: 5,
                user_usec: 2,
                system_usec: 3,
                ..CpuStats::default()
            }),
            memory: Some(MemoryStats {
                usage: 100,
                usage_limit: 1000,
                max_usage: Some(120),
                swap_usage: Some(10),
                swap_limit: Some(50),
                stat: [("file".to_owned(), 7)].into(),
                ..MemoryStats::default()
            }),
            pids: Some(PidsStats {
                current: 3,
                limit: u64::MAX,
            }),
            io: Some(IoStats {
                devices: vec![IoDevice {
                    major: 8,
                    minor: 0,
                    rbytes: 512,
                    rios: 1,
                    ..IoDevice::default()
                }],
                psi: None,
            }),
            ..Stats::default()
        };
        let document = document(&stats);
        let at = |pointer| document.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(
            at("/cpu/usage"),
            json!({"total": 5000, "kernel": 3000, "user": 2000})
        );
        assert_eq!(at("/memory/cache"), json!(7));
        assert_eq!(
            at("/memory/usage"),
            json!({"limit": 1000, "usage": 100, "max": 120, "failcnt": 0})
        );
        assert_eq!(
            at("/memory/swap"),
            json!({"limit": 1050, "usage": 110, "failcnt": 0})
        );
        assert_eq!(at("/pids"), json!({"current": 3}));
        assert_eq!(
            at("/blkio/ioServiceBytesRecursive"),
            json!([{"major": 8, "op": "Read", "value": 512}, {"major": 8, "op": "Write"}])
        );
    }

    #[test]
    fn an_unlimited_swap_stays_unlimited() {
        let memory = memory(Some(&MemoryStats {
            usage_limit: 1000,
            swap_usage: Some(0),
            swap_limit: Some(u64::MAX),
            ..MemoryStats::default()
        }));
        assert_eq!(memory["swap"]["limit"], json!(u64::MAX));
    }
}
