//! `linux.resources` as properties of a unit (org.freedesktop.systemd1(5),
//! systemd.resource-control(5)); pure.
//!
//! Only what systemd knows a property for is here. The cgroup's files are written all the same;
//! the properties keep systemd from undoing that when it looks after the unit.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::value::{Value, parse_property};
use crate::cgroup::devices::{self, AllowList};
use crate::cgroup::error::{CgroupError, Result};
use crate::cgroup::plan::convert;

/// A property of a unit.
pub(crate) type Property = (String, Value);

/// Annotations with this prefix are properties.
const ANNOTATION: &str = "org.systemd.property.";
/// What `cpu.max` counts in unless a period is given, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// One percent of a processor: systemd keeps no fractions of it.
const PERCENT: u64 = 10_000;

fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

fn limit(name: &str, value: u64) -> Property {
    property(name, Value::Uint64(value))
}

/// -1 is unlimited, which systemd writes as the largest number, too.
fn signed(value: i64) -> u64 {
    value as u64
}

/// Properties that only a new scope takes: what it is, and its process.
pub(super) fn of_scope(id: &str, slice: &str, pid: u32) -> Vec<Property> {
    let on = || Value::Bool(true);
    vec![
        property(
            "Description",
            Value::string(format!("xebec container {id}")),
        ),
        property("Slice", Value::string(slice)),
        property("Delegate", on()),
        property(
            "PIDs",
            Value::Array("u".to_owned(), vec![Value::Uint32(pid)]),
        ),
        property("MemoryAccounting", on()),
        property("CPUAccounting", on()),
        property("IOAccounting", on()),
        property("TasksAccounting", on()),
        // Nothing of the system has to come before a container or go after it.
        property("DefaultDependencies", Value::Bool(false)),
    ]
}

/// A limit of one process.
pub(crate) fn is_one_task(property: &Property) -> bool {
    *property == limit("TasksMax", 1)
}

/// Properties from annotations, in the order of their names.
pub(crate) fn from_annotations<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(ANNOTATION) else {
            continue;
        };
        let property = parse_property(name, text).map_err(|reason| CgroupError::Invalid {
            field: format!("annotations[{key}]"),
            reason,
        })?;
        properties.push(property);
    }
    properties.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(properties)
}

/// `memory.oom.group`, which systemd has to know when the scope starts.
pub(crate) fn oom_policy(resources: &LinuxResources) -> Option<Property> {
    let group = resources.unified().as_ref()?.get("memory.oom.group")?;
    let policy = match group.trim() {
        "0" => "continue",
        "1" => "kill",
        _ => return None,
    };
    Some(property("OOMPolicy", Value::string(policy)))
}

/// Properties that change with an update, devices apart.
pub(crate) fn from_resources(resources: &LinuxResources) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    if let Some(memory) = resources.memory() {
        from_memory(memory, &mut properties);
    }
    if let Some(cpu) = resources.cpu() {
        from_cpu(cpu, &mut properties)?;
    }
    let weight = resources.block_io().as_ref().and_then(LinuxBlockIo::weight);
    if let Some(weight) = weight.and_then(convert::blkio_to_io_weight) {
        properties.push(limit("IOWeight", weight));
    }
    if let Some(pids) = resources
        .pids()
        .map(|pids| pids.limit())
        .filter(|limit| *limit != 0)
    {
        properties.push(limit("TasksMax", signed(pids.max(-1))));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    let idle = unified
        .iter()
        .any(|(key, value)| *key == "cpu.idle" && value.trim() == "1");
    for (key, value) in unified {
        // Both are the same property: being idle wins.
        if !(idle && key == "cpu.weight") {
            properties.extend(from_unified(key, value.trim())?);
        }
    }
    Ok(properties)
}

/// Properties for `linux.resources.devices`. Exceptions from what is allowed cannot be said to
/// systemd; the program on the cgroup knows them.
pub(crate) fn from_devices(resources: &LinuxResources) -> Result<Vec<Property>> {
    let rules = resources.devices().as_deref().unwrap_or_default();
    let (policy, entries) = match devices::allow_list(rules)? {
        AllowList::Everything => ("auto", Vec::new()),
        AllowList::Only(entries) => ("strict", entries),
    };
    let entries = entries
        .into_iter()
        .map(|(device, access)| Value::Struct(vec![Value::String(device), Value::String(access)]))
        .collect();
    Ok(vec![
        property("DevicePolicy", Value::string(policy)),
        // A list is added to what is there; an empty one clears it first.
        property("DeviceAllow", Value::Array("(ss)".to_owned(), Vec::new())),
        property("DeviceAllow", Value::Array("(ss)".to_owned(), entries)),
    ])
}

