//! Tests of outages: what a host that is down, busy or slow costs its readers.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::error::Error;

use super::hostile::{Server, answer, partial, read};
use super::{BlobSource, BreakerState, Registry, RegistryConfig};

/// A host that nobody listens at, and can be brought to life later.
struct Dead(Server);

impl Dead {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        Self(Server {
            host,
            requests: Arc::default(),
        })
    }

    fn rise(self, answers: Vec<String>) -> Server {
        let listener = TcpListener::bind(&self.0.host).unwrap();
        Server::on(listener, answers)
    }
}

#[test]
fn a_dead_registry_costs_the_first_readers_a_wait_and_the_later_ones_nothing() {
    let dead = Dead::new();
    let registry = Registry::new(RegistryConfig {
        patience: Duration::from_millis(600),
        deadline: Duration::from_mins(1),
        ..dead.0.config(Path::new("/nonexistent"))
    })
    .unwrap();
    let blob = dead.0.blob(&registry);
    let begun = Instant::now();
    let error = blob.read_range(2, 4).unwrap_err();
    let waited = begun.elapsed();
    assert!(matches!(error, Error::Shunned { .. }), "{error}");
    assert!(waited < Duration::from_secs(5), "{waited:?} of a minute");
    assert!(error.to_string().contains(&blob.digest().to_string()));

    let begun = Instant::now();
    let refused = (0..200).filter(|_| blob.read_range(2, 4).is_err()).count();
    assert_eq!(refused, 200);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_ne!(registry.health()[0].state, BreakerState::Closed);

    let server = dead.rise(vec![partial()]);
    let begun = Instant::now();
    while blob.read_range(2, 4).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "no recovery");
        thread::sleep(Duration::from_millis(50));
    }
    for _ in 0..10 {
        assert_eq!(blob.read_range(2, 4).unwrap(), b"2345");
    }
    assert_eq!(server.requests().len(), 11, "one probe, then everyone");
    assert_eq!(registry.health()[0].state, BreakerState::Closed);
}

#[test]
fn a_registry_that_is_restarted_costs_no_reader_an_error() {
    let dead = Dead::new();
    let registry = Registry::new(RegistryConfig {
        patience: Duration::from_secs(20),
        deadline: Duration::from_secs(30),
        ..dead.0.config(Path::new("/nonexistent"))
    })
    .unwrap();
    let blob = dead.0.blob(&registry);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| blob.read_range(2, 4)))
            .collect();
        thread::sleep(Duration::from_millis(500));
        let _server = dead.rise(vec![partial()]);
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), b"2345");
        }
    });
}

#[test]
fn a_busy_registry_is_asked_again_when_it_wants_and_not_at_all_if_that_is_too_late() {
    let busy = |seconds: &str| {
        let header = format!("retry-after: {seconds}\r\n");
        answer("429 Too Many Requests", &header, "")
    };
    let begun = Instant::now();
    let (data, requests) = read(vec![busy("1"), partial()]);
    assert_eq!((data.unwrap(), requests.len()), (b"2345".to_vec(), 2));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let begun = Instant::now();
    let (data, requests) = read(vec![busy("3600")]);
    assert!(matches!(data, Err(Error::Unavailable { .. })), "{data:?}");
    assert_eq!(requests.len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_server_that_trickles_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let range = lines.find_map(|line| {
                    let line = line.unwrap().to_ascii_lowercase();
                    line.strip_prefix("range: bytes=").map(str::to_owned)
                });
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {}/1000\r\n\r\n",
                    range.unwrap()
                );
                let mut written = stream.write_all(head.as_bytes());
                // Until the client hangs up.
                while written.is_ok() {
                    written = stream.write_all(b"x");
                    thread::sleep(Duration::from_millis(50));
                }
            });
        }
    });
    let server = Server {
        host,
        requests: Arc::default(),
    };
    let registry = server.registry();
    let blob = registry.blob(&server.image(), &Digest::of(b"x"), 1000);
    let begun = Instant::now();
    let error = blob.read_range(2, 900).unwrap_err();
    assert!(error.to_string().contains("sent only"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(4));
}
