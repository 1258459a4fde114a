//! Checks of a configuration that need nothing but the configuration.

use std::path::Path;

use oci_spec::runtime::{Linux, Process, Spec};

use super::namespaces::Namespaces;
use crate::error::{Error, Result};

const NEWNS: u64 = libc::CLONE_NEWNS as u64;
const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;
const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
const NEWNET: u64 = libc::CLONE_NEWNET as u64;
const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
const NEWTIME: u64 = 0x80;

/// Checks a whole configuration and sorts its namespaces; errors name the field in `file`.
pub(crate) fn check_spec(file: &Path, spec: &Spec) -> Result<Namespaces> {
    let fail = |field: &str, reason: String| Error::Spec {
        file: file.display().to_string(),
        field: field.to_owned(),
        reason,
    };
    check_version(spec.version()).map_err(|reason| fail("ociVersion", reason))?;
    if spec
        .root()
        .as_ref()
        .is_none_or(|root| root.path().as_os_str().is_empty())
    {
        return Err(fail("root", "root.path must be set".into()));
    }
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| fail("process", "process property must not be empty".into()))?;
    check_process(process).map_err(|(field, reason)| fail(&format!("process.{field}"), reason))?;
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| fail("linux", "a Linux container needs the linux section".into()))?;
    let namespaces = Namespaces::from_spec(linux.namespaces().as_deref().unwrap_or_default())
        .map_err(|(index, reason)| fail(&format!("linux.namespaces[{index}]"), reason))?;
    check_net_devices(linux, &namespaces).map_err(|(field, reason)| fail(&field, reason))?;
    check_isolation(spec, linux, &namespaces).map_err(|(field, reason)| fail(field, reason))?;
    check_sysctls(linux, &namespaces)
        .map_err(|(key, reason)| fail(&format!("linux.sysctl[{key}]"), reason))?;
    Ok(namespaces)
}

/// Devices go into a network namespace that is not the host's, under names that the kernel takes.
fn check_net_devices(
    linux: &Linux,
    namespaces: &Namespaces,
) -> std::result::Result<(), (String, String)> {
    for (name, device) in linux.net_devices().iter().flatten() {
        let refuse = |reason: String| Err((format!("linux.netDevices[{name}]"), reason));
        if !namespaces.has(NEWNET) {
            return refuse("unable to move network devices without a NET namespace".into());
        }
        let new_name = device.name().as_deref().filter(|name| !name.is_empty());
        for name in [Some(name.as_str()), new_name].into_iter().flatten() {
            if !is_device_name(name) {
                return refuse(format!("invalid network device name {name:?}"));
            }
        }
    }
    Ok(())
}

/// As the kernel's `dev_valid_name`.
fn is_device_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace())
}

/// Checks a process document; the error is the field and what is wrong with it.
pub(crate) fn check_process(process: &Process) -> std::result::Result<(), (&'static str, String)> {
    if process.cwd().as_os_str().is_empty() {
        return Err(("cwd", "Cwd property must not be empty".into()));
    }
    if !process.cwd().is_absolute() {
        return Err(("cwd", "Cwd must be an absolute path".into()));
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(("args", "args must not be empty".into()));
    }
    Ok(())
}

/// What the specification lets a runtime leave out, in runc's words.
pub(crate) fn ignored_fields(spec: &Spec) -> Vec<String> {
    let personality = spec.linux().as_ref().and_then(|l| l.personality().as_ref());
    let flags = personality.and_then(|p| p.flags().as_ref());
    flags
        .filter(|flags| !flags.is_empty())
        .map(|flags| {
            format!(
                "ignoring unsupported personality flags: [{}]",
                flags.join(" ")
            )
        })
        .into_iter()
        .collect()
}

fn check_version(version: &str) -> std::result::Result<(), String> {
    let mut parts = version.split('.');
    match (parts.next(), parts.next().map(str::parse::<u32>)) {
        (Some("1"), Some(Ok(_))) => Ok(()),
        (Some(""), None) => Err("is missing".into()),
        _ => Err(format!(
            "{version:?} is not a 1.x version of the runtime-spec"
        )),
    }
}

fn check_isolation(
    spec: &Spec,
    linux: &Linux,
    namespaces: &Namespaces,
) -> std::result::Result<(), (&'static str, String)> {
    let some = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    if some(spec.hostname()) && !namespaces.has(NEWUTS) {
        return Err((
            "hostname",
            "unable to set hostname without a private UTS namespace".into(),
        ));
    }
    if some(spec.domainname()) && !namespaces.has(NEWUTS) {
        let reason = "unable to set domainname without a private UTS namespace";
        return Err(("domainname", reason.into()));
    }
    check_shared_mounts(linux, namespaces)?;
    let maps = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|l| !l.is_empty());
    for (field, kind, list) in [
        ("linux.uidMappings", "uid", linux.uid_mappings()),
        ("linux.gidMappings", "gid", linux.gid_mappings()),
    ] {
        if namespaces.create & NEWUSER != 0 && !maps(list) {
            let reason = format!("user namespaces enabled, but no {kind} mappings found");
            return Err((field, reason));
        }
    }
    if linux.time_offsets().as_ref().is_some_and(|o| !o.is_empty())
        && namespaces.create & NEWTIME == 0
    {
        let reason =
            "time namespace offsets specified, but time namespace isn't enabled in the config";
        return Err(("linux.timeOffsets", reason.into()));
    }
    let mut clocks = linux
        .time_offsets()
        .iter()
        .flatten()
        .map(|(clock, _)| clock);
    match clocks.find(|clock| !["monotonic", "boottime"].contains(&clock.as_str())) {
        Some(clock) => {
            let reason = format!("{clock:?} is no clock that a time namespace has");
            Err(("linux.timeOffsets", reason))
        }
        None => Ok(()),
    }
}

