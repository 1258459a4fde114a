//! `debug`: asks a running shim for all it knows and prints the answer.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use xebec_proto::ttrpc::{Request, Response};

use crate::args::Args;
use crate::bootstrap;
use crate::error::{Context, Error, Result};
use crate::link;
use crate::task::Record;
use crate::task::dump;
use crate::ttrpc::frame::{self, HEADER, Header, MAX_MESSAGE};

/// How long the shim may take for each step of its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// containerd's socket unless `-address` names another.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Where containerd keeps bundles, beside its socket: by namespace and id.
const BUNDLES: &str = "io.containerd.runtime.v2.task";

/// Runs the `debug` action: prints the state of a shim as JSON.
pub fn debug(args: &Args) -> Result<()> {
    let json = ask(&socket(args)?)?;
    std::io::stdout()
        .write_all(format!("{json}\n").as_bytes())
        .context(|| "print the state".into())
}

/// Where the shim that is meant listens.
fn socket(args: &Args) -> Result<PathBuf> {
    if let Some(socket) = &args.socket {
        return Ok(socket.clone());
    }
    if args.namespace.is_empty() || args.id.is_empty() {
        let text = "debug needs -socket, or -namespace and -id";
        return Err(Error::InvalidArgument(text.into()));
    }
    link::container_id(&args.id)?;
    let bundle = args.bundle.clone().unwrap_or_else(|| bundle(args));
    if let Some(record) = Record::read(&bundle)? {
        return Ok(record.socket);
    }
    Err(Error::NotFound(format!(
        "no shim of {} in namespace {}: nothing is recorded in {}",
        args.id,
        args.namespace,
        bundle.display()
    )))
}

/// Where containerd has the bundle of a container.
fn bundle(args: &Args) -> PathBuf {
    let containerd = if args.address.is_empty() {
        CONTAINERD
    } else {
        bootstrap::without_scheme(&args.address)
    };
    let state = Path::new(containerd).parent().unwrap_or(Path::new("/"));
    state.join(BUNDLES).join(&args.namespace).join(&args.id)
}

/// Calls the debug service of the shim at `socket`.
fn ask(socket: &Path) -> Result<String> {
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            Error::NotFound(format!("no shim listens at {}", socket.display()))
        }
        _ => Error::Io {
            what: format!("connect to {}", socket.display()),
            source: error,
        },
    })?;
    let response = call(stream).context(|| format!("ask the shim at {}", socket.display()))?;
    match response.status {
        Some(status) if status.code != 0 => Err(Error::Unimplemented(format!(
            "the shim at {}: {}",
            socket.display(),
            status.message
        ))),
        _ => String::decode(&*response.payload).context(|| "read the answer of the shim".into()),
    }
}

fn call(mut stream: UnixStream) -> std::io::Result<Response> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = Request {
        service: dump::SERVICE.to_owned(),
        method: dump::DUMP.to_owned(),
        ..Default::default()
    };
    stream.write_all(&frame::encode(frame::REQUEST, 1, &request))?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let header = Header::decode(header);
    if header.kind != frame::RESPONSE || header.length > MAX_MESSAGE {
        return Err(std::io::Error::other("it does not speak ttrpc"));
    }
    let mut body = vec![0; header.length];
    stream.read_exact(&mut body)?;
    Response::decode(&*body).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;
    use crate::error::Code;
    use std::os::unix::net::UnixListener;

    fn found(line: &str) -> Result<PathBuf> {
        socket(&args::parse(line.split_whitespace().map(str::to_owned)).unwrap())
    }

    #[test]
    fn the_socket_is_named_or_recorded_in_the_bundle() {
        let state = tempfile::tempdir().unwrap();
        let bundle = state.path().join(BUNDLES).join("k8s.io/c");
        std::fs::create_dir_all(&bundle).unwrap();
        let record = Record {
            socket: "/run/s/1".into(),
            ..Record::default()
        };
        record.write(&bundle).unwrap();
        let address = state.path().join("c.sock");
        let address = address.display();
        for line in [
            "-socket unix:///run/s/1 debug",
            &format!("-namespace k8s.io -id c -address unix://{address} debug"),
            &format!("-namespace k8s.io -id c -bundle {} debug", bundle.display()),
        ] {
            assert_eq!(found(line).unwrap(), Path::new("/run/s/1"), "{line}");
        }
        for (line, part) in [
            ("-id c debug".to_owned(), "-namespace and -id"),
            ("-namespace n -id ../c debug".to_owned(), "../c"),
            (
                format!("-namespace k8s.io -id d -address {address} debug"),
                "no shim of d in namespace k8s.io",
            ),
        ] {
            let error = found(&line).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn who_does_not_answer_as_a_shim_is_told_with_his_address() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let error = ask(&path).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert!(error.to_string().contains("no shim listens at"), "{error}");
        let listener = UnixListener::bind(&path).unwrap();
        let refusal = frame::refusal(Code::Unimplemented, "service io.xebec".into());
        let refusal = frame::encode(frame::RESPONSE, 1, &refusal);
        for (answer, part) in [
            (&b"HTTP/1.1 400 Bad Request\r\n"[..], "does not speak ttrpc"),
            (&refusal, "service io.xebec"),
            (b"", "ask the shim"),
        ] {
            std::thread::scope(|scope| {
                scope.spawn(|| listener.accept().unwrap().0.write_all(answer));
                let error = ask(&path).unwrap_err().to_string();
                assert!(error.contains(part), "{error}");
                assert!(error.contains(&*path.to_string_lossy()), "{error}");
            });
        }
    }
}
