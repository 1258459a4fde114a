//! The dumped `config.json`, adapted to this node. Pure.
//!
//! Unless the archive is trusted, nothing of it reaches the host: no hook, no annotation, no
//! namespace of others, no device, no capability beyond what engines give to all, and only those
//! bind mounts that the caller has named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::capabilities::{bit, first, ordinary};
use crate::archive::SPEC_DUMP;
use crate::error::{Error, Result};

/// What the caller of an import wants.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// The root file system on this node.
    pub rootfs: PathBuf,
    /// Directory of what is made for the container.
    pub bundle: PathBuf,
    /// The network namespace to join, where the dumped container had joined one.
    pub network: Option<PathBuf>,
    /// Bind mounts that the caller agrees with.
    pub binds: Vec<Bind>,
    /// The archive says nothing that its reader does not want.
    pub trusted: bool,
}

/// A bind mount that the caller agrees with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where, in the container.
    pub destination: PathBuf,
    /// What; none for what the archive says.
    pub source: Option<PathBuf>,
}

impl std::str::FromStr for Bind {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let (destination, source) = match text.split_once('=') {
            Some((destination, source)) => (destination, Some(PathBuf::from(source))),
            None => (text, None),
        };
        let absolute = |path: &Path| path.is_absolute();
        if !absolute(Path::new(destination))
            || source.as_deref().is_some_and(|path| !absolute(path))
        {
            return Err("use DESTINATION or DESTINATION=SOURCE, absolute paths");
        }
        Ok(Self {
            destination: destination.into(),
            source,
        })
    }
}

/// Something that an engine had made for the container, and that is made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// A file; with the host's content, if that file of the host is there.
    File(PathBuf, Option<&'static str>),
    /// A directory, which gets what was in `/dev/shm`.
    Shm(PathBuf),
}

impl Made {
    pub(super) fn path(&self) -> &Path {
        let (Self::File(path, _) | Self::Shm(path)) = self;
        path
    }
}

/// What is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    /// `config.json`.
    pub(super) config: Value,
    /// Files that its bind mounts need.
    pub(super) made: Vec<Made>,
    /// Where it mounts what is outside of the container.
    pub(super) destinations: BTreeSet<String>,
    /// Capabilities that its processes may have.
    pub(super) capabilities: u64,
}

/// Files that engines bind, and what they are made of.
const ENGINE_FILES: [(&str, Option<&str>); 6] = [
    ("/etc/hostname", None),
    ("/etc/hosts", None),
    ("/etc/resolv.conf", Some("/etc/resolv.conf")),
    ("/run/.containerenv", None),
    ("/dev/termination-log", None),
    ("/etc/mtab", None),
];
const SHM: &str = "/dev/shm";
/// File systems that have nothing of the host's in them.
const OWN_FILE_SYSTEMS: [&str; 7] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];
/// Fields that stay as they are.
const TOP: [&str; 7] = [
    "ociVersion",
    "process",
    "root",
    "hostname",
    "domainname",
    "mounts",
    "linux",
];
const LINUX: [&str; 5] = [
    "namespaces",
    "seccomp",
    "maskedPaths",
    "readonlyPaths",
    "resources",
];
const PROCESS: [&str; 11] = [
    "terminal",
    "consoleSize",
    "user",
    "args",
    "env",
    "cwd",
    "capabilities",
    "rlimits",
    "noNewPrivileges",
    "oomScoreAdj",
    "apparmorProfile",
];
/// Namespaces without which the host's are the container's.
const NAMESPACES: [&str; 5] = ["pid", "mount", "ipc", "uts", "network"];

/// Adapts a dumped `config.json`.
///
/// # Errors
/// The field that cannot be used, or that the caller has not agreed with.
pub(super) fn plan_config(spec: &Value, wishes: &Wishes) -> Result<Plan> {
    let mut config = spec
        .as_object()
        .cloned()
        .ok_or_else(|| Error::malformed(SPEC_DUMP, "not an object"))?;
    check_environment(spec)?;
    config.remove("hooks");
    if !wishes.trusted {
        keep(&mut config, &TOP);
        keep_in(&mut config, "linux", &LINUX);
        keep_in(&mut config, "process", &PROCESS);
    }
    let capabilities = capabilities(spec, wishes.trusted)?;
    adapt_namespaces(&mut config, wishes)?;
    adapt_linux(&mut config, wishes.trusted);
    let root = config.entry("root").or_insert_with(|| json!({}));
    root["path"] = path_value(&wishes.rootfs);
    let (made, destinations) = adapt_mounts(&mut config, wishes)?;
    Ok(Plan {
        config: Value::Object(config),
        made,
        destinations,
        capabilities,
    })
}

fn refuse(field: &str, reason: impl Into<String>) -> Error {
    Error::refused(SPEC_DUMP, field, reason)
}

fn path_value(path: &Path) -> Value {
    Value::String(path.to_string_lossy().into_owned())
}

fn keep(object: &mut Map<String, Value>, fields: &[&str]) {
    object.retain(|name, _| fields.contains(&name.as_str()));
}

