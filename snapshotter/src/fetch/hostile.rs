//! Tests against servers that do what a real registry cannot be made to do: each connection is
//! answered from a script of raw HTTP, and what was asked is recorded.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::ProxyRule;
use crate::digest::Digest;
use crate::discover::Manifests;
use crate::error::Error;

use super::manifest::{Descriptor, OCI_INDEX, OCI_MANIFEST};
use super::{BlobSource, ImageRef, Registry, RegistryConfig, RemoteBlob};

/// A server that gives one scripted answer a connection; the last one again and again.
pub(super) struct Server {
    pub(super) host: String,
    pub(super) requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(super) fn new(answers: Vec<String>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), answers)
    }

    pub(super) fn on(listener: TcpListener, answers: Vec<String>) -> Self {
        let host = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for (at, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut head = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
                let mut request = head.to_ascii_lowercase();
                let length = request
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.map_or(0, |digits| digits.parse().unwrap());
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                request.push_str(&String::from_utf8_lossy(&body));
                seen.lock().unwrap().push(request);
                // A client that hangs up first is part of some tests.
                let _ = stream.write_all(answers[at.min(answers.len() - 1)].as_bytes());
            }
        });
        Self { host, requests }
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn image(&self) -> ImageRef {
        ImageRef::parse(&format!("{}/app", self.host)).unwrap()
    }

    pub(super) fn registry(&self) -> Registry {
        self.registry_by(Path::new("/nonexistent"))
    }

    /// A client that knows user `u` with password `p`.
    fn registry_with_password(&self, dir: &Path) -> Registry {
        let config = format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, self.host);
        std::fs::write(dir.join("config.json"), config).unwrap();
        self.registry_by(dir)
    }

    fn registry_by(&self, docker_config: &Path) -> Registry {
        Registry::new(self.config(docker_config)).unwrap()
    }

    pub(super) fn config(&self, docker_config: &Path) -> RegistryConfig {
        RegistryConfig {
            plain_http: vec![self.host.clone()],
            docker_config: Some(docker_config.to_owned()),
            deadline: Duration::from_millis(1500),
            stall_timeout: Duration::from_millis(400),
            ..RegistryConfig::default()
        }
    }

    pub(super) fn blob(&self, registry: &Registry) -> Arc<RemoteBlob> {
        registry.blob(&self.image(), &Digest::of(b"0123456789"), 10)
    }
}

pub(super) fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )
}

/// The answer to a request for bytes 2 to 5 of the blob.
pub(super) fn partial() -> String {
    answer(
        "206 Partial Content",
        "content-range: bytes 2-5/10\r\n",
        "2345",
    )
}

pub(super) fn read(answers: Vec<String>) -> (Result<Vec<u8>, Error>, Vec<String>) {
    let server = Server::new(answers);
    let result = server.blob(&server.registry()).read_range(2, 4);
    (result, server.requests())
}

#[test]
fn a_range_is_asked_for_and_delivered() {
    let (data, requests) = read(vec![partial()]);
    assert_eq!(data.unwrap(), b"2345");
    assert_eq!(requests.len(), 1);
    let digest = Digest::of(b"0123456789");
    assert!(
        requests[0].starts_with(&format!("get /v2/app/blobs/{digest} ")),
        "{requests:?}"
    );
    assert!(requests[0].contains("range: bytes=2-5\r\n"), "{requests:?}");
}

#[test]
fn a_server_that_ignores_range_is_made_use_of_but_not_for_ever() {
    let (data, requests) = read(vec![answer("200 OK", "", "0123456789")]);
    assert_eq!(data.unwrap(), b"2345");
    assert_eq!(requests.len(), 1);
    let (data, _) = read(vec![answer("200 OK", "", "012345678")]);
    let error = data.unwrap_err().to_string();
    assert!(error.contains("9 bytes"), "{error}");

    let far = Server::new(vec![
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_owned(),
    ]);
    let registry = far.registry();
    let blob = registry.blob(&far.image(), &Digest::of(b"x"), 1 << 30);
    let error = blob.read_range(1 << 29, 4).unwrap_err().to_string();
    assert!(error.contains("ignores range"), "{error}");
    assert!(error.contains(&Digest::of(b"x").to_string()), "{error}");
    assert_eq!(far.requests().len(), 1, "not asked again");
}

