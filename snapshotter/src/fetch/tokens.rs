//! Tests of tokens and pull secrets: how often they are asked for, and what is done with them.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::hostile::{Server, answer, partial};
use super::{BlobSource, ImageRef, Login, Passed, Registry, RegistryConfig};

fn token(seconds: u64) -> String {
    let body = format!(r#"{{"token":"t0ken","expires_in":{seconds}}}"#);
    answer("200 OK", "", &body)
}

fn refused(auth: &Server) -> String {
    let realm = format!(
        "www-authenticate: Bearer realm=\"http://{}/token\",service=\"reg\"\r\n",
        auth.host
    );
    answer("401 Unauthorized", &realm, "")
}

#[test]
fn a_token_is_renewed_before_the_registry_refuses_it() {
    let auth = Server::new(vec![token(1)]);
    let server = Server::new(vec![refused(&auth), partial()]);
    let registry = server.registry();
    let blob = server.blob(&registry);
    assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    assert_eq!((server.requests().len(), auth.requests().len()), (2, 1));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    assert_eq!(auth.requests().len(), 2);
    assert_eq!(server.requests().len(), 3, "no request was refused");
    assert!(server.requests()[2].contains("authorization: bearer t0ken"));
}

#[test]
fn those_who_are_refused_at_the_same_time_get_one_token() {
    let auth = Server::new(vec![token(300)]);
    let server = Server::new(
        std::iter::repeat_n(refused(&auth), 8)
            .chain([partial()])
            .collect(),
    );
    let registry = server.registry();
    let blob = server.blob(&registry);
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| blob.read_range(2, 4));
        }
    });
    assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let asked = auth.requests().len();
    assert!(asked <= 2, "{asked} tokens for one scope");
}

#[test]
fn what_a_kubelet_has_passed_by_opens_the_registry_until_it_is_refused() {
    let challenge = "www-authenticate: Basic realm=\"x\"\r\n";
    let refused = answer("401 Unauthorized", challenge, "");
    let server = Server::new(vec![
        refused.clone(),
        partial(),
        refused.clone(),
        refused.clone(),
        refused,
    ]);
    let dir = tempfile::tempdir().unwrap();
    let passed = std::sync::Arc::new(Passed::open(dir.path().join("logins.json")));
    let login = Login {
        username: "u".to_owned(),
        password: "p".to_owned(),
        ..Login::default()
    };
    let image = ImageRef::parse(&format!("{}/app:v1", server.host)).unwrap();
    passed.remember(&image, login).unwrap();
    let registry = Registry::new(RegistryConfig {
        passed: Some(passed),
        ..server.config(Path::new("/nonexistent"))
    })
    .unwrap();
    let blob = server.blob(&registry);
    assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    for _ in 0..2 {
        blob.read_range(2, 4).unwrap_err();
    }
    let requests = server.requests();
    let with: Vec<_> = requests
        .iter()
        .map(|request| request.contains("authorization: basic dtpw"))
        .collect();
    assert_eq!(with, [false, true, true, true, false]);
}
