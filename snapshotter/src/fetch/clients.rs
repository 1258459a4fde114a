//! HTTP clients, one per TLS policy, each with its own pool of warm connections.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Proxy, Url};

use super::dns::HostsThenDns;
use super::failure::Failure;
use super::hosts::{TlsPolicy, is_loopback};
use super::registry::RegistryConfig;

/// Idle connections are kept this long: a container's later reads find them warm.
const IDLE: Duration = Duration::from_secs(90);
/// HTTP/2 windows that do not throttle one range request on a long fat link.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// By way of what a host is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Route {
    /// This machine: by way of nothing, whatever the environment says.
    Direct,
    /// As `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// By this HTTP proxy.
    Proxy(String),
}

impl Route {
    /// The way to `url` unless a proxy is configured for it.
    pub(super) fn of(url: &Url) -> Self {
        if is_loopback(url.host_str().unwrap_or_default()) {
            Self::Direct
        } else {
            Self::Environment
        }
    }
}

/// Which addresses a connection may lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Guard {
    /// Any.
    Off,
    /// Public ones: a public registry must not make us ask the private network for it.
    Public,
}

/// Makes and keeps the clients.
pub(super) struct Clients {
    dns: HostsThenDns,
    allow_private: bool,
    connect_timeout: Duration,
    extra_ca: Option<PathBuf>,
    made: Mutex<BTreeMap<Key, Client>>,
}

/// Whether TLS is spoken at all, its policy, and where to.
type Key = (bool, TlsPolicy, Guard, Route);

/// What a client cannot be made without.
pub(super) fn provide_crypto() {
    // Only the first call in a process does something; any provider that is there will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client for what is no registry, such as a collector of traces.
pub fn plain_client(timeout: Duration) -> reqwest::Result<Client> {
    provide_crypto();
    Client::builder().timeout(timeout).build()
}

impl Clients {
    pub(super) fn new(config: &RegistryConfig) -> Self {
        provide_crypto();
        Self {
            dns: HostsThenDns::default(),
            allow_private: config.allow_private_redirects,
            connect_timeout: config.connect_timeout,
            extra_ca: config.ca.clone(),
            made: Mutex::default(),
        }
    }

    /// Refuses a `target` on the private network that a server at `base`, which is not there
    /// itself, leads to; else how connections to it are to be guarded.
    pub(super) async fn guard(&self, base: &Url, target: &Url) -> Result<Guard, Failure> {
        if self.allow_private || base.host_str() == target.host_str() {
            return Ok(Guard::Off);
        }
        let is_private =
            |addresses: &[IpAddr]| addresses.iter().any(|address| !is_public(*address));
        match self.addresses(base).await {
            Some(addresses) if is_private(&addresses) => return Ok(Guard::Off),
            _ => {}
        }
        match self.addresses(target).await {
            Some(addresses) if is_private(&addresses) => Err(Failure::Protocol(format!(
                "it leads to the private address of {} (registry.allow_private_redirects would \
                 allow that)",
                target.host_str().unwrap_or_default()
            ))),
            // What cannot be looked up here may be known to a proxy.
            _ => Ok(Guard::Public),
        }
    }

    async fn addresses(&self, url: &Url) -> Option<Vec<IpAddr>> {
        let host = url.host_str()?.trim_matches(['[', ']']);
        match host.parse() {
            Ok(address) => Some(vec![address]),
            Err(_) => self.dns.look_up(host).await.ok(),
        }
    }

    /// The client for `url` under `policy`.
    pub(super) fn get(
        &self,
        url: &Url,
        policy: &TlsPolicy,
        guard: Guard,
        route: Route,
    ) -> Result<Client, Failure> {
        let secure = url.scheme() == "https";
        let policy = if secure {
            policy.clone()
        } else {
            TlsPolicy::default()
        };
        let key = (secure, policy, guard, route);
        let mut made = self.made.lock().expect("no panic while a client is made");
        if let Some(client) = made.get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(&key)?;
        made.insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, (secure, policy, guard, route): &Key) -> Result<Client, Failure> {
        let mut builder = Client::builder()
            .user_agent(concat!("xebec-snapshotter/", env!("CARGO_PKG_VERSION")))
            // A blob's bytes count as they are, not as something that unpacks to them.
            .default_headers(
                [(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]
                    .into_iter()
                    .collect(),
            )
            // Redirects are followed by hand: they drop the credentials and are remembered.
            .redirect(Policy::none())
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            .dns_resolver(match guard {
                Guard::Off => self.dns.clone(),
                Guard::Public => self.dns.public_only(),
            })
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW);
        builder = match route {
            Route::Direct => builder.no_proxy(),
            Route::Environment => builder,
            Route::Proxy(url) => builder.proxy(Proxy::all(url)?),
        };
        if !secure {
            // Plain HTTP must work on a host without any certificate authority installed.
            return builder.tls_certs_only([]).build().map_err(Failure::from);
        }
        if policy.skip_verify {
            builder = builder
                .tls_certs_only([])
                .tls_danger_accept_invalid_certs(true);
        } else {
            let mut authorities = Vec::new();
            for file in policy.ca.iter().chain(&self.extra_ca) {
                authorities.extend(read_bundle(file)?);
            }
            builder = builder.tls_certs_merge(authorities);
        }
        if let Some((certificate, key)) = &policy.client {
            builder = builder.identity(read_identity(certificate, key)?);
        }
        builder.build().map_err(Failure::from)
    }
}

/// Whether an address is one of the Internet's, as far as a node's own network is concerned.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || first == 0
                || first == 255
                || is_shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_multicast())
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(file).map_err(|error| Failure::Configuration(format!("{}: {error}", file.display())))
}

