//! Where a registry is really reached: containerd's `hosts.toml` directories and the defaults.
//!
//! See containerd's docs/hosts.md. For registry `HOST:PORT` the first of `HOST_PORT_/`,
//! `HOST:PORT/` and `_default/` below the configured directory decides.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use crate::config::ProxyRule;

use super::clients::Route;
use super::failure::Failure;

/// One place that answers for a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// API root with a trailing slash (`https://registry-1.docker.io/v2/`).
    pub(super) base: Url,
    /// May resolve tags.
    pub(super) resolve: bool,
    /// May serve manifests by digest and blobs.
    pub(super) pull: bool,
    /// May be pushed to.
    pub(super) push: bool,
    /// A mirror is told which registry it stands in for.
    pub(super) is_mirror: bool,
    /// How its TLS is checked.
    pub(super) tls: TlsPolicy,
    /// Sent with every request.
    pub(super) headers: Vec<(String, String)>,
    /// The HTTP proxy by way of which it is reached, if it is not the environment's.
    pub(super) proxy: Option<Url>,
    /// It is asked for nothing but blobs.
    pub(super) blobs_only: bool,
}

/// TLS settings of one endpoint; equal policies share one HTTP client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TlsPolicy {
    /// Accept any certificate.
    pub(super) skip_verify: bool,
    /// PEM files of certificate authorities trusted besides the system's.
    pub(super) ca: Vec<PathBuf>,
    /// PEM files of the client certificate and its key (the same file when both are in one).
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

/// What is done at an endpoint, by containerd's capability names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capability {
    Resolve,
    /// Manifests by digest, sizes of blobs.
    Pull,
    /// The bytes of blobs.
    Blob,
    Push,
}

impl Endpoint {
    /// An endpoint at `SCHEME://HOST/v2/` that may do everything.
    pub(super) fn new(scheme: &str, host: &str) -> Result<Self, Failure> {
        let base = Url::parse(&format!("{scheme}://{host}/v2/"))
            .map_err(|error| Failure::Configuration(format!("registry host {host}: {error}")))?;
        Ok(Self {
            base,
            resolve: true,
            pull: true,
            push: true,
            is_mirror: false,
            tls: TlsPolicy::default(),
            headers: Vec::new(),
            proxy: None,
            blobs_only: false,
        })
    }

    /// Whether it may be used for `capability`.
    pub(super) fn can(&self, capability: Capability) -> bool {
        match capability {
            Capability::Resolve => self.resolve && !self.blobs_only,
            Capability::Pull => self.pull && !self.blobs_only,
            Capability::Blob => self.pull,
            Capability::Push => self.push && !self.blobs_only,
        }
    }

    /// Host and port, as errors name it.
    pub(super) fn host(&self) -> String {
        host_and_port(&self.base)
    }
}

impl Endpoint {
    /// Host, port and proxy: what is in order or out of order by itself.
    pub(super) fn label(&self) -> String {
        match &self.proxy {
            None => self.host(),
            Some(proxy) => format!("{} by {}", self.host(), host_and_port(proxy)),
        }
    }

    /// How `url` is reached when this endpoint asks for it or leads to it.
    pub(super) fn route(&self, url: &Url) -> Route {
        match &self.proxy {
            None => Route::of(url),
            Some(proxy) => Route::Proxy(proxy.to_string()),
        }
    }
}

/// Adds to the endpoints that a proxy is configured for the way by that proxy: it is tried first,
/// and when it is out of order things go on without it.
pub(super) fn with_proxies(
    endpoints: Vec<Endpoint>,
    rules: &[ProxyRule],
) -> Result<Vec<Endpoint>, Failure> {
    let mut all = Vec::new();
    for endpoint in endpoints {
        let host = endpoint.host();
        let matches = |rule: &&ProxyRule| rule.hosts.iter().any(|one| one == "*" || *one == host);
        if let Some(rule) = rules.iter().find(matches) {
            let proxy = Url::parse(&rule.url).map_err(|error| {
                Failure::Configuration(format!("registry.proxy {}: {error}", rule.url))
            })?;
            all.push(Endpoint {
                proxy: Some(proxy),
                blobs_only: rule.blobs_only,
                ..endpoint.clone()
            });
        }
        all.push(endpoint);
    }
    Ok(all)
}