fn keep_in(config: &mut Map<String, Value>, name: &str, fields: &[&str]) {
    if let Some(inner) = config.get_mut(name).and_then(Value::as_object_mut) {
        keep(inner, fields);
    }
}

fn check_environment(spec: &Value) -> Result<()> {
    let mut seen = BTreeSet::new();
    let environment = spec["process"]["env"].as_array().into_iter().flatten();
    for (index, variable) in environment.enumerate() {
        let field = format!("process.env[{index}]");
        let variable = variable
            .as_str()
            .ok_or_else(|| refuse(&field, "not a string"))?;
        let name = variable.split('=').next().unwrap_or(variable);
        if !seen.insert(name) {
            return Err(refuse(&field, format!("{name} is there twice")));
        }
    }
    Ok(())
}

/// What the processes may be able to do.
fn capabilities(spec: &Value, trusted: bool) -> Result<u64> {
    if trusted {
        return Ok(u64::MAX);
    }
    let mut all = 0;
    for (set, names) in spec["process"]["capabilities"]
        .as_object()
        .into_iter()
        .flatten()
    {
        for name in names.as_array().into_iter().flatten() {
            let name = name.as_str().unwrap_or_default();
            let field = format!("process.capabilities.{set}");
            let bit = bit(name).ok_or_else(|| refuse(&field, format!("{name:?} is unknown")))?;
            if bit & !ordinary() != 0 {
                let reason = format!(
                    "{} is more than containers have; --trusted allows it",
                    first(bit)
                );
                return Err(refuse(&field, reason));
            }
            all |= bit;
        }
    }
    Ok(all)
}

fn adapt_namespaces(config: &mut Map<String, Value>, wishes: &Wishes) -> Result<()> {
    let all = config
        .get_mut("linux")
        .and_then(|linux| linux.get_mut("namespaces"));
    let all = all.and_then(Value::as_array_mut);
    let all = all.ok_or_else(|| refuse("linux.namespaces", "there are none"))?;
    let mut seen = BTreeSet::new();
    for (index, namespace) in all.iter_mut().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        let had_path = namespace["path"]
            .as_str()
            .is_some_and(|path| !path.is_empty());
        if let Some(object) = namespace.as_object_mut() {
            object.remove("path");
        }
        match kind.as_str() {
            "network" if had_path => {
                let reason = "the container had joined a network; name one by --network FILE";
                let path = wishes
                    .network
                    .as_deref()
                    .ok_or_else(|| refuse(&field, reason))?;
                namespace["path"] = path_value(path);
            }
            "pid" if had_path => {
                return Err(refuse(
                    &field,
                    "the container shares the processes of others",
                ));
            }
            "user" if !wishes.trusted => {
                return Err(refuse(&field, "users of its own need --trusted"));
            }
            _ => {}
        }
        seen.insert(kind);
    }
    let missing = NAMESPACES.iter().find(|kind| !seen.contains(**kind));
    match missing.filter(|_| !wishes.trusted) {
        Some(kind) => Err(refuse(
            "linux.namespaces",
            format!("the host's {kind} namespace needs --trusted"),
        )),
        None => Ok(()),
    }
}

fn adapt_linux(config: &mut Map<String, Value>, trusted: bool) {
    let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) else {
        return;
    };
    linux.remove("cgroupsPath");
    if !trusted {
        let resources = linux.entry("resources").or_insert_with(|| json!({}));
        if let Some(resources) = resources.as_object_mut() {
            // Those that every container has are allowed besides.
            resources.insert(
                "devices".to_owned(),
                json!([{"allow": false, "access": "rwm"}]),
            );
            resources.remove("rdma");
        }
    }
}

type Adapted = (Vec<Made>, BTreeSet<String>);

fn adapt_mounts(config: &mut Map<String, Value>, wishes: &Wishes) -> Result<Adapted> {
    let mut made = Vec::new();
    let mut destinations = BTreeSet::new();
    let agreed: BTreeMap<&Path, &Bind> = wishes
        .binds
        .iter()
        .map(|bind| (bind.destination.as_path(), bind))
        .collect();
    let mounts = config.get_mut("mounts").and_then(Value::as_array_mut);
    for (index, mount) in mounts.into_iter().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        let destination = mount["destination"].as_str().unwrap_or_default().to_owned();
        if !destination.starts_with('/') || destination.split('/').any(|part| part == "..") {
            return Err(refuse(
                &field,
                format!("{destination:?} is not a path of a container"),
            ));
        }
        if !is_bind(mount) {
            let kind = mount["type"].as_str().unwrap_or_default();
            if !wishes.trusted && !OWN_FILE_SYSTEMS.contains(&kind) {
                let reason = format!("{destination}: file system {kind:?} needs --trusted");
                return Err(refuse(&field, reason));
            }
            continue;
        }
        let given = agreed.get(Path::new(&destination)).copied();
        let own = own_file(&destination, wishes, made.len()).filter(|_| given.is_none());
        if let Some(own) = own {
            mount["source"] = path_value(own.path());
            made.push(own);
        } else if let Some(source) = given.and_then(|bind| bind.source.as_deref()) {
            mount["source"] = path_value(source);
        } else if given.is_none() && !wishes.trusted {
            let source = mount["source"].as_str().unwrap_or_default();
            let reason = format!(
                "{destination} is bound from {source:?} of the host: agree by --bind {destination}, \
                 or with another one by --bind {destination}=SOURCE"
            );
            return Err(refuse(&field, reason));
        }
        destinations.insert(destination);
    }
    Ok((made, destinations))
}

