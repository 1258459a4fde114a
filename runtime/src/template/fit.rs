//! Whether a container can be a clone of a template. Pure.
//!
//! Images hold mounts, users, capabilities and filters: a configuration with other ones would not be
//! what runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::awareness::INSIDE;

/// How much of two configurations has to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The places and types of mounts: who asks knows the template.
    Mounts,
    /// Whatever the clone's processes may do: who asks may know no more than its name, and gets no
    /// right that his own configuration does not give.
    Rights,
}

impl Fit {
    /// The field of the container's configuration in which it is not the template's, if there is
    /// one.
    pub(crate) fn misfit(self, template: &Spec, container: &Spec) -> Option<&'static str> {
        let places = (places(template), places(container));
        if places.0 != places.1 {
            return Some("mounts");
        }
        match self {
            Self::Mounts => None,
            Self::Rights => differing_right(template, container),
        }
    }
}

/// All mounts but that of the generation, which is no part of a configuration.
fn mounts(spec: &Spec) -> impl Iterator<Item = &Mount> {
    let all = spec.mounts().iter().flatten();
    all.filter(|mount| mount.destination() != Path::new(INSIDE))
}

fn places(spec: &Spec) -> Vec<(PathBuf, Option<String>)> {
    mounts(spec)
        .map(|mount| (mount.destination().clone(), mount.typ().clone()))
        .collect()
}

fn differing_right(template: &Spec, container: &Spec) -> Option<&'static str> {
    let pair = (template, container);
    [
        ("mounts", differ(pair, mount_options)),
        ("root.readonly", differ(pair, has_readonly_root)),
        (
            "process.user",
            differ(pair, of_process(|p| p.user().clone())),
        ),
        (
            "process.capabilities",
            differ(pair, of_process(|p| p.capabilities().clone())),
        ),
        (
            "process.noNewPrivileges",
            differ(pair, of_process(|p| p.no_new_privileges().unwrap_or(false))),
        ),
        (
            "process.apparmorProfile",
            differ(pair, of_process(|p| p.apparmor_profile().clone())),
        ),
        (
            "process.selinuxLabel",
            differ(pair, of_process(|p| p.selinux_label().clone())),
        ),
        ("linux.namespaces", differ(pair, namespaces)),
        (
            "linux.uidMappings",
            differ(pair, of_linux(|l| l.uid_mappings().clone())),
        ),
        (
            "linux.gidMappings",
            differ(pair, of_linux(|l| l.gid_mappings().clone())),
        ),
        (
            "linux.seccomp",
            differ(pair, of_linux(|l| l.seccomp().clone())),
        ),
        (
            "linux.maskedPaths",
            differ(pair, of_linux(|l| sorted(l.masked_paths().as_ref()))),
        ),
        (
            "linux.readonlyPaths",
            differ(pair, of_linux(|l| sorted(l.readonly_paths().as_ref()))),
        ),
    ]
    .into_iter()
    .find_map(|(field, differs)| differs.then_some(field))
}

fn differ<T: PartialEq>((one, other): (&Spec, &Spec), part: impl Fn(&Spec) -> T) -> bool {
    part(one) != part(other)
}

fn of_process<T>(part: impl Fn(&oci_spec::runtime::Process) -> T) -> impl Fn(&Spec) -> Option<T> {
    move |spec| spec.process().as_ref().map(&part)
}

fn of_linux<T>(part: impl Fn(&oci_spec::runtime::Linux) -> T) -> impl Fn(&Spec) -> Option<T> {
    move |spec| spec.linux().as_ref().map(&part)
}

fn sorted(list: Option<&Vec<String>>) -> BTreeSet<String> {
    list.into_iter().flatten().cloned().collect()
}

fn mount_options(spec: &Spec) -> Vec<BTreeSet<String>> {
    mounts(spec)
        .map(|mount| sorted(mount.options().as_ref()))
        .collect()
}

fn has_readonly_root(spec: &Spec) -> bool {
    let root = spec.root().as_ref();
    root.and_then(oci_spec::runtime::Root::readonly)
        .unwrap_or(false)
}

/// Which kinds of namespaces are not the host's; whose they are does not matter.
fn namespaces(spec: &Spec) -> BTreeSet<String> {
    let linux = spec.linux().as_ref();
    let all = linux.and_then(|linux| linux.namespaces().as_ref());
    all.into_iter()
        .flatten()
        .map(|namespace| namespace.typ().to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(change: impl FnOnce(&mut Value)) -> Spec {
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "cwd": "/", "args": ["a"], "user": {"uid": 7, "gid": 7},
                "capabilities": {"bounding": ["CAP_CHOWN"]}, "noNewPrivileges": true,
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/srv/a", "options": ["bind", "ro"]},
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}],
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
                "maskedPaths": ["/proc/kcore", "/proc/keys"],
            },
        });
        change(&mut config);
        serde_json::from_value(config).expect("a configuration")
    }

    fn misfit(fit: Fit, change: impl FnOnce(&mut Value)) -> Option<&'static str> {
        fit.misfit(&spec(|_| ()), &spec(change))
    }

    #[test]
    fn what_differs_between_two_containers_of_one_kind_fits() {
        let other = |config: &mut Value| {
            config["mounts"][1]["source"] = "/srv/b".into();
            config["mounts"][1]["options"] = json!(["ro", "bind"]);
            config["linux"]["namespaces"][1]["path"] = "/run/netns/b".into();
            config["linux"]["maskedPaths"] = json!(["/proc/keys", "/proc/kcore"]);
            config["process"]["args"] = json!(["b"]);
            let generation = json!({"destination": INSIDE, "type": "bind", "source": "/s"});
            config["mounts"]
                .as_array_mut()
                .expect("a list")
                .push(generation);
        };
        assert_eq!(misfit(Fit::Rights, other), None);
    }

    #[test]
    fn other_mounts_never_fit() {
        for fit in [Fit::Mounts, Fit::Rights] {
            let one_less = |config: &mut Value| {
                config["mounts"].as_array_mut().expect("a list").pop();
            };
            assert_eq!(misfit(fit, one_less), Some("mounts"));
        }
    }

    #[test]
    fn no_right_comes_with_the_template_that_the_configuration_does_not_give() {
        let changes: [(&str, &str, Value); 8] = [
            ("mounts", "/mounts/1/options", json!(["bind"])),
            ("root.readonly", "/root/readonly", json!(true)),
            ("process.user", "/process/user/uid", json!(8)),
            ("process.capabilities", "/process/capabilities", json!({})),
            (
                "process.noNewPrivileges",
                "/process/noNewPrivileges",
                json!(false),
            ),
            (
                "linux.namespaces",
                "/linux/namespaces",
                json!([{"type": "pid"}]),
            ),
            ("linux.seccomp", "/linux/seccomp", Value::Null),
            (
                "linux.maskedPaths",
                "/linux/maskedPaths",
                json!(["/proc/keys"]),
            ),
        ];
        for (field, place, value) in changes {
            let change = |config: &mut Value| {
                let (parent, key) = place.rsplit_once('/').expect("a path");
                let parent = config.pointer_mut(parent).expect("it is there");
                match key.parse::<usize>() {
                    Ok(index) => parent[index] = value.clone(),
                    Err(_) => parent[key] = value.clone(),
                }
            };
            assert_eq!(misfit(Fit::Rights, change), Some(field));
            assert_eq!(misfit(Fit::Mounts, change), None, "{field}");
        }
    }
}
