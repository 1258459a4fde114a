//! Sockets, and how their addresses are written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;
use xebec_proto::criu_images::{FileEntry, InternetSocket, UnixSocket};

/// `AF_INET6`.
const IPV6: u32 = 10;
/// `IPPROTO_TCP`.
const TCP: u32 = 6;
/// `TCP_ESTABLISHED` and `TCP_LISTEN`; other kinds of sockets use the numbers, too.
const ESTABLISHED: u32 = 1;
const LISTENING: u32 = 10;

/// A socket.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Socket {
    /// `tcp`, `udp`, `ip` or `unix`.
    pub kind: &'static str,
    /// `listening`, `established` or nothing.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub state: &'static str,
    /// Its own address.
    pub local: String,
    /// The other end's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote: String,
}

impl Socket {
    pub(super) fn of(file: &FileEntry) -> Option<Self> {
        match (&file.isk, &file.usk) {
            (Some(internet), _) => Some(Self::internet(internet)),
            (None, Some(unix)) => Some(Self::unix(unix)),
            (None, None) => None,
        }
    }

    fn internet(socket: &InternetSocket) -> Self {
        let local = address(socket.family, &socket.src_addr, socket.src_port);
        let remote = match socket.dst_port {
            0 => String::new(),
            port => address(socket.family, &socket.dst_addr, port),
        };
        Self {
            kind: match socket.proto {
                TCP => "tcp",
                17 | 136 => "udp",
                _ => "ip",
            },
            state: state(socket.state),
            local,
            remote,
        }
    }

    fn unix(socket: &UnixSocket) -> Self {
        // An abstract name begins with a zero byte.
        let name = String::from_utf8_lossy(&socket.name).replace('\0', "@");
        Self {
            kind: "unix",
            state: state(socket.state),
            local: name,
            remote: String::new(),
        }
    }
}

fn state(number: u32) -> &'static str {
    match number {
        ESTABLISHED => "established",
        LISTENING => "listening",
        _ => "",
    }
}

/// The words of an address are as they are on the wire.
fn address(family: u32, words: &[u32], port: u32) -> String {
    let mut bytes = [0; 16];
    for (word, place) in words.iter().zip(bytes.chunks_exact_mut(4)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let [a, b, c, d, ..] = bytes;
    let ip = if family == IPV6 {
        IpAddr::V6(Ipv6Addr::from(bytes))
    } else {
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    SocketAddr::new(ip, port as u16).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_people_write_them() {
        let socket = InternetSocket {
            family: 2,
            proto: TCP,
            state: LISTENING,
            src_port: 8080,
            src_addr: vec![u32::from_le_bytes([127, 0, 0, 1])],
            dst_addr: vec![0],
            ..InternetSocket::default()
        };
        let shown = Socket::internet(&socket);
        assert_eq!((shown.kind, shown.state), ("tcp", "listening"));
        assert_eq!(
            (shown.local.as_str(), shown.remote.as_str()),
            ("127.0.0.1:8080", "")
        );
        let unix = UnixSocket {
            name: b"\0abstract".to_vec(),
            ..UnixSocket::default()
        };
        assert_eq!(Socket::unix(&unix).local, "@abstract");
    }
}
