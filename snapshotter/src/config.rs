//! The configuration file, its defaults, and the command line's say over it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::mount::{BackgroundConfig, LazyConfig, Passthrough, Plain};
use crate::rootless::Places;
use crate::store::StoreSection;

/// Settings of the daemon; every key may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory that holds everything the daemon keeps.
    pub root: PathBuf,
    /// Unix socket on which containerd is served.
    pub address: PathBuf,
    /// How lazy layers are mounted.
    pub mount: MountMode,
    /// Removed layers are deleted after the answer, as containerd's `Cleanup` wants it.
    pub async_remove: bool,
    /// Least severe level that is logged, or a filter as `tracing` understands it.
    pub log: String,
    /// How lazy layers are read.
    pub lazy: LazySection,
    /// What of them is kept on this node.
    pub store: StoreSection,
    /// How mounted images are completed.
    pub fill: FillSection,
    /// How profiles travel between nodes.
    pub profile: ProfileSection,
    /// How indexes of ordinary layers travel between nodes.
    pub index: IndexSection,
    /// What others may know of the daemon's work.
    pub metrics: MetricsSection,
    /// Who is told of every start.
    pub traces: TracesSection,
    /// Registries, as [`crate::fetch`] understands them.
    pub registry: RegistrySection,
}

/// The `mount` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountMode {
    /// The best back end that this host offers.
    Auto,
    /// The kernel's EROFS on files that are filled when they are read.
    Kernel,
    /// One merged FUSE tree per chain of lazy layers.
    Fuse,
    /// No lazy mounts at all: every image is pulled and unpacked.
    Off,
}

/// The `[lazy]` table; its keys and defaults are those of [`LazyConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LazySection {
    /// Accept layers whose manifest does not state the digest of their table of contents.
    pub allow_unverified_toc: bool,
    /// Read ordinary images from their Nydus form, where the index around them lists one.
    pub nydus_alternative: bool,
    /// With `allow_unverified_toc`: what follows an image's tag in that of its Nydus form.
    pub nydus_tag_suffix: String,
    /// Threads that serve each mounted tree.
    pub fuse_threads: usize,
    /// Seconds that reads of the kernel back end wait for a daemon before they get EIO.
    pub keeper_deadline: u64,
    /// Which images have their complete large files read by the kernel: `auto`, `always`, `never`.
    pub passthrough: Passthrough,
    /// Most bytes of a layer's blob that are fetched ahead because of its landmark.
    pub prefetch_limit: u64,
    /// Layers in no lazy format: `stream` them into the store, or `off`: containerd pulls them.
    pub plain: Plain,
    /// Seconds for which a tree that the kernel serves stays mounted when nobody uses it any more.
    pub keep_unused: u64,
    /// Seconds from its first read for which a start is recorded, to be fetched ahead the next
    /// time; 0 to neither record nor follow what was recorded.
    pub profile_seconds: u64,
}

impl Default for LazySection {
    fn default() -> Self {
        let LazyConfig {
            allow_unverified_toc,
            nydus_alternative,
            nydus_tag_suffix,
            fuse_threads,
            passthrough,
            prefetch_limit,
            plain,
            keep_unused,
            profile_seconds,
            ..
        } = LazyConfig::default();
        Self {
            allow_unverified_toc,
            nydus_alternative,
            nydus_tag_suffix,
            fuse_threads,
            keeper_deadline: 60,
            passthrough,
            prefetch_limit,
            plain,
            keep_unused: keep_unused.as_secs(),
            profile_seconds,
        }
    }
}

impl From<&LazySection> for LazyConfig {
    fn from(section: &LazySection) -> Self {
        let LazySection {
            allow_unverified_toc,
            nydus_alternative,
            nydus_tag_suffix,
            fuse_threads,
            passthrough,
            prefetch_limit,
            plain,
            keep_unused,
            profile_seconds,
            keeper_deadline: _,
        } = section.clone();
        Self {
            allow_unverified_toc,
            nydus_alternative,
            nydus_tag_suffix,
            fuse_threads,
            passthrough,
            prefetch_limit,
            plain,
            keep_unused: Duration::from_secs(keep_unused),
            profile_seconds,
            ..Self::default()
        }
    }
}

/// The `[fill]` table; its defaults are those of [`BackgroundConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FillSection {
    /// Fetch the rest of mounted images when nothing else is to be fetched.
    pub background: bool,
    /// Seconds between the mount and the first request.
    pub delay: u64,
    /// Most packed MiB a second; 0 for no limit.
    pub rate: u64,
    /// Percent of the file system that stay free.
    pub keep_free: u8,
}

impl Default for FillSection {
    fn default() -> Self {
        let BackgroundConfig {
            enabled,
            delay,
            rate,
            keep_free,
        } = BackgroundConfig::default();
        Self {
            background: enabled,
            delay: delay.as_secs(),
            rate: rate >> 20,
            keep_free,
        }
    }
}

impl From<&FillSection> for BackgroundConfig {
    fn from(section: &FillSection) -> Self {
        Self {
            enabled: section.background,
            delay: Duration::from_secs(section.delay),
            rate: section.rate.saturating_mul(1 << 20),
            keep_free: section.keep_free,
        }
    }
}

/// The `[profile]` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProfileSection {
    /// Whether registries are asked for profiles of images that this node has none of.
    pub pull: ProfilePull,
    /// Put what this node records beside the image in its registry.
    pub push: bool,
}

impl Default for ProfileSection {
    fn default() -> Self {
        Self {
            pull: ProfilePull::Auto,
            push: false,
        }
    }
}