/// As hosts are called.
pub(super) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether `host` (with or without port) is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name.ends_with(".localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The endpoints that hosts.toml names for `host`, or none when no file does.
pub(super) fn from_directory(dir: &Path, host: &str) -> Result<Option<Vec<Endpoint>>, Failure> {
    for name in [directory_name(host), host.to_owned(), "_default".to_owned()] {
        let dir = dir.join(name);
        let file = dir.join("hosts.toml");
        match fs::read_to_string(&file) {
            Ok(text) => {
                return parse(&text, &dir, host).map(Some).map_err(|reason| {
                    Failure::Configuration(format!("{}: {reason}", file.display()))
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Failure::Configuration(format!(
                    "{}: {error}",
                    file.display()
                )));
            }
        }
    }
    Ok(None)
}

/// containerd's spelling of `host:port` as a directory name.
fn directory_name(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((name, port)) => format!("{name}_{port}_"),
        None => host.to_owned(),
    }
}

#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, toml::Spanned<HostSection>>,
    #[serde(flatten)]
    top: HostSection,
}

#[derive(Deserialize, Default)]
struct HostSection {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<ClientCertificate>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    override_path: bool,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

/// `client = "cert.pem"`, `["cert.pem"]` or `[["cert.pem", "key.pem"]]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum ClientCertificate {
    One(String),
    Many(Vec<OneOrMany>),
}

/// The endpoints of one hosts.toml in `dir`: mirrors in the order of the file, then the server.
fn parse(text: &str, dir: &Path, host: &str) -> Result<Vec<Endpoint>, String> {
    let file: HostsFile = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut sections: Vec<_> = file.host.into_iter().collect();
    sections.sort_by_key(|(_, section)| section.span().start);
    let mut endpoints = sections
        .into_iter()
        .map(|(url, section)| {
            let mut endpoint = section.into_inner().endpoint(&url, dir)?;
            endpoint.is_mirror = true;
            Ok(endpoint)
        })
        .collect::<Result<Vec<_>, String>>()?;
    let server = file.server.unwrap_or_else(|| default_url(host));
    endpoints.push(file.top.endpoint(&server, dir)?);
    Ok(endpoints)
}

/// Where `host` is reached when nothing is configured.
pub(super) fn default_url(host: &str) -> String {
    match host {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        _ => format!("https://{host}"),
    }
}

impl HostSection {
    fn endpoint(self, url: &str, dir: &Path) -> Result<Endpoint, String> {
        let base = api_root(url, self.override_path)?;
        let (mut resolve, mut pull, mut push) = (true, true, true);
        if let Some(names) = &self.capabilities {
            let has = |name: &str| names.iter().any(|given| given == name);
            if let Some(unknown) = names
                .iter()
                .find(|name| !matches!(name.as_str(), "pull" | "resolve" | "push"))
            {
                return Err(format!("{url}: unknown capability {unknown:?}"));
            }
            (resolve, pull, push) = (has("resolve"), has("pull"), has("push"));
        }
        let absolute = |name: &String| dir.join(name);
        let ca = self.ca.map(OneOrMany::into_vec).unwrap_or_default();
        let headers = self
            .header
            .into_iter()
            .flat_map(|(name, values)| {
                values
                    .into_vec()
                    .into_iter()
                    .map(move |value| (name.clone(), value))
            })
            .collect();
        Ok(Endpoint {
            base,
            resolve,
            pull,
            push,
            is_mirror: false,
            tls: TlsPolicy {
                skip_verify: self.skip_verify.unwrap_or(false),
                ca: ca.iter().map(absolute).collect(),
                client: self.client.map(|client| client.files(dir)).transpose()?,
            },
            headers,
            proxy: None,
            blobs_only: false,
        })
    }
}

impl ClientCertificate {
    fn files(self, dir: &Path) -> Result<(PathBuf, PathBuf), String> {
        let names = match self {
            Self::One(name) => vec![name],
            Self::Many(mut pairs) if pairs.len() == 1 => pairs.remove(0).into_vec(),
            Self::Many(_) => return Err("exactly one client certificate is supported".into()),
        };
        match names.as_slice() {
            [both] => Ok((dir.join(both), dir.join(both))),
            [certificate, key] if key.is_empty() => {
                Ok((dir.join(certificate), dir.join(certificate)))
            }
            [certificate, key] => Ok((dir.join(certificate), dir.join(key))),
            _ => Err("client must be a certificate and its key".into()),
        }
    }
}