#[test]
fn blobs_come_by_way_of_a_proxy_and_without_it_when_it_is_down() {
    let proxy = Server::new(vec![partial()]);
    let server = Server::new(vec![partial()]);
    for (address, through) in [(proxy.host.clone(), true), ("127.0.0.1:9".into(), false)] {
        let registry = Registry::new(RegistryConfig {
            proxies: vec![ProxyRule {
                url: format!("http://{address}"),
                hosts: vec![server.host.clone()],
                blobs_only: true,
            }],
            ..server.config(Path::new("/nonexistent"))
        })
        .unwrap();
        let blob = server.blob(&registry);
        assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
        assert_eq!(server.requests().is_empty(), through);
    }
    let asked = proxy.requests();
    let absolute = format!("get http://{}/v2/app/blobs/", server.host);
    assert!(asked[0].starts_with(&absolute), "{asked:?}");
}

#[test]
fn a_passing_failure_is_retried_from_where_it_stopped() {
    // Promises four bytes and hangs up after two.
    let cut = partial().replace("2345", "23");
    let broken = answer("503 Service Unavailable", "", "");
    let rest = answer(
        "206 Partial Content",
        "content-range: bytes 4-5/10\r\n",
        "45",
    );
    let (data, requests) = read(vec![broken, cut, rest]);
    assert_eq!(data.unwrap(), b"2345");
    assert_eq!(requests.len(), 3);
    assert!(requests[2].contains("range: bytes=4-5\r\n"), "{requests:?}");
}

#[test]
fn a_client_error_is_not_retried() {
    for (status, expected) in [("404 Not Found", "not found"), ("410 Gone", "410")] {
        let (data, requests) = read(vec![answer(status, "", "")]);
        let error = data.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(requests.len(), 1, "{status}");
    }
}

#[test]
fn wrong_bytes_never_come_through() {
    let long = answer(
        "206 Partial Content",
        "content-range: bytes 2-5/10\r\n",
        "23456789",
    );
    let shifted = answer(
        "206 Partial Content",
        "content-range: bytes 3-6/10\r\n",
        "3456",
    );
    let other = answer(
        "206 Partial Content",
        "content-range: bytes 2-5/11\r\n",
        "2345",
    );
    let bare = answer("206 Partial Content", "", "2345");
    for script in [long, shifted, other, bare] {
        let (data, _) = read(vec![script.clone()]);
        assert!(
            matches!(data, Err(Error::Registry { .. })),
            "{script}: {data:?}"
        );
    }
}

#[test]
fn a_silent_server_costs_no_more_than_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = Server {
        host,
        requests: Arc::default(),
    };
    let begin = Instant::now();
    let error = server
        .blob(&server.registry())
        .read_range(2, 4)
        .unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
    assert!(error.to_string().contains(&server.host), "{error}");
}

#[test]
fn a_401_is_answered_once_and_a_loop_ends() {
    let refused = answer(
        "401 Unauthorized",
        "www-authenticate: Basic realm=\"x\"\r\n",
        "",
    );
    let (data, requests) = read(vec![refused]);
    assert!(matches!(data, Err(Error::Unauthorized { .. })), "{data:?}");
    assert_eq!(
        requests.len(),
        1,
        "without credentials there is nothing to answer with"
    );

    let dir = tempfile::tempdir().unwrap();
    let refused = answer(
        "401 Unauthorized",
        "www-authenticate: Basic realm=\"x\"\r\n",
        "",
    );
    let server = Server::new(vec![refused.clone(), partial(), refused]);
    let registry = server.registry_with_password(dir.path());
    let blob = server.blob(&registry);
    assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    assert!(matches!(
        blob.read_range(2, 4),
        Err(Error::Unauthorized { .. })
    ));
    let requests = server.requests();
    let with_password = |request: &&String| request.contains("authorization: basic dtpw");
    assert_eq!(requests.len(), 4);
    assert_eq!(
        requests.iter().filter(with_password).count(),
        3,
        "{requests:?}"
    );
}

