//! A small server for checkpoints: `bench-server PORT` answers every request by the longest time, in
//! microseconds, for which it has stood still since the last one.
//!
//! It looks at the clock between naps of half a millisecond, so that whoever stops it is seen from
//! inside, by whatever means it was done.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const NAP: Duration = Duration::from_micros(500);
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let Some(port) = std::env::args().nth(1).and_then(|port| port.parse().ok()) else {
        eprintln!("bench-server PORT");
        return ExitCode::from(2);
    };
    match serve(port) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("bench-server: port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: u16) -> io::Result<std::convert::Infallible> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    let mut seen = Instant::now();
    let mut longest = Duration::ZERO;
    loop {
        let now = Instant::now();
        longest = longest.max(now - seen);
        seen = now;
        match listener.accept() {
            // A client that goes away concerns nobody else.
            Ok((client, _)) => {
                if answer(client, longest).is_ok() {
                    longest = Duration::ZERO;
                }
                seen = Instant::now();
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(NAP),
            Err(e) => return Err(e),
        }
    }
}

fn answer(mut client: TcpStream, longest: Duration) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut part = [0; 512];
    while !request.ends_with(b"\r\n\r\n") && request.len() < 8 << 10 {
        match client.read(&mut part)? {
            0 => break,
            count => request.extend_from_slice(&part[..count]),
        }
    }
    let body = longest.as_micros().to_string();
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    client.write_all((head + &body).as_bytes())
}
