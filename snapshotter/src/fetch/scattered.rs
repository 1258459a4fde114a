//! Several ranges of a blob at once, from servers of every manner.

use std::ops::Range;
use std::slice;

use crate::error::Error;

use super::hostile::{Server, answer};
use super::{BlobSource, Registry};

const WANTED: [Range<u64>; 3] = [1..3, 5..6, 8..10];

fn ranges(registry: &Registry, server: &Server) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let blob = server.blob(registry);
    blob.read_ranges(&WANTED, &mut |part| bytes.extend_from_slice(part))?;
    Ok(String::from_utf8(bytes).unwrap())
}

fn part(range: Range<usize>) -> String {
    let bytes = &"0123456789"[range.clone()];
    let (first, last) = (range.start, range.end - 1);
    format!("\r\n--b\r\nContent-Range: bytes {first}-{last}/10\r\n\r\n{bytes}")
}

fn multipart(parts: &[Range<usize>]) -> String {
    let parts: String = parts.iter().cloned().map(part).collect();
    several(&format!("{parts}\r\n--b--\r\n"))
}

fn several(body: &str) -> String {
    let headers = "content-type: multipart/byteranges; boundary=b\r\n";
    answer("206 Partial Content", headers, body)
}

fn single(range: Range<usize>) -> String {
    let (first, last) = (range.start, range.end - 1);
    let headers = format!("content-range: bytes {first}-{last}/10\r\n");
    answer("206 Partial Content", &headers, &"0123456789"[range])
}

/// The answers to requests for one range each.
fn singles() -> [String; 3] {
    [single(1..3), single(5..6), single(8..10)]
}

/// What each request asked for.
fn asked(server: &Server) -> Vec<String> {
    let range = |request: &String| {
        let line = request.lines().find(|line| line.starts_with("range: "));
        line.unwrap_or_default().replace("range: bytes=", "")
    };
    server.requests().iter().map(range).collect()
}

const AT_ONCE: &str = "1-2,5-5,8-9";
const ONE_BY_ONE: [&str; 3] = ["1-2", "5-5", "8-9"];

#[test]
fn what_a_server_sends_at_once_is_asked_for_at_once() {
    let server = Server::new(vec![multipart(&[1..3, 5..6, 8..10])]);
    let registry = server.registry();
    for _ in 0..3 {
        assert_eq!(ranges(&registry, &server).unwrap(), "12589");
    }
    assert_eq!(asked(&server), [AT_ONCE; 3]);
    assert!(server.blob(&registry).takes_several());
}

#[test]
fn a_server_that_does_not_is_asked_once_and_then_range_by_range() {
    let whole = answer("200 OK", "", "0123456789");
    let endless = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
    for first in [
        whole,
        endless,
        answer(
            "416 Range Not Satisfiable",
            "content-range: bytes */10\r\n",
            "",
        ),
        answer("400 Bad Request", "", ""),
        answer("503 Service Unavailable", "", ""),
        String::new(),
        answer("206 Partial Content", "", "12589"),
        several(""),
        several("\r\n--b--\r\n"),
        several("12589"),
        multipart(slice::from_ref(&(0..10))),
        multipart(&[2..3, 5..6, 8..10]),
        several(&part(1..3).replace("/10", "/11")),
    ] {
        let server =
            Server::new([vec![first.clone()], singles().into(), singles().into()].concat());
        let registry = server.registry();
        for _ in 0..2 {
            assert_eq!(ranges(&registry, &server).unwrap(), "12589", "{first}");
        }
        let expected = [&[AT_ONCE][..], &ONE_BY_ONE, &ONE_BY_ONE].concat();
        assert_eq!(asked(&server), expected, "{first}");
        assert!(!server.blob(&registry).takes_several(), "{first}");
    }
}

#[test]
fn what_came_of_an_answer_is_kept_when_the_rest_is_none() {
    for first in [
        single(1..3),
        several(&(part(1..3) + "\r\n--b--\r\n")),
        several(&(part(1..3) + &part(0..4))),
        several(&(part(1..3) + "and more")),
        several(&(part(1..3) + "\r\n--b\r\n" + &"x: y\r\n".repeat(1000))),
    ] {
        let server = Server::new(vec![first.clone(), single(5..6), single(8..10)]);
        assert_eq!(
            ranges(&server.registry(), &server).unwrap(),
            "12589",
            "{first}"
        );
        assert_eq!(asked(&server), [AT_ONCE, "5-5", "8-9"], "{first}");
    }
}

#[test]
fn neighbours_may_come_as_one_range() {
    for first in [
        single(1..10),
        multipart(&[1..6, 8..10]),
        multipart(slice::from_ref(&(1..10))),
    ] {
        let server = Server::new(vec![first.clone()]);
        let registry = server.registry();
        assert_eq!(ranges(&registry, &server).unwrap(), "12589", "{first}");
        assert_eq!(asked(&server), [AT_ONCE], "{first}");
    }
}

#[test]
fn an_answer_that_breaks_off_is_gone_on_with_where_it_ended() {
    let whole = multipart(&[1..3, 5..6, 8..10]);
    let cut = whole[..=whole.rfind("89").unwrap()].to_owned();
    let server = Server::new(vec![cut, single(9..10)]);
    let registry = server.registry();
    assert_eq!(ranges(&registry, &server).unwrap(), "12589");
    assert_eq!(asked(&server), [AT_ONCE, "9-9"]);
    assert!(server.blob(&registry).takes_several(), "it can");
}

#[test]
fn a_redirect_leads_to_who_sends_several_and_is_remembered() {
    let store = Server::new(vec![multipart(&[1..3, 5..6, 8..10])]);
    let location = format!("location: http://{}/signed?x\r\n", store.host);
    let server = Server::new(vec![answer("307 Temporary Redirect", &location, "")]);
    let registry = server.registry();
    let blob = server.blob(&registry);
    for _ in 0..2 {
        let mut bytes = Vec::new();
        blob.read_ranges(&WANTED, &mut |part| bytes.extend_from_slice(part))
            .unwrap();
        assert_eq!(bytes, b"12589");
    }
    assert_eq!(asked(&server), [AT_ONCE]);
    assert_eq!(asked(&store), [AT_ONCE; 2]);
}

#[test]
fn a_host_behind_a_redirect_that_sends_everything_is_asked_for_several_once() {
    let whole = answer("200 OK", "", "0123456789");
    let store = Server::new([vec![whole], singles().into(), singles().into()].concat());
    let location = format!("location: http://{}/signed?x\r\n", store.host);
    let server = Server::new(vec![answer("307 Temporary Redirect", &location, "")]);
    let registry = server.registry();
    for _ in 0..2 {
        assert_eq!(ranges(&registry, &server).unwrap(), "12589");
    }
    assert_eq!(asked(&server), [AT_ONCE, "1-2"], "a blob each");
    assert_eq!(
        asked(&store),
        [&[AT_ONCE][..], &ONE_BY_ONE, &ONE_BY_ONE].concat()
    );
}
