//! Where spans go: an address of OTLP over HTTP, from the options or from the environment variables
//! of the OpenTelemetry specification.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::error::{Error, Result};

const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Where a collector takes traces, below its address.
const PATH: &str = "/v1/traces";
/// Port of OTLP over HTTP.
const PORT: u16 = 4318;
/// What a collector may take for an answer if nothing else is set.
const PATIENCE: Duration = Duration::from_secs(10);

/// A collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(super) address: SocketAddr,
    /// First line and header fields of each request.
    pub(super) head: String,
    /// How long one request may take.
    pub(super) patience: Duration,
}

impl Endpoint {
    /// What the environment names; `None` if it names nothing or wants no traces.
    pub(crate) fn of_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Endpoint>> {
        let is = |name: &str, value: &str| {
            variable(name).is_some_and(|it| it.trim().eq_ignore_ascii_case(value))
        };
        if is(DISABLED, "true") || is(EXPORTER, "none") {
            return Ok(None);
        }
        let own = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let (name, url, below) = match (set(own), set(BASE)) {
            (Some(url), _) => (own, url, ""),
            (None, Some(url)) => (BASE, url, PATH),
            (None, None) => return Ok(None),
        };
        let either = |suffix: &str| {
            let own = format!("OTEL_EXPORTER_OTLP_TRACES_{suffix}");
            let common = format!("OTEL_EXPORTER_OTLP_{suffix}");
            [own, common]
                .into_iter()
                .find_map(|name| Some((set(&name)?, name)))
        };
        if let Some((protocol, name)) = either("PROTOCOL")
            && protocol.trim() != "http/protobuf"
        {
            let text = format!("{name}: {protocol:?}: only http/protobuf is spoken");
            return Err(Error::InvalidArgument(text));
        }
        let mut endpoint = Endpoint::parse(name, url.trim(), below)?;
        if let Some((value, name)) = either("TIMEOUT") {
            let millis = value
                .trim()
                .parse()
                .map_err(|error| Error::InvalidArgument(format!("{name}: {value:?}: {error}")))?;
            endpoint.patience = Duration::from_millis(millis);
        }
        if let Some((value, name)) = either("HEADERS") {
            endpoint.add_headers(&name, &value)?;
        }
        Ok(Some(endpoint))
    }

    /// The collector that an option names, such as `http://127.0.0.1:4318`.
    pub(crate) fn of_option(name: &str, url: &str) -> Result<Endpoint> {
        Endpoint::parse(name, url, PATH)
    }

    /// Names are not looked up: that can take long, and needs a thread.
    fn parse(name: &str, url: &str, below: &str) -> Result<Endpoint> {
        let wrong = |what: &str| Error::InvalidArgument(format!("{name}: {url:?}: {what}"));
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| wrong("it does not begin with http://"))?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) || url.contains(['?', '#']) {
            return Err(wrong("it is no plain URL"));
        }
        let address = address(host)
            .ok_or_else(|| wrong("the host is neither an IP address nor localhost"))?;
        let path = match (below, path) {
            ("", "") => "/".to_owned(),
            _ => format!("{}{below}", path.strip_suffix('/').unwrap_or(path)),
        };
        let version = env!("CARGO_PKG_VERSION");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             User-Agent: containerd-shim-xebec-v2/{version}\r\n\
             Content-Type: application/x-protobuf\r\n"
        );
        Ok(Endpoint {
            address,
            head,
            patience: PATIENCE,
        })
    }

    /// Adds header fields in the form `key=value,key=value`.
    fn add_headers(&mut self, name: &str, list: &str) -> Result<()> {
        for pair in list.split(',').filter(|pair| !pair.trim().is_empty()) {
            let field = pair.split_once('=').and_then(|(key, value)| {
                let key = key.trim();
                let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
                let is_key = !key.is_empty() && key.bytes().all(is_token);
                let value = decoded(value.trim())?;
                let is_value = value
                    .bytes()
                    .all(|byte| byte == b' ' || byte.is_ascii_graphic());
                (is_key && is_value).then(|| format!("{key}: {value}\r\n"))
            });
            // The value may be a secret.
            let field = field.ok_or_else(|| {
                Error::InvalidArgument(format!("{name}: not of the form key=value,key=value"))
            })?;
            self.head.push_str(&field);
        }
        Ok(())
    }
}

/// The address that `host`, with or without a port, stands for.
fn address(host: &str) -> Option<SocketAddr> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()?),
        _ => (host, PORT),
    };
    let bracketed = name.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let address = match bracketed {
        Some(address) => IpAddr::V6(address.parse().ok()?),
        None if name == "localhost" => Ipv4Addr::LOCALHOST.into(),
        None => IpAddr::V4(name.parse().ok()?),
    };
    Some(SocketAddr::new(address, port))
}

/// The text that is percent-encoded as `text`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Endpoint>> {
        Endpoint::of_environment(|name| {
            let found = variables.iter().find(|(key, _)| *key == name)?;
            Some(found.1.to_owned())
        })
    }

    #[test]
    fn the_environment_names_a_collector_as_opentelemetry_specifies() {
        assert_eq!(of(&[]).unwrap(), None);
        let base = (BASE, "http://localhost:4318/");
        assert_eq!(of(&[base, (DISABLED, "True")]).unwrap(), None);
        assert_eq!(of(&[base, (EXPORTER, "none")]).unwrap(), None);
        let endpoint = of(&[base]).unwrap().unwrap();
        assert_eq!(endpoint.address, "127.0.0.1:4318".parse().unwrap());
        let first = "POST /v1/traces HTTP/1.1\r\nHost: localhost:4318\r\n";
        assert!(endpoint.head.starts_with(first), "{}", endpoint.head);
        let own = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let endpoint = of(&[
            base,
            (own, "http://[::1]/x"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=y"),
        ]);
        let endpoint = endpoint.unwrap().unwrap();
        assert_eq!(endpoint.address, "[::1]:4318".parse().unwrap());
        assert!(endpoint.head.starts_with("POST /x HTTP/1.1\r\n"));
        assert!(endpoint.head.ends_with("\r\napi-key: a b\r\nx: y\r\n"));
        assert_eq!(endpoint.patience, Duration::from_millis(250));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_the_name_of_its_variable() {
        for (name, value) in [
            (BASE, "https://127.0.0.1"),
            (BASE, "http://collector:4318"),
            (BASE, "http://1.2.3.4:x"),
            (BASE, "http://1.2.3.4/a b"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%0d%0aHost: c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ] {
            let error = of(&[(name, value), (BASE, "http://127.0.0.1")]).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(&format!("{name}: ")), "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
