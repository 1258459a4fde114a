//! The configuration that `xebec spec` writes: a shell in a read-only rootfs, as runc's.

/// A `config.json` to begin with; with `rootless`, one for a user who is not root.
pub fn spec_template(rootless: bool) -> String {
    let parts = if rootless {
        rootless_parts()
    } else {
        root_parts()
    };
    parts
        .into_iter()
        .fold(TEMPLATE.to_owned(), |text, (name, part)| {
            text.replace(name, &part)
        })
}

fn root_parts() -> [(&'static str, String); 4] {
    [
        ("@DEVPTS_GROUP@", ",\n\t\t\t\t\"gid=5\"".to_owned()),
        ("@SYS@", SYS_MOUNT.to_owned()),
        ("@LIMITS@", RESOURCES.to_owned()),
        (
            "@NAMESPACES@",
            namespaces(&["pid", "network", "ipc", "uts", "mount", "cgroup"]),
        ),
    ]
}

/// A user can map one ID, cannot give terminals away and, in the host's network namespace,
/// cannot mount a sysfs.
fn rootless_parts() -> [(&'static str, String); 4] {
    let mapping = |kind: &str, host: u32| {
        format!(
            "\t\t\"{kind}\": [\n\t\t\t{{\n\t\t\t\t\"containerID\": 0,\n\t\t\t\t\"hostID\": {host},\
             \n\t\t\t\t\"size\": 1\n\t\t\t}}\n\t\t],\n"
        )
    };
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    [
        ("@DEVPTS_GROUP@", String::new()),
        ("@SYS@", SYS_BIND.to_owned()),
        (
            "@LIMITS@",
            mapping("uidMappings", uid) + &mapping("gidMappings", gid),
        ),
        (
            "@NAMESPACES@",
            namespaces(&["pid", "ipc", "uts", "mount", "cgroup", "user"]),
        ),
    ]
}

fn namespaces(kinds: &[&str]) -> String {
    let entries: Vec<_> = kinds
        .iter()
        .map(|kind| format!("\t\t\t{{\n\t\t\t\t\"type\": \"{kind}\"\n\t\t\t}}"))
        .collect();
    entries.join(",\n")
}

const SYS_MOUNT: &str = r#"			"type": "sysfs",
			"source": "sysfs",
			"options": ["#;

const SYS_BIND: &str = r#"			"type": "none",
			"source": "/sys",
			"options": [
				"rbind","#;

const RESOURCES: &str = r#"		"resources": {
			"devices": [
				{
					"allow": false,
					"access": "rwm"
				}
			]
		},
"#;

const TEMPLATE: &str = include_str!("template.json");

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceType, Spec};

    use super::*;

    fn parsed(rootless: bool) -> Spec {
        serde_json::from_str(&spec_template(rootless)).expect("a valid configuration")
    }

    fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
        let linux = spec.linux().as_ref().expect("linux");
        linux
            .namespaces()
            .iter()
            .flatten()
            .any(|namespace| namespace.typ() == kind)
    }

    #[test]
    fn the_template_denies_devices_and_makes_six_namespaces() {
        let spec = parsed(false);
        let linux = spec.linux().as_ref().expect("linux");
        assert_eq!(linux.namespaces().as_ref().map(Vec::len), Some(6));
        let devices = linux
            .resources()
            .as_ref()
            .and_then(|r| r.devices().as_ref());
        assert!(devices.is_some_and(|devices| devices.len() == 1 && !devices[0].allow()));
        assert!(has_namespace(&spec, LinuxNamespaceType::Network));
        assert!(!spec_template(false).contains('@'));
    }

    #[test]
    fn the_rootless_template_maps_the_caller_and_keeps_the_network() {
        let spec = parsed(true);
        let linux = spec.linux().as_ref().expect("linux");
        assert!(has_namespace(&spec, LinuxNamespaceType::User));
        assert!(!has_namespace(&spec, LinuxNamespaceType::Network));
        assert!(linux.resources().is_none());
        let uid = linux.uid_mappings().as_ref().expect("a mapping")[0];
        assert_eq!((uid.container_id(), uid.size()), (0, 1));
        assert_eq!(uid.host_id(), rustix::process::geteuid().as_raw());
        assert!(!spec_template(true).contains('@'));
    }
}