#[test]
fn a_token_is_fetched_for_the_scope_and_used() {
    let token = answer("200 OK", "", r#"{"token":"t0ken","expires_in":300}"#);
    let auth = Server::new(vec![token]);
    let challenge = format!(
        "www-authenticate: Bearer realm=\"http://{}/token\",service=\"reg\"\r\n",
        auth.host
    );
    let server = Server::new(vec![answer("401 Unauthorized", &challenge, ""), partial()]);
    let registry = server.registry();
    let blob = server.blob(&registry);
    assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    assert_eq!(auth.requests().len(), 1, "the token is kept");
    assert!(
        auth.requests()[0].starts_with("get /token?service=reg&scope=repository%3aapp%3apull "),
        "{:?}",
        auth.requests()
    );
    assert!(server.requests()[2].contains("authorization: bearer t0ken"));
}

#[test]
fn a_redirect_is_followed_without_credentials_and_remembered_until_it_fails() {
    let expired = answer("403 Forbidden", "", "expired");
    let cdn = Server::new(vec![partial(), partial(), expired, partial()]);
    let location = format!("location: http://{}/signed?x=1\r\n", cdn.host);
    let refused = answer(
        "401 Unauthorized",
        "www-authenticate: Basic realm=\"x\"\r\n",
        "",
    );
    let server = Server::new(vec![
        refused,
        answer("307 Temporary Redirect", &location, ""),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let registry = server.registry_with_password(dir.path());
    let blob = server.blob(&registry);
    for _ in 0..3 {
        assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    }
    let requests = server.requests();
    assert_eq!(
        requests.len(),
        3,
        "asked again only when the target had expired"
    );
    assert!(requests[1].contains("authorization") && requests[2].contains("authorization"));
    assert_eq!(cdn.requests().len(), 4);
    for request in cdn.requests() {
        assert!(request.starts_with("get /signed?x=1 "), "{request}");
        assert!(request.contains("range: bytes=2-5\r\n"), "{request}");
        assert!(!request.contains("authorization"), "{request}");
    }
}

#[test]
fn endless_redirects_end() {
    let (data, requests) = read(vec![answer("302 Found", "location: /v2/app/again\r\n", "")]);
    assert!(data.unwrap_err().to_string().contains("redirects"));
    assert!(requests.len() < 10, "{}", requests.len());
}

#[test]
fn a_broken_pull_is_resumed_where_it_broke_and_checked_at_its_end() {
    let cut = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 10\r\n\r\n0123".to_owned();
    let rest = answer(
        "206 Partial Content",
        "content-range: bytes 4-9/10\r\n",
        "456789",
    );
    let wrong = answer(
        "206 Partial Content",
        "content-range: bytes 4-9/10\r\n",
        "45678x",
    );
    for (rest, good) in [(rest, true), (wrong, false)] {
        let server = Server::new(vec![cut.clone(), rest]);
        let descriptor = Descriptor {
            media_type: String::new(),
            digest: Digest::of(b"0123456789"),
            size: 10,
            annotations: [].into(),
            platform: None,
            other: [].into(),
        };
        let registry = server.registry();
        let mut data = Vec::new();
        let outcome = registry
            .pull(&server.image(), &descriptor)
            .read_to_end(&mut data);
        assert!(server.requests()[1].contains("range: bytes=4-9\r\n"));
        if good {
            outcome.unwrap();
            assert_eq!(data, b"0123456789");
        } else {
            let error = outcome.unwrap_err().downcast::<Error>().unwrap();
            assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
        }
    }
}

#[test]
fn an_upload_that_is_too_large_for_one_request_goes_in_parts() {
    let begun = answer("202 Accepted", "location: /up/1\r\n", "");
    let large = answer("413 Payload Too Large", "", "");
    let again = answer("202 Accepted", "location: /up/2?a=b\r\n", "");
    let part = answer("202 Accepted", "location: /up/3?a=c\r\n", "");
    let created = answer("201 Created", "", "");
    let server = Server::new(vec![begun, large, again, part, created]);
    let registry = server.registry();
    registry.push_bytes(&server.image(), b"0123456789").unwrap();
    let requests = server.requests();
    let digest = Digest::of(b"0123456789").to_string().replace(':', "%3a");
    let expected = [
        ("post /v2/app/blobs/uploads/ ".to_owned(), ""),
        (format!("put /up/1?digest={digest} "), "0123456789"),
        ("post /v2/app/blobs/uploads/ ".to_owned(), ""),
        ("patch /up/2?a=b ".to_owned(), "0123456789"),
        (format!("put /up/3?a=c&digest={digest} "), ""),
    ];
    assert_eq!(requests.len(), expected.len(), "{requests:?}");
    for (request, (start, body)) in requests.iter().zip(expected) {
        assert!(request.starts_with(&start), "{request}");
        assert!(request.ends_with(&format!("\r\n\r\n{body}")), "{request}");
    }
    assert!(
        requests[3].contains("content-range: 0-9\r\n"),
        "{}",
        requests[3]
    );
}

#[test]
fn a_mount_that_the_registry_declines_is_cancelled() {
    let declined = answer("202 Accepted", "location: /up/1\r\n", "");
    let server = Server::new(vec![declined, answer("204 No Content", "", "")]);
    let registry = server.registry();
    let from = ImageRef::parse(&format!("{}/base", server.host)).unwrap();
    let digest = Digest::of(b"x");
    assert!(
        !registry
            .mount_blob(&server.image(), &digest, &from)
            .unwrap()
    );
    let requests = server.requests();
    assert!(requests[0].contains("from=base"), "{requests:?}");
    assert!(requests[1].starts_with("delete /up/1 "), "{requests:?}");
    let elsewhere = ImageRef::parse("other.example/base").unwrap();
    assert!(
        !registry
            .mount_blob(&server.image(), &digest, &elsewhere)
            .unwrap()
    );
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn many_threads_read_one_blob_at_once() {
    let server = Server::new(vec![partial()]);
    let registry = server.registry();
    let blob = server.blob(&registry);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(blob.read_range(2, 4).unwrap(), b"2345"));
        }
    });
    assert_eq!(server.requests().len(), 16);
}