fn from_memory(memory: &LinuxMemory, properties: &mut Vec<Property>) {
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(max) = given(memory.limit()) {
        properties.push(limit("MemoryMax", signed(max)));
    }
    if let Some(low) = given(memory.reservation()) {
        properties.push(limit("MemoryLow", signed(low)));
    }
    let sum = memory.swap().unwrap_or(0);
    // A bad pair is refused with its fields by the plan for the files.
    if let Ok(swap) = convert::swap_alone(sum, memory.limit().unwrap_or(0))
        && (swap != 0 || sum > 0)
    {
        properties.push(limit("MemorySwapMax", signed(swap)));
    }
}

fn from_cpu(cpu: &LinuxCpu, properties: &mut Vec<Property>) -> Result<()> {
    // A weight of 0 is systemd's way to say idle; not being idle is the default.
    if cpu.idle() == Some(1) {
        properties.push(limit("CPUWeight", 0));
    } else if let Some(weight) = cpu.shares().and_then(convert::shares_to_weight) {
        properties.push(limit("CPUWeight", weight));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.and_then(|quota| u64::try_from(quota).ok());
        properties.extend(cpu_quota(quota, period));
    }
    let sets = [
        ("AllowedCPUs", "linux.resources.cpu.cpus", cpu.cpus()),
        ("AllowedMemoryNodes", "linux.resources.cpu.mems", cpu.mems()),
    ];
    for (name, field, list) in sets {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            properties.push(property(name, cpu_set(field, list)?));
        }
    }
    Ok(())
}

/// systemd's quota is the time in a second of one processor, in whole percents, rounded up so that
/// cgroups below may have what the container was promised.
fn cpu_quota(quota: Option<u64>, period: Option<u64>) -> Vec<Property> {
    let mut properties = Vec::new();
    if let Some(period) = period {
        properties.push(limit("CPUQuotaPeriodUSec", period));
    }
    let per_second = quota.map_or(u64::MAX, |quota| {
        let period = period.unwrap_or(DEFAULT_PERIOD);
        (quota.saturating_mul(1_000_000) / period).next_multiple_of(PERCENT)
    });
    properties.push(limit("CPUQuotaPerSecUSec", per_second));
    properties
}

/// `0-2,7` as one bit a processor, the lowest first.
fn cpu_set(field: &str, list: &str) -> Result<Value> {
    /// More than any kernel is built for.
    const MOST: usize = 1 << 16;
    let invalid = || CgroupError::Invalid {
        field: field.to_owned(),
        reason: format!("{list:?} is not a list such as \"0-2,7\""),
    };
    let mut bytes = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| invalid());
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= MOST {
            return Err(invalid());
        }
        for bit in first..=last {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0_u8);
            }
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    Ok(Value::bytes(&bytes))
}

