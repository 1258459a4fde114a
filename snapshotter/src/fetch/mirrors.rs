//! Tests of mirrors: who is asked first, and what one that sends wrong bytes comes to.

use std::fmt::Write as _;
use std::path::Path;

use crate::config::ProxyRule;
use crate::digest::Digest;
use crate::error::{Error, Result};

use super::hostile::{Server, answer, partial};
use super::{BlobSource, Registry, RegistryConfig, RemoteBlob, by_other_hosts};

/// The right answer, but for its bytes.
fn wrong() -> String {
    partial().replace("2345", "xxxx")
}

/// A client for which `mirrors` stand before `server`.
fn mirrored(server: &Server, mirrors: &[&Server], dir: &Path, more: &str) -> Registry {
    let host = server.host.replace(':', "_") + "_";
    let mut text = format!("server = \"http://{}\"\n", server.host);
    for mirror in mirrors {
        writeln!(text, "[host.\"http://{}\"]\n{more}", mirror.host).unwrap();
    }
    std::fs::create_dir(dir.join(&host)).unwrap();
    std::fs::write(dir.join(host).join("hosts.toml"), text).unwrap();
    Registry::new(RegistryConfig {
        hosts_dir: Some(dir.to_owned()),
        ..server.config(Path::new("/nonexistent"))
    })
    .unwrap()
}

/// Reads and verifies, as everyone does who reads blobs.
fn read(blob: &RemoteBlob) -> Result<Vec<u8>> {
    by_other_hosts(blob, (2, 4), || {
        let bytes = blob.read_range(2, 4)?;
        Digest::of(b"2345").verify(&bytes, "the range")?;
        Ok(bytes)
    })
}

#[test]
fn wrong_bytes_of_a_mirror_come_from_the_next_host_and_it_is_asked_last_from_then_on() {
    let (bad, good) = (Server::new(vec![wrong()]), Server::new(vec![partial()]));
    let server = Server::new(vec![partial()]);
    let dir = tempfile::tempdir().unwrap();
    let registry = mirrored(&server, &[&bad, &good], dir.path(), "");
    let blob = server.blob(&registry);
    for _ in 0..3 {
        assert_eq!(read(&blob).unwrap(), b"2345");
    }
    // Another image at the same hosts.
    let other = registry.blob(&server.image(), &Digest::of(b"other"), 10);
    assert_eq!(read(&other).unwrap(), b"2345");
    let asked = [&bad, &good, &server].map(|one| one.requests().len());
    assert_eq!(asked, [1, 4, 0]);
    let health = registry.health();
    let wrong = |host: &str| {
        let mut all = health.iter();
        all.find(|one| one.host == host).map(|one| one.wrong)
    };
    assert_eq!((wrong(&bad.host), wrong(&good.host)), (Some(1), Some(0)));
}

#[test]
fn an_image_whose_digests_are_wrong_puts_no_host_in_the_wrong() {
    let (mirror, server) = (Server::new(vec![wrong()]), Server::new(vec![wrong()]));
    let dir = tempfile::tempdir().unwrap();
    let registry = mirrored(&server, &[&mirror], dir.path(), "");
    let error = read(&server.blob(&registry)).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let asked = [&mirror, &server].map(|one| one.requests().len());
    assert_eq!(asked, [1, 1], "each once");
    assert!(registry.health().iter().all(|host| host.wrong == 0));
}

#[test]
fn the_only_host_is_not_asked_twice_for_wrong_bytes() {
    let server = Server::new(vec![wrong()]);
    let registry = server.registry();
    assert!(read(&server.blob(&registry)).is_err());
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_wrong_manifest_of_a_mirror_is_passed_over() {
    let manifest = r#"{"schemaVersion":2}"#;
    let image = |body: &str| answer("200 OK", "content-type: application/x\r\n", body);
    let mirror = Server::new(vec![image(r#"{"schemaVersion":3}"#)]);
    let server = Server::new(vec![image(manifest)]);
    let dir = tempfile::tempdir().unwrap();
    let registry = mirrored(&server, &[&mirror], dir.path(), "");
    let reference = server.image().at_digest(Digest::of(manifest.as_bytes()));
    let fetched = registry.manifest(&reference).unwrap();
    assert_eq!(fetched.bytes, manifest.as_bytes());
    assert_eq!(mirror.requests().len(), 1);
}

#[test]
fn a_peer_to_peer_agent_as_a_mirror_is_told_the_registry_as_it_wants_to_be() {
    let agent = Server::new(vec![partial()]);
    let server = Server::new(vec![partial()]);
    let dir = tempfile::tempdir().unwrap();
    let header = format!(
        "[host.\"http://{}\".header]\nX-Dragonfly-Registry = \"http://{}\"\n",
        agent.host, server.host
    );
    let registry = mirrored(&server, &[&agent], dir.path(), &header);
    assert_eq!(read(&server.blob(&registry)).unwrap(), b"2345");
    let asked = agent.requests();
    assert!(
        asked[0].contains(&format!("x-dragonfly-registry: http://{}\r\n", server.host)),
        "{asked:?}"
    );
    assert!(server.requests().is_empty());
}

#[test]
fn wrong_bytes_by_way_of_a_proxy_are_fetched_without_it() {
    let proxy = Server::new(vec![wrong()]);
    let server = Server::new(vec![partial()]);
    let registry = Registry::new(RegistryConfig {
        proxies: vec![ProxyRule {
            url: format!("http://{}", proxy.host),
            hosts: vec![server.host.clone()],
            blobs_only: true,
        }],
        ..server.config(Path::new("/nonexistent"))
    })
    .unwrap();
    assert_eq!(read(&server.blob(&registry)).unwrap(), b"2345");
    let blamed: Vec<_> = registry
        .health()
        .into_iter()
        .filter(|host| host.wrong > 0)
        .collect();
    assert_eq!(blamed.len(), 1);
    assert!(
        blamed[0].host.contains(&format!(" by {}", proxy.host)),
        "{blamed:?}"
    );
}