/// `url` with `/v2/` at its end, unless the path is to be taken as it is.
fn api_root(url: &str, override_path: bool) -> Result<Url, String> {
    let with_scheme = if url.contains("://") {
        url.to_owned()
    } else {
        let scheme = if is_loopback(url) { "http" } else { "https" };
        format!("{scheme}://{url}")
    };
    let mut base = Url::parse(&with_scheme).map_err(|error| format!("{url}: {error}"))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(format!("{url}: not an http or https URL"));
    }
    let mut path = base.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    base.set_path(&format!("{path}/"));
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Endpoint> {
        parse(text, Path::new("/certs.d/h"), "h.example").unwrap()
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let endpoints = parsed(
            r#"
            server = "https://up.example"
            [host."https://z.example"]
              capabilities = ["pull", "resolve"]
            [host."http://a.example:5000/proxy"]
              capabilities = ["pull"]
              [host."http://a.example:5000/proxy".header]
                x-one = "1"
                x-many = ["2", "3"]
            [host."https://m.example/exact/v3"]
              override_path = true
            "#,
        );
        let bases: Vec<_> = endpoints.iter().map(|e| e.base.as_str()).collect();
        assert_eq!(
            bases,
            [
                "https://z.example/v2/",
                "http://a.example:5000/proxy/v2/",
                "https://m.example/exact/v3/",
                "https://up.example/v2/",
            ]
        );
        assert!(endpoints[0].can(Capability::Resolve) && !endpoints[0].can(Capability::Push));
        assert!(endpoints[1].can(Capability::Pull) && !endpoints[1].can(Capability::Resolve));
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            endpoints[1].headers,
            [
                header("x-many", "2"),
                header("x-many", "3"),
                header("x-one", "1")
            ]
        );
        assert!(endpoints[2].is_mirror && endpoints[2].can(Capability::Push));
        assert!(!endpoints[3].is_mirror);
    }

    #[test]
    fn tls_settings_apply_where_they_stand_and_paths_are_relative_to_the_file() {
        let endpoints = parsed(
            r#"
            ca = "/etc/ca.pem"
            [host."https://a.example"]
              skip_verify = true
              ca = ["one.pem", "two.pem"]
              client = [["c.pem", "k.pem"]]
            [host."https://b.example"]
              client = "both.pem"
            "#,
        );
        let at = |name: &str| PathBuf::from("/certs.d/h").join(name);
        assert_eq!(
            endpoints[0].tls,
            TlsPolicy {
                skip_verify: true,
                ca: vec![at("one.pem"), at("two.pem")],
                client: Some((at("c.pem"), at("k.pem"))),
            }
        );
        assert_eq!(
            endpoints[1].tls.client,
            Some((at("both.pem"), at("both.pem")))
        );
        assert_eq!(endpoints[2].tls.ca, [PathBuf::from("/etc/ca.pem")]);
        assert_eq!(endpoints[2].base.as_str(), "https://h.example/v2/");
    }

    #[test]
    fn unusable_files_are_refused_with_the_reason() {
        for (text, reason) in [
            ("server = 1", "server"),
            ("[host.\"ftp://x\"]", "not an http or https URL"),
            ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "fly"),
            (
                "[host.\"https://x\"]\nclient = [\"a\", \"b\"]",
                "client certificate",
            ),
        ] {
            let error = parse(text, Path::new("/d"), "h").unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_directory_of_the_port_wins_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        for (name, server) in [("h_5000_", "https://one"), ("_default", "https://two")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            let text = format!("server = \"{server}\"");
            fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        }
        let base = |host| {
            from_directory(dir.path(), host).unwrap().unwrap()[0]
                .base
                .to_string()
        };
        assert_eq!(base("h:5000"), "https://one/v2/");
        assert_eq!(base("other"), "https://two/v2/");
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(from_directory(empty.path(), "h").unwrap(), None);
    }

    #[test]
    fn a_proxy_is_tried_before_the_way_without_it_and_only_for_what_it_is_for() {
        let rule = |host: &str, blobs_only| ProxyRule {
            url: "http://127.0.0.1:4001".to_owned(),
            hosts: vec![host.to_owned()],
            blobs_only,
        };
        let endpoints = || vec![Endpoint::new("https", "h:5000").unwrap()];
        let through = with_proxies(endpoints(), &[rule("h:5000", true)]).unwrap();
        assert_eq!(through.len(), 2);
        assert_eq!(through[0].label(), "h:5000 by 127.0.0.1:4001");
        assert!(through[0].can(Capability::Blob) && !through[0].can(Capability::Pull));
        assert_eq!(through[1], endpoints()[0]);
        let everything = with_proxies(endpoints(), &[rule("*", false)]).unwrap();
        assert!(everything[0].can(Capability::Resolve));
        assert_eq!(
            with_proxies(endpoints(), &[rule("i", true)]).unwrap().len(),
            1
        );
        let mut bad = rule("*", true);
        bad.url = "no url".to_owned();
        assert!(with_proxies(endpoints(), &[bad]).is_err());
    }

    #[test]
    fn loopback_is_recognised_with_and_without_port() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example",
            "10.0.0.1:5000",
            "registry",
            "[::2]:5000",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