fn read_bundle(file: &Path) -> Result<Vec<Certificate>, Failure> {
    let unusable = |reason: &str| Failure::Configuration(format!("{}: {reason}", file.display()));
    let authorities =
        Certificate::from_pem_bundle(&read(file)?).map_err(|error| unusable(&error.to_string()))?;
    if authorities.is_empty() {
        return Err(unusable("no certificate in it"));
    }
    Ok(authorities)
}

fn read_identity(certificate: &Path, key: &Path) -> Result<Identity, Failure> {
    let mut pem = read(certificate)?;
    if certificate != key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    Identity::from_pem(&pem)
        .map_err(|error| Failure::Configuration(format!("{}: {error}", certificate.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Clients {
        Clients::new(&RegistryConfig::default())
    }

    fn get(clients: &Clients, url: &str, policy: &TlsPolicy) -> Result<Client, Failure> {
        let url = Url::parse(url).unwrap();
        clients.get(&url, policy, Guard::Off, Route::of(&url))
    }

    #[test]
    fn addresses_of_private_networks_are_told_from_public_ones() {
        for private in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_public_server_cannot_lead_to_a_private_address() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let guard = |clients: &Clients, base: &str, target: &str| {
            let (base, target) = (Url::parse(base).unwrap(), Url::parse(target).unwrap());
            runtime.block_on(clients.guard(&base, &target))
        };
        let clients = clients();
        for target in [
            "http://10.0.0.1/x",
            "http://[::1]:5000/",
            "http://localhost/",
        ] {
            let failure = guard(&clients, "https://192.0.2.1/v2/", target).unwrap_err();
            assert!(failure.to_string().contains("private"), "{failure}");
            assert!(!failure.is_transient() && !failure.is_outage());
            let within = guard(&clients, "http://127.0.0.1:5000/v2/", target);
            assert_eq!(within.unwrap(), Guard::Off);
        }
        let public = guard(&clients, "https://192.0.2.1/v2/", "https://192.0.2.2/x");
        assert_eq!(public.unwrap(), Guard::Public);
        let allowing = Clients::new(&RegistryConfig {
            allow_private_redirects: true,
            ..RegistryConfig::default()
        });
        let allowed = guard(&allowing, "https://192.0.2.1/v2/", "http://10.0.0.1/x");
        assert_eq!(allowed.unwrap(), Guard::Off);
    }

    #[test]
    fn equal_policies_share_a_client_and_plain_http_ignores_them() {
        let clients = clients();
        let skip = TlsPolicy {
            skip_verify: true,
            ..TlsPolicy::default()
        };
        get(&clients, "http://h/", &TlsPolicy::default()).unwrap();
        get(&clients, "http://h/", &skip).unwrap();
        get(&clients, "https://h/", &skip).unwrap();
        get(&clients, "https://i/", &skip).unwrap();
        assert_eq!(clients.made.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_certificate_file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        for file in [empty, dir.path().join("absent.pem")] {
            let policy = TlsPolicy {
                ca: vec![file.clone()],
                ..TlsPolicy::default()
            };
            let failure = get(&clients(), "https://h/", &policy).unwrap_err();
            assert!(
                failure.to_string().contains(file.to_str().unwrap()),
                "{failure}"
            );
        }
    }
}
