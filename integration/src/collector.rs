//! A small collector of OpenTelemetry (OTLP over HTTP with protobuf), which keeps every span that it
//! is sent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
pub use opentelemetry_proto::tonic::trace::v1::Span;
use xebec_proto::prost::Message;

use crate::error::{Error, Result};
use crate::hosts::NativeHost;

/// How long spans may take to come.
const DEADLINE: Duration = Duration::from_mins(1);
/// Pause between looks for them.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest body that is taken.
const LONGEST: usize = 4 << 20;

/// A collector in the network of a host. It serves one connection after the other, for as long as
/// the process of the test lives.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Begins to listen on a free port of the host's loopback.
    pub fn start(host: &NativeHost) -> Result<Self> {
        let listener = host
            .in_network(|| TcpListener::bind("127.0.0.1:0"))?
            .map_err(Error::system("listen as a collector"))?;
        let address = listener
            .local_addr()
            .map_err(Error::system("ask for the collector's address"))?;
        let spans = Arc::default();
        let kept = Arc::clone(&spans);
        thread::spawn(move || {
            // What is wrong with a connection shows in the spans that are missing.
            for stream in listener.incoming().flatten() {
                let _ = serve(stream, &kept);
            }
        });
        Ok(Self { address, spans })
    }

    /// What exporters are to be told.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far, once they are as `is_wanted` says.
    pub fn spans_when(&self, is_wanted: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
        let end = Instant::now() + DEADLINE;
        loop {
            let spans = locked(&self.spans).clone();
            if is_wanted(&spans) {
                return Ok(spans);
            }
            if Instant::now() > end {
                return Err(Error::invalid(
                    "the collector's spans",
                    format!("{spans:#?}"),
                ));
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Serves requests until the client hangs up.
fn serve(stream: TcpStream, spans: &Mutex<Vec<Span>>) -> io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut stream = BufReader::new(stream);
    while let Some((path, body)) = request(&mut stream)? {
        let decoded = ExportTraceServiceRequest::decode(&*body);
        let (status, sent) = match decoded {
            Ok(request) if path == "/v1/traces" => ("200 OK", all_spans(request)),
            _ => ("400 Bad Request", Vec::new()),
        };
        locked(spans).extend(sent);
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        stream.get_mut().write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Path and body of the next request.
fn request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().ok())?
    });
    let length: usize = length
        .filter(|length| *length <= LONGEST)
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some((path, body)))
}

fn all_spans(request: ExportTraceServiceRequest) -> Vec<Span> {
    let scopes = request.resource_spans.into_iter();
    let scopes = scopes.flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