/// In the host's mount namespace nothing can be hidden, and its root in a user namespace may mount
/// nothing.
fn check_shared_mounts(
    linux: &Linux,
    namespaces: &Namespaces,
) -> std::result::Result<(), (&'static str, String)> {
    if namespaces.has(NEWNS) {
        return Ok(());
    }
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    for (field, list) in [
        ("linux.maskedPaths", linux.masked_paths()),
        ("linux.readonlyPaths", linux.readonly_paths()),
    ] {
        if some(list) {
            let reason = "unable to restrict sys entries without a private MNT namespace";
            return Err((field, reason.into()));
        }
    }
    if namespaces.has(NEWUSER) {
        let reason = "a user namespace needs a mount namespace beside it";
        return Err(("linux.namespaces", reason.into()));
    }
    Ok(())
}

/// Only what a namespace of the container's own holds may be set (as runc and the kernel see it).
fn check_sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
) -> std::result::Result<(), (String, String)> {
    const IPC_KEYS: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let Some(sysctls) = linux.sysctl() else {
        return Ok(());
    };
    for key in sysctls.keys() {
        let dotted = dotted_name(key);
        let is_ipc = IPC_KEYS.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.");
        let (namespace, why_not) = if is_ipc {
            (NEWIPC, "is not allowed in the hosts ipc namespace")
        } else if dotted.starts_with("net.") {
            (NEWNET, "not allowed in host network namespace")
        } else if dotted == "kernel.hostname" && namespaces.has(NEWUTS) {
            let reason = "is not allowed as it conflicts with the OCI \"hostname\" field";
            return Err((key.clone(), format!("sysctl {dotted:?} {reason}")));
        } else if dotted == "kernel.domainname" {
            (NEWUTS, "is not in a separate kernel namespace")
        } else if dotted.starts_with("user.") {
            (NEWUSER, "is not in a separate kernel namespace")
        } else {
            (0, "is not in a separate kernel namespace")
        };
        if !namespaces.has(namespace) {
            return Err((key.clone(), format!("sysctl {dotted:?} {why_not}")));
        }
    }
    Ok(())
}

/// `net/ipv4/conf/eth0.1/x` and `net.ipv4.conf.eth0/1.x` name the same key: whichever separator
/// comes first is the separator.
fn dotted_name(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'/' => key
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        let spec: Spec = serde_json::from_str(text).expect("well formed");
        check_spec(Path::new("config.json"), &spec)
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn each_refusal_names_its_field() {
        let process = r#""process":{"user":{"uid":0,"gid":0},"cwd":"/","args":["a"]}"#;
        let table = [
            (String::from("{}"), "ociVersion"),
            (String::from(r#"{"ociVersion":"2.0.0"}"#), "ociVersion"),
            (String::from(r#"{"ociVersion":"1.0.2"}"#), "root"),
            (
                String::from(r#"{"ociVersion":"1.0.2","root":{"path":"r"}}"#),
                "process",
            ),
            (
                format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},{process}}}"#),
                "linux",
            ),
            (
                format!(
                    r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},{process},"hostname":"h",
                    "linux":{{"namespaces":[{{"type":"mount"}}]}}}}"#
                ),
                "hostname",
            ),
            (
                format!(
                    r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},{process},
                    "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"user"}}]}}}}"#
                ),
                "linux.uidMappings",
            ),
            (
                format!(
                    r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},{process},"linux":{{
                    "sysctl":{{"net.ipv4.ip_forward":"1"}},"namespaces":[{{"type":"mount"}}]}}}}"#
                ),
                "linux.sysctl[net.ipv4.ip_forward]",
            ),
        ];
        for (text, field) in table {
            let error = error_of(&text);
            assert!(
                error.starts_with(&format!("config.json: {field}: ")),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn network_devices_need_a_namespace_and_names_of_the_kernels_kind() {
        let namespaces = |kinds: &[&str]| {
            let list: Vec<_> = kinds
                .iter()
                .map(|kind| serde_json::json!({ "type": kind }))
                .collect();
            let list: Vec<_> = serde_json::from_value(list.into()).expect("well formed");
            Namespaces::from_spec(&list).expect("valid")
        };
        for (kinds, devices, fine) in [
            (&["network"][..], r#"{"eth1":{}}"#, true),
            (&["network"], r#"{"eth1":{"name":"ctr%d"}}"#, true),
            (&[], r#"{"eth1":{}}"#, false),
            (&["network"], r#"{"eth1":{"name":"a/b"}}"#, false),
            (&["network"], r#"{"a device with a long name":{}}"#, false),
        ] {
            let linux: Linux = serde_json::from_str(&format!(r#"{{"netDevices":{devices}}}"#))
                .expect("well formed");
            let checked = check_net_devices(&linux, &namespaces(kinds));
            assert_eq!(checked.is_ok(), fine, "{kinds:?} {devices}");
        }
    }

    #[test]
    fn a_process_needs_an_absolute_cwd_and_arguments() {
        let mut process = Process::default();
        process.set_cwd("tmp".into());
        assert_eq!(check_process(&process).map_err(|e| e.0), Err("cwd"));
        process.set_cwd("/".into()).set_args(Some(Vec::new()));
        assert_eq!(check_process(&process).map_err(|e| e.0), Err("args"));
    }

    #[test]
    fn sysctl_names_may_use_slashes() {
        assert_eq!(
            dotted_name("net/ipv4/conf/eth0.1/x"),
            "net.ipv4.conf.eth0/1.x"
        );
        assert_eq!(dotted_name("net.ipv4.ip_forward"), "net.ipv4.ip_forward");
    }
}
