//! The configuration files of a host: text only, nothing is read or written here.

use serde::{Deserialize, Serialize};

use super::Service;

/// What kinds of hosts differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flavour {
    /// No cgroup controllers, and negative OOM scores are refused.
    Native,
    /// All controllers, systemd.
    Vm,
}

/// Password file of the private registry.
pub(super) const PASSWORDS: &str = "/etc/xebec/htpasswd";
/// Certificate authority of the registries with TLS.
pub(super) const CA: &str = "/etc/xebec/ca.pem";
/// Certificate of the registries with TLS.
pub(super) const CERTIFICATE: &str = "/etc/xebec/registry.pem";
/// Its key.
pub(super) const KEY: &str = "/etc/xebec/registry.key";
/// Image of CRI's sandboxes; part of the corpus, pushed by whoever uses CRI.
pub const PAUSE_IMAGE: &str = "127.0.0.1:5000/pause:v1";

/// All configuration files of a host: (path, content).
pub fn files(flavour: Flavour) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = [
        ("/etc/hosts", hosts()),
        ("/etc/resolv.conf", String::new()),
        ("/etc/containerd/config.toml", containerd(flavour)),
        ("/etc/cni/net.d/10-xebec.conflist", NETWORK.to_owned()),
        ("/etc/xebec/snapshotter.toml", snapshotter()),
    ]
    .map(|(path, content)| (path.to_owned(), content))
    .into();
    for service in [
        Service::Registry,
        Service::TlsRegistry,
        Service::PrivateRegistry,
    ] {
        files.push((registry_file(service), registry(service)));
    }
    for (host, text) in [
        (Service::TLS_REGISTRY, tls_host(Service::TLS_REGISTRY)),
        (
            Service::PRIVATE_REGISTRY,
            tls_host(Service::PRIVATE_REGISTRY),
        ),
    ] {
        files.push((format!("/etc/containerd/certs.d/{host}/hosts.toml"), text));
    }
    files
}

/// Configuration file of one of the registries.
pub(super) fn registry_file(service: Service) -> String {
    format!("/etc/xebec/{}.yml", service.name())
}

fn hosts() -> String {
    let private = Service::PRIVATE_REGISTRY
        .split(':')
        .next()
        .unwrap_or_default();
    format!(
        "127.0.0.1 localhost xebec-host {} {private}\n",
        Service::TLS_REGISTRY
    )
}

fn tls_host(host: &str) -> String {
    format!("server = \"https://{host}\"\n[host.\"https://{host}\"]\nca = \"{CA}\"\n")
}

fn snapshotter() -> String {
    format!(
        "address = \"{}\"\n[registry]\nhosts_dir = \"/etc/containerd/certs.d\"\nca = \"{CA}\"\n",
        Service::SNAPSHOTTER_SOCKET
    )
}

/// The registries serve one directory: what is pushed to one can be pulled from all.
fn registry(service: Service) -> String {
    let (address, tls, auth) = match service {
        Service::TlsRegistry => ("127.0.0.1:443", true, false),
        Service::PrivateRegistry => ("127.0.0.1:5443", true, true),
        _ => (Service::REGISTRY, false, false),
    };
    let tls = if tls {
        format!("  tls:\n    certificate: {CERTIFICATE}\n    key: {KEY}\n")
    } else {
        String::new()
    };
    let auth = if auth {
        format!("auth:\n  htpasswd:\n    realm: xebec\n    path: {PASSWORDS}\n")
    } else {
        String::new()
    };
    format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    \
         rootdirectory: /var/lib/registry\n  delete:\n    enabled: true\n\
         http:\n  addr: {address}\n  secret: xebec\n{tls}{auth}"
    )
}

const NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "xebec", "plugins": [
  {"type": "bridge", "bridge": "xebec0", "isGateway": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
"#;

/// containerd 2.1 (configuration version 3) with our snapshotter and three runtime handlers.
fn containerd(flavour: Flavour) -> String {
    let native = flavour == Flavour::Native;
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let unpack: String = ["xebec", "overlayfs"]
        .map(|snapshotter| {
            format!(
                "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
                 platform = 'linux/{architecture}'\nsnapshotter = '{snapshotter}'\ndiffer = 'walking'\n"
            )
        })
        .concat();
    let runtimes: String = [
        ("xebec", "io.containerd.xebec.v2", None),
        ("xebec-as-runc", "io.containerd.runc.v2", Some("/usr/local/bin/containerd-shim-xebec-v2")),
        ("runc", "io.containerd.runc.v2", None),
    ]
    .map(|(name, kind, path)| {
        let table = format!("plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}");
        let path = path.map_or(String::new(), |path| format!("runtime_path = '{path}'\n"));
        // The machine has systemd for its first process.
        let systemd = !native;
        let pods = if native {
            "pod_annotations = ['dev.xebec.clone.*']\n"
        } else {
            ""
        };
        format!(
            "[{table}]\nruntime_type = '{kind}'\n{path}{pods}[{table}.options]\nSystemdCgroup = {systemd}\n"
        )
    })
    .concat();
    let socket = Service::SNAPSHOTTER_SOCKET;
    format!(
        "version = 3

[proxy_plugins.xebec]
type = 'snapshot'
address = '{socket}'
capabilities = ['remap-ids']
[proxy_plugins.xebec.exports]
root = '/var/lib/xebec-snapshotter'
enable_remote_snapshot_annotations = 'true'

[plugins.'io.containerd.cri.v1.images']
snapshotter = 'xebec'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{PAUSE_IMAGE}'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/etc/containerd/certs.d'

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = {native}
disable_apparmor = {native}
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/lib/cni']
conf_dir = '/etc/cni/net.d'
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'xebec'
{runtimes}
[plugins.'io.containerd.transfer.v1.local']
config_path = '/etc/containerd/certs.d'
{unpack}"
    )
}

/// What docs/containerd.md tells users of containerd 1.6 and 1.7 to write, and what only this kind of
/// host needs beside it.
pub(crate) fn old_containerd() -> String {
    const PAGE: &str = include_str!("../../../../docs/containerd.md");
    let documented = PAGE
        .split("\n## containerd 1.6 and 1.7\n")
        .nth(1)
        .and_then(|section| section.split("```toml\n").nth(1))
        .and_then(|rest| rest.split("```").next())
        .unwrap_or_default();
    let cri = "plugins.'io.containerd.grpc.v1.cri'";
    format!(
        "{documented}
[{cri}]
sandbox_image = '{PAUSE_IMAGE}'
restrict_oom_score_adj = true
disable_apparmor = true
[{cri}.cni]
bin_dir = '/usr/lib/cni'
conf_dir = '/etc/cni/net.d'
[{cri}.registry]
config_path = '/etc/containerd/certs.d'
[{cri}.containerd.runtimes.xebec-as-runc]
runtime_type = 'io.containerd.runc.v2'
runtime_path = '/usr/local/bin/containerd-shim-xebec-v2'
[{cri}.containerd.runtimes.xebec-by-path]
runtime_type = '/usr/local/bin/containerd-shim-xebec-v2'
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_differs_from_the_native_host_in_its_cgroups() {
        let (native, vm) = (containerd(Flavour::Native), containerd(Flavour::Vm));
        assert!(native.contains("restrict_oom_score_adj = true"));
        assert!(native.contains("SystemdCgroup = false"));
        assert!(vm.contains("restrict_oom_score_adj = false"));
        assert_eq!(vm.matches("SystemdCgroup = true").count(), 3);
    }

    #[test]
    fn an_old_containerd_is_configured_as_documented() {
        let text = old_containerd();
        assert!(text.starts_with("version = 2\n"), "{text}");
        assert!(text.contains("disable_snapshot_annotations = false"));
    }

    #[test]
    fn only_the_private_registry_asks_for_a_password_and_only_the_plain_one_has_no_tls() {
        let asks = |service| registry(service).contains("htpasswd");
        let tls = |service| registry(service).contains("tls:");
        assert!(asks(Service::PrivateRegistry) && !asks(Service::TlsRegistry));
        assert!(tls(Service::PrivateRegistry) && tls(Service::TlsRegistry));
        assert!(!asks(Service::Registry) && !tls(Service::Registry));
    }

    #[test]
    fn names_of_registries_resolve_to_loopback() {
        assert!(hosts().contains("registry.xebec.test private.xebec.test\n"));
    }
}