/// The `[index]` table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndexSection {
    /// Read ordinary layers by an index (ours or SOCI's) that refers to the image: whoever may push
    /// to its repository is then trusted to say which bytes belong to which file.
    pub trust_referrers: bool,
    /// Put the indexes that are made when an image is pulled for the first time beside it.
    pub push: bool,
}

/// The `profile.pull` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfilePull {
    /// When an image is pulled, beside everything else.
    Auto,
    /// Never, except by command.
    Off,
}

/// The `[metrics]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSection {
    /// Address and port at which Prometheus finds `/metrics`; none without it.
    pub address: Option<String>,
}

/// The `[traces]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesSection {
    /// URL of an OpenTelemetry collector that takes OTLP over HTTP, such as
    /// `http://127.0.0.1:4318`; nothing is told without it.
    pub endpoint: Option<String>,
}

/// The `[registry]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySection {
    /// Directory of `HOST/hosts.toml` files, as containerd's `config_path`.
    pub hosts_dir: Option<PathBuf>,
    /// PEM file of further certificate authorities to trust.
    pub ca: Option<PathBuf>,
    /// Hosts (`name:port`) that are spoken to without TLS; loopback needs no entry.
    pub plain_http: Vec<String>,
    /// Directory of the docker-style `config.json` with credentials.
    pub docker_config: Option<PathBuf>,
    /// kubelet's credential provider plugins, asked for what all others lack.
    pub credential_provider: Option<CredentialProviderSection>,
    /// The container runtime whose image service is passed through to a kubelet.
    pub cri: Option<CriSection>,
    /// The cluster whose pull secrets are used.
    pub kubernetes: Option<KubernetesSection>,
    /// Follow redirects of public registries to private addresses, too.
    pub allow_private_redirects: bool,
    /// HTTP proxies for some hosts, such as those of a peer-to-peer distribution.
    pub proxy: Vec<ProxyRule>,
    /// Seconds for which a host may fail before what needs it fails at once, until it answers.
    pub patience: u64,
    /// Most requests that are under way to one host at once; 0 for any number.
    pub requests_per_host: usize,
}

/// The `[registry.credential_provider]` table: kubelet's two flags.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialProviderSection {
    /// Its `CredentialProviderConfig` file (`--image-credential-provider-config`).
    pub config: PathBuf,
    /// Directory of the plugins (`--image-credential-provider-bin-dir`).
    pub bin_dir: PathBuf,
}

/// The `[registry.cri]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CriSection {
    /// Socket of the container runtime's CRI.
    pub socket: PathBuf,
}

/// The `[registry.kubernetes]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesSection {
    /// The kubeconfig of a user who may list and watch secrets.
    pub kubeconfig: PathBuf,
}

/// An entry of `[[registry.proxy]]`. When the proxy does not answer, things go on without it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyRule {
    /// URL of the proxy, which is spoken to as an HTTP proxy.
    pub url: String,
    /// Hosts (`name:port`, or `*` for all) that are reached by way of it.
    pub hosts: Vec<String>,
    /// Blobs alone go by way of it.
    #[serde(default = "yes")]
    pub blobs_only: bool,
}

fn yes() -> bool {
    true
}

impl Default for RegistrySection {
    fn default() -> Self {
        Self {
            hosts_dir: None,
            ca: None,
            plain_http: Vec::new(),
            docker_config: None,
            credential_provider: None,
            cri: None,
            kubernetes: None,
            allow_private_redirects: false,
            proxy: Vec::new(),
            patience: 5,
            requests_per_host: 32,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let places = Places::own();
        Self {
            root: places.root,
            address: places.address,
            mount: MountMode::Auto,
            async_remove: true,
            log: "info".into(),
            lazy: LazySection::default(),
            store: StoreSection::default(),
            fill: FillSection::default(),
            profile: ProfileSection::default(),
            index: IndexSection::default(),
            metrics: MetricsSection::default(),
            traces: TracesSection::default(),
            registry: RegistrySection::default(),
        }
    }
}

impl Config {
    /// Reads `path`, or the default file if there is one and none is named.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let (file, required) = match path {
            Some(path) => (path.to_owned(), true),
            None => (Places::own().config, false),
        };
        match std::fs::read_to_string(&file) {
            Ok(text) => Self::parse(&text, &file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
                Ok(Self::default())
            }
            Err(error) => Err(Error::io("read", &file)(error)),
        }
    }

    /// Parses the text of a file; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::Config {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/etc/x.toml"))
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn given_keys_replace_their_defaults_only() {
        let config = parse("root = \"/r\"\nmount = \"off\"\n[registry]\nca = \"/ca.pem\"").unwrap();
        assert_eq!(config.root, Path::new("/r"));
        assert_eq!(config.mount, MountMode::Off);
        assert_eq!(config.registry.ca.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(config.address, Config::default().address);
    }

    #[test]
    fn an_unknown_key_is_refused_by_file_and_name() {
        for (text, key) in [
            ("rooot = \"/r\"", "rooot"),
            ("[registry]\nmirror = 1", "mirror"),
            ("[lazy]\nfast = 1", "fast"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with("/etc/x.toml: ") && error.contains(key),
                "{error}"
            );
        }
    }

    #[test]
    fn a_mount_mode_that_does_not_exist_is_refused() {
        let error = parse("mount = \"nfs\"").unwrap_err().to_string();
        assert!(error.contains("nfs") && error.contains("auto"), "{error}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = Config::load(Some(Path::new("/does/not/exist.toml"))).unwrap_err();
        assert!(error.to_string().contains("/does/not/exist.toml"));
    }
}
