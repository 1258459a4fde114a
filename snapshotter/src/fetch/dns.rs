//! Name lookup without glibc: static binaries must not load its NSS modules.
//!
//! `/etc/hosts` is read first and anew for each lookup, as NSS does by default; then the servers of
//! `/etc/resolv.conf` are asked, whose changes are noticed, so a daemon started before the network
//! is configured finds it later.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::clients::is_public;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A resolver, and the modification time of the resolv.conf it was made from.
type Made = (SystemTime, Arc<TokioResolver>);

/// Looks names up for the HTTP client.
#[derive(Clone, Default)]
pub(super) struct HostsThenDns {
    resolver: Arc<Mutex<Option<Made>>>,
    /// Gives no other than public addresses, whatever a name was looked up as before.
    public_only: bool,
}

impl Resolve for HostsThenDns {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let mut addresses = this.look_up(name.as_str()).await?;
            if this.public_only && !is_proxy(name.as_str()) {
                addresses.retain(|address| is_public(*address));
                if addresses.is_empty() {
                    return Err("it has none but private addresses".into());
                }
            }
            let addresses = addresses
                .into_iter()
                .map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

impl HostsThenDns {
    /// The same for connections that must not lead to a private network.
    pub(super) fn public_only(&self) -> Self {
        Self {
            public_only: true,
            ..self.clone()
        }
    }

    /// Every address of a name.
    pub(super) async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, BoxError> {
        let mut addresses = in_hosts_file(name);
        if addresses.is_empty() {
            let resolver = self.resolver()?;
            addresses.extend(resolver.lookup_ip(name).await?.iter());
        }
        Ok(addresses)
    }

    fn resolver(&self) -> Result<Arc<TokioResolver>, BoxError> {
        let changed = fs::metadata(RESOLV_CONF)
            .and_then(|metadata| metadata.modified())
            .map_err(|error| format!("{RESOLV_CONF}: {error}"))?;
        let mut current = self
            .resolver
            .lock()
            .expect("no panic while the resolver is replaced");
        if let Some((made_from, resolver)) = &*current
            && *made_from == changed
        {
            return Ok(Arc::clone(resolver));
        }
        let mut builder = TokioResolver::builder_tokio()?;
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let resolver = Arc::new(builder.build()?);
        *current = Some((changed, Arc::clone(&resolver)));
        Ok(resolver)
    }
}

/// Whether the environment names `name` as a proxy, which may well be private.
fn is_proxy(name: &str) -> bool {
    ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"]
        .into_iter()
        .flat_map(|variable| [variable.to_owned(), variable.to_ascii_lowercase()])
        .filter_map(|variable| std::env::var(variable).ok())
        .any(|proxy| {
            let rest = proxy.split("://").last().unwrap_or_default();
            let host = rest.rsplit('@').next().unwrap_or_default();
            host.split([':', '/']).next() == Some(name)
        })
}

/// Addresses of `name` in the hosts file; `localhost` needs no entry.
fn in_hosts_file(name: &str) -> Vec<IpAddr> {
    let text = fs::read_to_string(Path::new(HOSTS)).unwrap_or_default();
    let addresses = parse_hosts(&text, name);
    if addresses.is_empty() && name.eq_ignore_ascii_case("localhost") {
        return vec![[127, 0, 0, 1].into()];
    }
    addresses
}

/// Addresses of `name` in the text of a hosts(5) file, in their order.
fn parse_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split('#').next()?.split_ascii_whitespace();
            let address = fields.next()?.parse().ok()?;
            fields
                .any(|alias| alias.eq_ignore_ascii_case(name))
                .then_some(address)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_files_are_read_as_hosts_5_says() {
        let text = "127.0.0.1 localhost\n# 10.9.9.9 registry\n\
                    10.0.0.1\tregistry.example registry # registry2\n\
                    fd00::1 Registry.Example\nnonsense registry\n10.0.0.2";
        let v4: IpAddr = [10, 0, 0, 1].into();
        let v6: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(parse_hosts(text, "registry"), [v4]);
        assert_eq!(parse_hosts(text, "REGISTRY.example."), [v4, v6]);
        assert_eq!(parse_hosts(text, "registry2"), [] as [IpAddr; 0]);
        assert_eq!(parse_hosts(text, "unknown"), [] as [IpAddr; 0]);
    }
}
