//! What the containers of a sandbox share besides namespaces: names, resolver, `/dev/shm`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use xebec_proto::sandbox::{DnsConfig, NamespaceMode, PodSandboxConfig};
use xebec_proto::types::Mount;

use super::spec;
use crate::error::{Context, Error, Result};
use crate::mounts;

/// Name of the directory, in a sandbox's bundle, that is `/dev/shm` to its containers.
const SHM: &str = "shm";

/// Makes the root file system and the files of a sandbox in its bundle.
pub(super) fn make(bundle: &Path, pod: &PodSandboxConfig) -> Result<()> {
    for directory in ["rootfs/proc", "rootfs/dev"] {
        let path = bundle.join(directory);
        fs::create_dir_all(&path).context(|| format!("create {}", path.display()))?;
    }
    let program = format!("rootfs{}", spec::PROGRAM);
    let hostname = if pod.hostname.is_empty() {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    } else {
        pod.hostname.clone()
    };
    let resolver = match &pod.dns_config {
        Some(dns) => resolver(dns),
        None => host_file("/etc/resolv.conf")?,
    };
    for (name, content) in [
        (program.as_str(), String::new()),
        ("hostname", hostname + "\n"),
        ("hosts", host_file("/etc/hosts")?),
        ("resolv.conf", resolver),
    ] {
        let path = bundle.join(name);
        fs::write(&path, content).context(|| format!("write {}", path.display()))?;
    }
    let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"];
    let shm = Mount {
        r#type: "tmpfs".to_owned(),
        source: "shm".to_owned(),
        options: options.map(str::to_owned).into(),
        ..Mount::default()
    };
    mounts::mount_rootfs(&bundle.join(SHM), &[shm])
}

/// Unmounts what [`make`] has mounted.
pub(crate) fn unmount(bundle: &Path) -> Result<()> {
    mounts::unmount_rootfs(&bundle.join(SHM))
}

fn host_file(path: &str) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        result => result.context(|| format!("read {path}")),
    }
}

fn resolver(dns: &DnsConfig) -> String {
    let mut text = String::new();
    for (key, values) in [("search", &dns.searches), ("options", &dns.options)] {
        if !values.is_empty() {
            text.extend([key, " ", &values.join(" "), "\n"]);
        }
    }
    for server in &dns.servers {
        text.extend(["nameserver ", server, "\n"]);
    }
    text
}

/// Adds to a container's `config.json` what containerd leaves to a sandbox.
pub(super) fn give(sandbox: &Path, pod: &PodSandboxConfig, container: &Path) -> Result<()> {
    let path = container.join("config.json");
    let json = fs::read(&path).context(|| format!("read {}", path.display()))?;
    let wrong = |error| Error::InvalidArgument(format!("{}: {error}", path.display()));
    let mut config: Value = serde_json::from_slice(&json).map_err(wrong)?;
    let shares_ipc = spec::namespaces_of(pod).ipc != NamespaceMode::Node as i32;
    let shm = if shares_ipc {
        sandbox.join(SHM)
    } else {
        PathBuf::from("/dev/shm")
    };
    add(&mut config, sandbox, &shm);
    fs::write(&path, config.to_string()).context(|| format!("write {}", path.display()))
}

/// Mounts that the container has already are its own business, but for a `/dev/shm` of its own,
/// which every OCI default has.
fn add(config: &mut Value, sandbox: &Path, shm: &Path) {
    if !config["mounts"].is_array() {
        config["mounts"] = json!([]);
    }
    let Some(mounts) = config["mounts"].as_array_mut() else {
        return;
    };
    mounts.retain(|mount| mount["destination"] != "/dev/shm" || mount["type"] != "tmpfs");
    let files = ["hosts", "hostname", "resolv.conf"];
    let files = files.map(|name| (format!("/etc/{name}"), sandbox.join(name)));
    let shm = ("/dev/shm".to_owned(), shm.to_owned());
    for (destination, source) in files.into_iter().chain([shm]) {
        if mounts
            .iter()
            .any(|mount| mount["destination"] == destination.as_str())
        {
            continue;
        }
        mounts.push(
            json!({"destination": destination, "type": "bind", "source": source,
                           "options": ["rbind", "rprivate", "rw"]}),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_what_they_have_not_brought_along() {
        let mut config = json!({"mounts": [
            {"destination": "/dev", "type": "tmpfs"},
            {"destination": "/dev/shm", "type": "tmpfs"},
            {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"},
        ]});
        add(&mut config, Path::new("/s"), Path::new("/s/shm"));
        let told: Vec<_> = config["mounts"].as_array().unwrap()[1..]
            .iter()
            .map(|mount| (mount["destination"].clone(), mount["source"].clone()))
            .collect();
        let expected = [
            ("/etc/hosts", "/kubelet/hosts"),
            ("/etc/hostname", "/s/hostname"),
            ("/etc/resolv.conf", "/s/resolv.conf"),
            ("/dev/shm", "/s/shm"),
        ];
        assert_eq!(told, expected.map(|(to, from)| (json!(to), json!(from))));
    }

    #[test]
    fn a_resolver_has_its_servers_last() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.test".into(), "b.test".into()],
            options: vec!["ndots:5".into()],
        };
        let expected =
            "search a.test b.test\noptions ndots:5\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n";
        assert_eq!(resolver(&dns), expected);
    }
}
