//! HTTP clients, one per TLS policy, each with its own pool of warm connections.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Url};

use super::dns::HostsThenDns;
use super::failure::Failure;
use super::hosts::TlsPolicy;

/// Idle connections are kept this long: a container's later reads find them warm.
const IDLE: Duration = Duration::from_secs(90);
/// HTTP/2 windows that do not throttle one range request on a long fat link.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Makes and keeps the clients.
pub(super) struct Clients {
    dns: HostsThenDns,
    connect_timeout: Duration,
    extra_ca: Option<PathBuf>,
    /// Keyed by whether TLS is spoken at all, then by its policy.
    made: Mutex<BTreeMap<(bool, TlsPolicy), Client>>,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration, extra_ca: Option<PathBuf>) -> Self {
        // Only the first call in a process does something; any provider that is there will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            dns: HostsThenDns::default(),
            connect_timeout,
            extra_ca,
            made: Mutex::default(),
        }
    }

    /// The client for `url` under `policy`.
    pub(super) fn get(&self, url: &Url, policy: &TlsPolicy) -> Result<Client, Failure> {
        let secure = url.scheme() == "https";
        let policy = if secure {
            policy.clone()
        } else {
            TlsPolicy::default()
        };
        let key = (secure, policy);
        let mut made = self.made.lock().expect("no panic while a client is made");
        if let Some(client) = made.get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(secure, &key.1)?;
        made.insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, secure: bool, policy: &TlsPolicy) -> Result<Client, Failure> {
        let mut builder = Client::builder()
            .user_agent(concat!("xebec-snapshotter/", env!("CARGO_PKG_VERSION")))
            // Redirects are followed by hand: they drop the credentials and are remembered.
            .redirect(Policy::none())
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            .dns_resolver(self.dns.clone())
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW);
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
        Clients::new(Duration::from_secs(1), None)
    }

    #[test]
    fn equal_policies_share_a_client_and_plain_http_ignores_them() {
        let clients = clients();
        let plain = Url::parse("http://h/").unwrap();
        let skip = TlsPolicy {
            skip_verify: true,
            ..TlsPolicy::default()
        };
        clients.get(&plain, &TlsPolicy::default()).unwrap();
        clients.get(&plain, &skip).unwrap();
        clients
            .get(&Url::parse("https://h/").unwrap(), &skip)
            .unwrap();
        clients
            .get(&Url::parse("https://i/").unwrap(), &skip)
            .unwrap();
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
            let failure = clients()
                .get(&Url::parse("https://h/").unwrap(), &policy)
                .unwrap_err();
            assert!(
                failure.to_string().contains(file.to_str().unwrap()),
                "{failure}"
            );
        }
    }
}