fn is_bind(mount: &Value) -> bool {
    let mut options = mount["options"].as_array().into_iter().flatten();
    mount["type"].as_str() == Some("bind")
        || options.any(|option| matches!(option.as_str(), Some("bind" | "rbind")))
}

/// What is made anew in the place of an engine's file.
fn own_file(destination: &str, wishes: &Wishes, number: usize) -> Option<Made> {
    if destination == SHM {
        return Some(Made::Shm(wishes.bundle.join("shm")));
    }
    let (_, content) = ENGINE_FILES
        .iter()
        .find(|(known, _)| *known == destination)?;
    Some(Made::File(
        wishes.bundle.join(format!("file-{number}")),
        *content,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes() -> Wishes {
        Wishes {
            rootfs: "/r".into(),
            bundle: "/b".into(),
            ..Wishes::default()
        }
    }

    fn spec() -> Value {
        json!({
            "ociVersion": "1.2.1",
            "root": {"path": "/var/lib/containers/merged"},
            "hooks": {"poststop": [{"path": "/usr/bin/evil"}]},
            "annotations": {"org.criu.config": "/tmp/evil.conf"},
            "process": {"args": ["sh"], "env": ["A=b"], "cwd": "/",
                "capabilities": {"bounding": ["CAP_KILL"]}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/etc/hosts", "type": "bind", "source": "/x", "options": ["bind"]},
                {"destination": "/dev/shm", "type": "bind", "source": "/y", "options": ["bind"]},
            ],
            "linux": {
                "cgroupsPath": "/../../escape",
                "devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}],
                "resources": {"devices": [{"allow": true, "access": "rwm"}], "pids": {"limit": 9}},
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
                    {"type": "uts"}, {"type": "network"}],
            },
        })
    }

    #[track_caller]
    fn refused(spec: &Value, words: &[&str]) {
        let error = plan_config(spec, &wishes())
            .expect_err("refused")
            .to_string();
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn what_leads_to_the_host_is_left_out() {
        let plan = plan_config(&spec(), &wishes()).expect("planned");
        let config = plan.config;
        for gone in ["hooks", "annotations"] {
            assert!(config.get(gone).is_none(), "{gone}");
        }
        assert_eq!(config["root"]["path"], "/r");
        let linux = &config["linux"];
        assert!(linux.get("cgroupsPath").is_none() && linux.get("devices").is_none());
        assert_eq!(
            linux["resources"]["devices"],
            json!([{"allow": false, "access": "rwm"}])
        );
        assert_eq!(linux["resources"]["pids"]["limit"], 9);
        assert!(linux["namespaces"][2].get("path").is_none());
        assert_eq!(config["mounts"][1]["source"], "/b/file-0");
        assert_eq!(config["mounts"][2]["source"], "/b/shm");
        assert_eq!(plan.made.len(), 2);
        assert_eq!(plan.capabilities, 1 << 5);
    }

    #[test]
    fn binds_of_the_host_need_the_callers_consent() {
        let mut spec = spec();
        let bind =
            json!({"destination": "/data", "type": "bind", "source": "/", "options": ["rbind"]});
        spec["mounts"].as_array_mut().expect("a list").push(bind);
        refused(&spec, &["mounts[3]", "/data", "--bind /data"]);
        let mut agreed = wishes();
        agreed.binds = vec!["/data=/srv/data".parse().expect("a bind")];
        let plan = plan_config(&spec, &agreed).expect("planned");
        assert_eq!(plan.config["mounts"][3]["source"], "/srv/data");
        assert!(plan.destinations.contains("/data"));
        assert!("data=/srv".parse::<Bind>().is_err());
    }

    #[test]
    fn forged_fields_are_refused_by_name() {
        let with = |path: &str, value: Value| {
            let mut spec = spec();
            *spec.pointer_mut(path).expect("a field") = value;
            spec
        };
        let twice = with("/process/env", json!(["A=b", "B=c", "A=d"]));
        refused(&twice, &["process.env[2]", "A is there twice"]);
        let admin = with("/process/capabilities/bounding", json!(["CAP_SYS_ADMIN"]));
        refused(&admin, &["process.capabilities.bounding", "CAP_SYS_ADMIN"]);
        refused(
            &with("/linux/namespaces/0/type", json!("cgroup")),
            &["host's pid namespace"],
        );
        refused(
            &with("/mounts/0/destination", json!("/../x")),
            &["mounts[0]", "/../x"],
        );
        refused(
            &with("/mounts/0/type", json!("ext4")),
            &["mounts[0]", "ext4"],
        );
    }
}