fn from_unified(key: &str, value: &str) -> Result<Vec<Property>> {
    let field = format!("linux.resources.unified[{key}]");
    let invalid = || CgroupError::Invalid {
        field: field.clone(),
        reason: format!("{value:?} is not a value for it"),
    };
    let number = |text: &str| text.parse::<u64>().map_err(|_| invalid());
    let limit_of = |text: &str| {
        if text == "max" {
            Ok(u64::MAX)
        } else {
            number(text)
        }
    };
    let name = match key {
        "cpu.idle" if value == "1" => return Ok(vec![limit("CPUWeight", 0)]),
        "cpu.weight" => return Ok(vec![limit("CPUWeight", number(value)?)]),
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let quota = match words.next().ok_or_else(invalid)? {
                "max" => None,
                quota => Some(number(quota)?),
            };
            let period = words.next().map(number).transpose()?;
            return Ok(cpu_quota(quota, Some(period.unwrap_or(DEFAULT_PERIOD))));
        }
        "cpuset.cpus" => return Ok(vec![property("AllowedCPUs", cpu_set(&field, value)?)]),
        "cpuset.mems" => {
            return Ok(vec![property(
                "AllowedMemoryNodes",
                cpu_set(&field, value)?,
            )]);
        }
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        _ => return Ok(Vec::new()),
    };
    Ok(vec![limit(name, limit_of(value)?)])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn properties(resources: serde_json::Value) -> Result<Vec<Property>> {
        from_resources(&serde_json::from_value(resources).expect("resources"))
    }

    fn u64s(list: &[(&str, u64)]) -> Vec<Property> {
        list.iter()
            .map(|(name, value)| limit(name, *value))
            .collect()
    }

    #[test]
    fn fields_become_properties() {
        let table = [
            (json!({}), u64s(&[])),
            (
                json!({"memory": {"limit": 100, "swap": 300, "reservation": 50}}),
                u64s(&[
                    ("MemoryMax", 100),
                    ("MemoryLow", 50),
                    ("MemorySwapMax", 200),
                ]),
            ),
            (
                json!({"memory": {"limit": -1}}),
                u64s(&[("MemoryMax", u64::MAX), ("MemorySwapMax", u64::MAX)]),
            ),
            (
                json!({"memory": {"limit": 100, "swap": 100}}),
                u64s(&[("MemoryMax", 100), ("MemorySwapMax", 0)]),
            ),
            (
                json!({"cpu": {"shares": 1024}}),
                u64s(&[("CPUWeight", 100)]),
            ),
            (
                json!({"cpu": {"shares": 1024, "idle": 1}}),
                u64s(&[("CPUWeight", 0)]),
            ),
            (
                json!({"cpu": {"quota": 50_000, "period": 200_000}}),
                u64s(&[
                    ("CPUQuotaPeriodUSec", 200_000),
                    ("CPUQuotaPerSecUSec", 250_000),
                ]),
            ),
            // 1/3 of a processor is 34 %.
            (
                json!({"cpu": {"quota": 33_333}}),
                u64s(&[("CPUQuotaPerSecUSec", 340_000)]),
            ),
            (
                json!({"cpu": {"quota": -1}}),
                u64s(&[("CPUQuotaPerSecUSec", u64::MAX)]),
            ),
            (json!({"pids": {"limit": 7}}), u64s(&[("TasksMax", 7)])),
            (
                json!({"pids": {"limit": -1}}),
                u64s(&[("TasksMax", u64::MAX)]),
            ),
            (
                json!({"blockIO": {"weight": 500}}),
                u64s(&[("IOWeight", 4950)]),
            ),
            (
                json!({"cpu": {"cpus": "0-2,9", "mems": "1"}}),
                vec![
                    property("AllowedCPUs", Value::bytes(&[7, 2])),
                    property("AllowedMemoryNodes", Value::bytes(&[2])),
                ],
            ),
        ];
        for (resources, expected) in table {
            let text = resources.to_string();
            assert_eq!(properties(resources).expect(&text), expected, "{text}");
        }
    }

    #[test]
    fn unified_keys_become_properties_and_unknown_ones_only_files() {
        let unified = json!({"unified": {
            "cpu.max": "max 50000", "cpu.weight": "7", "cpu.idle": "1", "memory.high": "max",
            "memory.swap.max": "0", "pids.max": "9", "hugetlb.2MB.max": "0", "cpuset.cpus": "3",
        }});
        let expected = [
            limit("CPUWeight", 0),
            limit("CPUQuotaPeriodUSec", 50_000),
            limit("CPUQuotaPerSecUSec", u64::MAX),
            property("AllowedCPUs", Value::bytes(&[8])),
            limit("MemoryHigh", u64::MAX),
            limit("MemorySwapMax", 0),
            limit("TasksMax", 9),
        ];
        assert_eq!(properties(unified).expect("valid"), expected);
    }

    #[test]
    fn what_is_no_value_is_refused_with_its_field() {
        let table = [
            (json!({"cpu": {"cpus": "a"}}), "linux.resources.cpu.cpus"),
            (json!({"cpu": {"mems": "3-1"}}), "linux.resources.cpu.mems"),
            (
                json!({"unified": {"pids.max": "x"}}),
                "linux.resources.unified[pids.max]",
            ),
            (
                json!({"unified": {"cpu.max": ""}}),
                "linux.resources.unified[cpu.max]",
            ),
        ];
        for (resources, field) in table {
            let error = properties(resources).expect_err(field).to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn annotations_are_sorted_and_checked() {
        let annotations = [
            ("org.systemd.property.TimeoutStopSec", "uint64 5"),
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.example.other", "x"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let pairs = annotations.iter().map(|(key, value)| (key, value));
        let expected = [
            property("CollectMode", Value::string("inactive-or-failed")),
            limit("TimeoutStopUSec", 5_000_000),
        ];
        assert_eq!(from_annotations(pairs).expect("valid"), expected);
        let (key, value) = ("org.systemd.property.a".to_owned(), "1".to_owned());
        let error = from_annotations([(&key, &value)])
            .expect_err("too short")
            .to_string();
        assert!(
            error.starts_with("annotations[org.systemd.property.a]: "),
            "{error}"
        );
    }

    #[test]
    fn devices_are_said_as_a_list() {
        let resources = json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        ]});
        let resources = serde_json::from_value(resources).expect("resources");
        let properties = from_devices(&resources).expect("valid");
        assert_eq!(
            properties[0],
            property("DevicePolicy", Value::string("strict"))
        );
        let fuse = [Value::string("/dev/char/10:229"), Value::string("rw")];
        let Value::Array(_, entries) = &properties[2].1 else {
            panic!("{properties:?}");
        };
        assert!(entries.contains(&Value::Struct(fuse.into())), "{entries:?}");
    }
}