/// A list of referrers of two kinds, as a registry that does not filter gives it.
fn referrers() -> String {
    let one = |kind: &str| {
        let digest = Digest::of(kind.as_bytes());
        format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":1,"artifactType":"{kind}"}}"#
        )
    };
    let (wanted, other) = (one("application/a+json"), one("application/b"));
    format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{other},{wanted}]}}"#)
}

#[test]
fn referrers_are_listed_by_the_api_page_by_page_and_filtered() {
    let list = referrers();
    let server = Server::new(vec![
        answer(
            "200 OK",
            "link: </v2/app/referrers/x?last=1>; rel=\"next\"\r\n",
            &list,
        ),
        answer("200 OK", "", &list),
    ]);
    let subject = Digest::of(b"manifest");
    let found = server
        .registry()
        .referrers(&server.image(), &subject, "application/a+json")
        .unwrap();
    assert_eq!(found.len(), 2, "one a page: {found:?}");
    assert!(
        found
            .iter()
            .all(|one| one.digest == Digest::of(b"application/a+json"))
    );
    let requests = server.requests();
    let first = format!("get /v2/app/referrers/{subject}?artifacttype=application/a%2bjson ");
    assert!(requests[0].starts_with(&first), "{requests:?}");
    assert!(
        requests[1].starts_with("get /v2/app/referrers/x?last=1 "),
        "{requests:?}"
    );
}

#[test]
fn without_the_api_referrers_are_found_by_their_tag() {
    let missing = answer("404 Not Found", "", "");
    let list = answer(
        "200 OK",
        &format!("content-type: {OCI_INDEX}\r\n"),
        &referrers(),
    );
    let subject = Digest::of(b"manifest");
    let ask = |server: &Server| {
        server
            .registry()
            .referrers(&server.image(), &subject, "application/b")
            .unwrap()
    };
    let server = Server::new(vec![missing.clone(), list]);
    assert_eq!(ask(&server).len(), 1);
    let tag = format!("get /v2/app/manifests/sha256-{} ", subject.hex());
    assert!(
        server.requests()[1].starts_with(&tag),
        "{:?}",
        server.requests()
    );
    assert!(ask(&Server::new(vec![missing])).is_empty());
}

#[test]
fn a_listing_that_is_no_index_or_never_ends_is_given_up() {
    let subject = Digest::of(b"manifest");
    let endless = answer(
        "200 OK",
        "link: </v2/app/referrers/x>; rel=next\r\n",
        &referrers(),
    );
    let server = Server::new(vec![endless]);
    let found = server
        .registry()
        .referrers(&server.image(), &subject, "application/b");
    assert!(found.unwrap().len() <= 16);
    for body in ["[]", "{", r#"{"schemaVersion":2,"layers":[]}"#] {
        let server = Server::new(vec![answer("200 OK", "", body)]);
        let refused = server
            .registry()
            .referrers(&server.image(), &subject, "application/b");
        assert!(refused.is_err(), "{body}");
    }
}
