//! What the specification allows and the types of `oci-spec` are too narrow for, put into a form
//! that they take. Only a document that could not be parsed comes here.

use std::collections::BTreeSet;
use std::str::FromStr;

use oci_spec::runtime::Capability;
use serde_json::{Value, json};

/// What has been done to a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Amended {
    pub(super) changed: bool,
    /// What is left out, for the log.
    pub(super) warnings: Vec<String>,
}

/// Amends a process document.
pub(super) fn amend_process(process: &mut Value) -> Amended {
    let unknown = drop_unknown_capabilities(process);
    let respelt = respell_scheduler_flags(process);
    let emptied = drop_empty_affinities(process);
    let completed = complete_user(process);
    let warning = format!(
        "ignoring unknown or unavailable capabilities: [{}]",
        unknown.join(" ")
    );
    Amended {
        changed: respelt || emptied || completed || !unknown.is_empty(),
        warnings: if unknown.is_empty() {
            Vec::new()
        } else {
            vec![warning]
        },
    }
}

/// Removes fields that are `null`, which other decoders take for "not given"; whether there were.
pub(super) fn drop_nulls(value: &mut Value) -> bool {
    let below = |values: &mut dyn Iterator<Item = &mut Value>| {
        values.fold(false, |changed, value| drop_nulls(value) | changed)
    };
    match value {
        Value::Object(fields) => {
            let before = fields.len();
            fields.retain(|_, field| !field.is_null());
            below(&mut fields.values_mut()) | (fields.len() < before)
        }
        Value::Array(items) => below(&mut items.iter_mut()),
        _ => false,
    }
}

/// A runtime must not refuse a configuration that a newer kernel's list was written into.
fn drop_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut unknown = BTreeSet::new();
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for (_, names) in sets.into_iter().flatten() {
        let Some(names) = names.as_array_mut() else {
            continue;
        };
        names.retain(|name| match name.as_str() {
            Some(text) if !is_known_capability(text) => {
                unknown.insert(text.to_owned());
                false
            }
            _ => true,
        });
    }
    unknown.into_iter().collect()
}

fn is_known_capability(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(short).is_ok() || Capability::from_str(&format!("CAP_{short}")).is_ok()
}

/// Gives the process root's numbers where it names none, which is what they are in Go; whether
/// there was anything to give.
fn complete_user(process: &mut Value) -> bool {
    let Some(process) = process.as_object_mut() else {
        return false;
    };
    let user = process.entry("user").or_insert_with(|| json!({}));
    if user.is_null() {
        *user = json!({});
    }
    let Value::Object(user) = user else {
        return false;
    };
    let named = user.len();
    for id in ["uid", "gid"] {
        user.entry(id).or_insert_with(|| json!(0));
    }
    user.len() > named
}

/// Amends the section `linux` of a configuration: an empty memory policy is the same as none.
pub(super) fn amend_linux(linux: &mut Value) -> bool {
    let Some(linux) = linux.as_object_mut() else {
        return false;
    };
    let is_empty = |policy: &Value| policy.as_object().is_some_and(serde_json::Map::is_empty);
    linux.get("memoryPolicy").is_some_and(is_empty) && linux.remove("memoryPolicy").is_some()
}

/// Keys are the same in any case to Go's decoder, and `pagesize` is in use; whether one was changed.
pub(super) fn respell_page_sizes(config: &mut Value) -> bool {
    const KEY: &str = "pageSize";
    let limits = config
        .pointer_mut("/linux/resources/hugepageLimits")
        .and_then(Value::as_array_mut);
    let mut changed = false;
    for limit in limits.into_iter().flatten() {
        let Some(limit) = limit.as_object_mut() else {
            continue;
        };
        let other = limit.keys().find(|key| key.eq_ignore_ascii_case(KEY));
        let Some(other) = other.filter(|key| *key != KEY).cloned() else {
            continue;
        };
        if let Some(size) = limit.remove(&other) {
            limit.insert(KEY.to_owned(), size);
            changed = true;
        }
    }
    changed
}

/// Two flags are spelt otherwise there than in the specification.
fn respell_scheduler_flags(process: &mut Value) -> bool {
    let flags = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut);
    let mut changed = false;
    for flag in flags.into_iter().flatten() {
        let respelt = match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
            Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
            _ => continue,
        };
        *flag = respelt.into();
        changed = true;
    }
    changed
}

/// An empty list of processors is the same as none.
fn drop_empty_affinities(process: &mut Value) -> bool {
    let lists = process
        .get_mut("execCPUAffinity")
        .and_then(Value::as_object_mut);
    let Some(lists) = lists else { return false };
    let before = lists.len();
    lists.retain(|_, list| list.as_str() != Some(""));
    lists.len() != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_kernel_headers_is_known() {
        for name in [
            "CAP_CHOWN",
            "cap_net_raw",
            "SYSLOG",
            "CAP_CHECKPOINT_RESTORE",
            "CAP_BPF",
        ] {
            assert!(is_known_capability(name), "{name}");
        }
        assert!(!is_known_capability("CAP_NONE"));
    }

    #[test]
    fn an_unknown_capability_is_named_once_however_often_it_stands() {
        let mut process = serde_json::json!({ "capabilities": {
            "bounding": ["CAP_KILL", "CAP_NEW"], "permitted": ["CAP_NEW"] } });
        let amended = amend_process(&mut process);
        assert_eq!(
            amended.warnings,
            ["ignoring unknown or unavailable capabilities: [CAP_NEW]"]
        );
        let left = serde_json::json!({ "bounding": ["CAP_KILL"], "permitted": [] });
        assert_eq!(process["capabilities"], left);
    }

    #[test]
    fn an_empty_memory_policy_is_none() {
        let mut linux = json!({ "memoryPolicy": {}, "devices": [] });
        assert!(amend_linux(&mut linux));
        assert_eq!(linux, json!({ "devices": [] }));
        assert!(!amend_linux(
            &mut json!({ "memoryPolicy": { "nodes": "0" } })
        ));
    }

    #[test]
    fn the_specifications_spelling_is_understood() {
        let mut process = serde_json::json!({
            "user": { "uid": 0, "gid": 0 },
            "scheduler": { "policy": "SCHED_BATCH",
                "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"] },
            "execCPUAffinity": { "initial": "0", "final": "" },
        });
        assert!(amend_process(&mut process).changed);
        let flags = &process["scheduler"]["flags"];
        let parsed: Vec<oci_spec::runtime::LinuxSchedulerFlag> =
            serde_json::from_value(flags.clone()).expect("known");
        assert_eq!(parsed.len(), 2);
        assert_eq!(
            process["execCPUAffinity"],
            serde_json::json!({ "initial": "0" })
        );
        assert_eq!(amend_process(&mut process), Amended::default());
    }
}
