//! The OCI configuration of a sandbox: a process that only waits, in the namespaces of its pod.

use std::path::Path;

use serde_json::{Value, json};
use xebec_proto::sandbox::{IdMapping, NamespaceMode, NamespaceOption, PodSandboxConfig};

/// Where the waiting program is in its root file system.
pub(super) const PROGRAM: &str = "/pause";
/// Neither root nor anybody's.
const NOBODY: u32 = 65535;

/// What a configuration is made of.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// Id of the sandbox.
    pub(super) id: &'a str,
    /// The pod as CRI describes it.
    pub(super) pod: &'a PodSandboxConfig,
    /// The pod's network namespace; none with that of the host.
    pub(super) network: &'a str,
    /// The program that waits, on the host.
    pub(super) program: &'a Path,
    /// Whether systemd makes the cgroups.
    pub(super) systemd_cgroup: bool,
}

/// The namespaces that a pod asks for.
pub(super) fn namespaces_of(pod: &PodSandboxConfig) -> NamespaceOption {
    let linux = pod.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    security.namespace_options.unwrap_or_default()
}

/// The configuration as `config.json` has it.
pub(super) fn config(facts: &Facts<'_>) -> Value {
    let asked = namespaces_of(facts.pod);
    let of_host = |mode: i32| mode == NamespaceMode::Node as i32;
    let users = asked.userns_options.filter(|it| !of_host(it.mode));
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    if !of_host(asked.pid) {
        namespaces.push(json!({"type": "pid"}));
    }
    if !of_host(asked.ipc) {
        namespaces.push(json!({"type": "ipc"}));
    }
    if !of_host(asked.network) {
        namespaces.push(json!({"type": "uts"}));
        namespaces.push(if facts.network.is_empty() {
            json!({"type": "network"})
        } else {
            json!({"type": "network", "path": facts.network})
        });
    }
    let mut linux = json!({});
    if let Some(users) = &users {
        namespaces.push(json!({"type": "user"}));
        linux["uidMappings"] = mappings(&users.uids);
        linux["gidMappings"] = mappings(&users.gids);
    }
    linux["namespaces"] = json!(namespaces);
    if let Some(pod) = &facts.pod.linux {
        linux["sysctl"] = json!(pod.sysctls);
        if !pod.cgroup_parent.is_empty() {
            linux["cgroupsPath"] = json!(cgroup(facts, &pod.cgroup_parent));
        }
    }
    let mut config = json!({
        "ociVersion": "1.2.0",
        "process": {
            "cwd": "/",
            "args": [PROGRAM, "pause"],
            "user": {"uid": NOBODY, "gid": NOBODY},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": PROGRAM, "type": "bind", "source": facts.program,
             "options": ["bind", "ro", "nosuid", "nodev"]},
        ],
        "linux": linux,
    });
    if !of_host(asked.network) && !facts.pod.hostname.is_empty() {
        config["hostname"] = json!(facts.pod.hostname);
    }
    config
}

fn mappings(list: &[IdMapping]) -> Value {
    let mapping = |it: &IdMapping| json!({"containerID": it.container_id, "hostID": it.host_id, "size": it.length});
    list.iter().map(mapping).collect()
}

/// As containerd names the cgroups of its containers.
fn cgroup(facts: &Facts<'_>, parent: &str) -> String {
    if facts.systemd_cgroup {
        let slice = Path::new(parent).file_name().unwrap_or_default();
        format!("{}:cri-containerd:{}", slice.display(), facts.id)
    } else {
        format!("{}/{}", parent.trim_end_matches('/'), facts.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xebec_proto::sandbox::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, UserNamespace};

    fn pod(namespaces: NamespaceOption) -> PodSandboxConfig {
        PodSandboxConfig {
            hostname: "web".into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/pods/p1.slice".into(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                }),
                sysctls: [("net.core.somaxconn".to_owned(), "9".to_owned())].into(),
            }),
            ..PodSandboxConfig::default()
        }
    }

    fn config_of(pod: &PodSandboxConfig, systemd_cgroup: bool) -> Value {
        config(&Facts {
            id: "s",
            pod,
            network: "/run/netns/n",
            program: Path::new("/bin/shim"),
            systemd_cgroup,
        })
    }

    fn kinds(config: &Value) -> Vec<&str> {
        let list = config["linux"]["namespaces"].as_array().unwrap();
        list.iter().map(|it| it["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_pod_has_namespaces_of_its_own_a_name_and_a_cgroup() {
        let config = config_of(&pod(NamespaceOption::default()), false);
        let expected = ["mount", "cgroup", "pid", "ipc", "uts", "network"];
        assert_eq!(kinds(&config), expected);
        assert_eq!(config["linux"]["namespaces"][5]["path"], "/run/netns/n");
        assert_eq!(config["hostname"], "web");
        assert_eq!(config["linux"]["sysctl"]["net.core.somaxconn"], "9");
        assert_eq!(config["linux"]["cgroupsPath"], "/pods/p1.slice/s");
        let config = config_of(&pod(NamespaceOption::default()), true);
        let path = &config["linux"]["cgroupsPath"];
        assert_eq!(path, "p1.slice:cri-containerd:s");
    }

    #[test]
    fn namespaces_of_the_host_are_left_out_with_the_name() {
        let node = NamespaceMode::Node.into();
        let config = config_of(
            &pod(NamespaceOption {
                network: node,
                pid: node,
                ipc: node,
                userns_options: None,
            }),
            false,
        );
        assert_eq!(kinds(&config), ["mount", "cgroup"]);
        assert!(config.get("hostname").is_none());
    }

    #[test]
    fn a_pod_with_users_of_its_own_says_which() {
        let ids = vec![IdMapping {
            host_id: 200_000,
            container_id: 0,
            length: 65536,
        }];
        let users = UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: ids.clone(),
            gids: ids,
        };
        let config = config_of(
            &pod(NamespaceOption {
                userns_options: Some(users),
                ..NamespaceOption::default()
            }),
            false,
        );
        assert!(kinds(&config).contains(&"user"));
        let expected = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
        assert_eq!(config["linux"]["uidMappings"], expected);
    }
}
