//! Servers that send without end, byte by byte, or packed: what they cost is bounded.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::discover::Manifests;
use crate::error::Error;

use super::BlobSource as _;
use super::hostile::{Server, answer, partial};

/// A server that `speak`s to everyone who has asked, until they hang up.
fn server(speak: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let speak = Arc::new(speak);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, speak) = (stream.unwrap(), Arc::clone(&speak));
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines
                    .next()
                    .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                {}
                while speak(&mut stream).is_ok() {}
            });
        }
    });
    Server {
        host,
        requests: Arc::default(),
    }
}

/// Time that one read or question may take at these settings, with room for a busy machine.
const BOUND: Duration = Duration::from_secs(8);

#[test]
fn a_body_without_end_is_cut_off_wherever_it_comes() {
    for status in ["200 OK", "404 Not Found", "503 Service Unavailable"] {
        let head = format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n");
        let endless = server(move |stream| {
            stream.write_all(head.as_bytes())?;
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            loop {
                stream.write_all(chunk.as_bytes())?;
            }
        });
        let registry = endless.registry();
        let begun = Instant::now();
        let error = Manifests::manifest(&registry, &endless.image()).unwrap_err();
        assert!(begun.elapsed() < BOUND, "{status}: {:?}", begun.elapsed());
        assert!(error.to_string().contains(&endless.host), "{error}");
        let blob = endless.blob(&registry);
        let read = blob.read_range(2, 4);
        // What ignores the range and sends everything is of use up to the last byte wanted.
        assert_eq!(read.is_ok(), status == "200 OK", "{status}: {read:?}");
        assert!(begun.elapsed() < BOUND * 2, "{status}");
    }
}

#[test]
fn ten_megabytes_of_headers_are_refused() {
    let chatty = server(|stream| {
        stream.write_all(b"HTTP/1.1 206 Partial Content\r\n")?;
        for number in 0..10_000 {
            write!(stream, "x-{number}: {}\r\n", "y".repeat(1000))?;
        }
        stream.write_all(&partial().as_bytes()["HTTP/1.1 206 Partial Content\r\n".len()..])
    });
    let begun = Instant::now();
    let error = chatty
        .blob(&chatty.registry())
        .read_range(2, 4)
        .unwrap_err();
    assert!(
        matches!(error, Error::Unavailable { .. } | Error::Registry { .. }),
        "{error}"
    );
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

#[test]
fn headers_that_come_byte_by_byte_are_not_waited_for() {
    let slow = server(|stream| {
        for byte in partial().bytes() {
            stream.write_all(&[byte])?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    });
    let begun = Instant::now();
    let error = slow.blob(&slow.registry()).read_range(2, 4).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

#[test]
fn bytes_are_asked_for_as_they_are_and_packed_ones_are_no_manifest() {
    let manifest = br#"{"schemaVersion":2}"#;
    let packed = answer("200 OK", "content-encoding: gzip\r\n", "\u{1f}\u{7f}packed");
    let server = Server::new(vec![packed, partial()]);
    let registry = server.registry();
    let reference = server.image().at_digest(Digest::of(manifest));
    let error = Manifests::manifest(&registry, &reference).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(server.blob(&registry).read_range(2, 4).unwrap(), b"2345");
    for request in server.requests() {
        assert!(
            request.contains("accept-encoding: identity\r\n"),
            "{request}"
        );
    }
}
