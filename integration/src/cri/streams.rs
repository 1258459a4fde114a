//! What a kubelet does beside its calls: it enters containers, attaches to them and reaches their
//! ports by WebSockets, whose addresses containerd gives out.

use std::net::TcpStream;
use std::time::Duration;

use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::{Message, WebSocket};
use xebec_proto::cri::{AttachRequest, ExecRequest, PortForwardRequest, ReopenContainerLogRequest};

use super::{Cri, Pod};
use crate::error::{Error, Result};
use crate::hosts::NativeHost;

/// How long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// What containerd's server of streams speaks. It has no word for the end of input.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// Channels of a process, by the first byte of each message.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// A connection to a process, or to a port of a pod.
#[derive(Debug)]
pub struct Streams {
    socket: WebSocket<TcpStream>,
    ended: Ended,
}

/// What has come of a process, up to its end.
#[derive(Debug, Default, Clone)]
pub struct Ended {
    /// What it wrote; all of it for one with a terminal.
    pub stdout: String,
    /// What it wrote there.
    pub stderr: String,
    /// How it ended, as the JSON of a `Status`.
    pub status: String,
}

impl Cri {
    /// Enters a container with all streams; a terminal has no stderr.
    pub fn exec(
        &self,
        host: &NativeHost,
        id: &str,
        command: &[&str],
        tty: bool,
    ) -> Result<Streams> {
        let request = ExecRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let mut client = self.runtime_service();
        let url = self.call("Exec", client.exec(request))?.url;
        Streams::open(host, &url)
    }

    /// Attaches to a container's process with all streams.
    pub fn attach(&self, host: &NativeHost, id: &str, tty: bool) -> Result<Streams> {
        let request = AttachRequest {
            container_id: id.to_owned(),
            stdin: true,
            tty,
            stdout: true,
            stderr: !tty,
        };
        let mut client = self.runtime_service();
        let url = self.call("Attach", client.attach(request))?.url;
        Streams::open(host, &url)
    }

    /// Connects to a port of a pod.
    pub fn forward(&self, host: &NativeHost, pod: &Pod, port: u16) -> Result<Streams> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: vec![port.into()],
        };
        let mut client = self.runtime_service();
        let url = self.call("PortForward", client.port_forward(request))?.url;
        Streams::open(host, &format!("{url}?port={port}"))
    }

    /// Has a container's log written to a new file, after somebody has moved the old one.
    pub fn reopen_log(&self, id: &str) -> Result<()> {
        let request = ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        let mut client = self.runtime_service();
        let answer = client.reopen_container_log(request);
        self.call("ReopenContainerLog", answer).map(drop)
    }
}

impl Streams {
    fn open(host: &NativeHost, url: &str) -> Result<Self> {
        let failed = |error: tungstenite::Error| Error::invalid(url, error);
        let address = url.replacen("http://", "ws://", 1);
        let mut request = address.into_client_request().map_err(failed)?;
        let protocols = HeaderValue::from_static(PROTOCOL);
        let headers = request.headers_mut();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols);
        // The server refuses who does not say where he comes from.
        headers.insert(ORIGIN, HeaderValue::from_static("http://kubelet"));
        let authority = request.uri().authority().map(ToString::to_string);
        let authority = authority.unwrap_or_default();
        let stream = host
            .in_network(|| TcpStream::connect(&authority))?
            .map_err(Error::system("connect to containerd's streams"))?;
        stream
            .set_read_timeout(Some(SILENCE))
            .map_err(Error::system("set a socket's time"))?;
        let (socket, _) =
            tungstenite::client(request, stream).map_err(|error| Error::invalid(url, error))?;
        Ok(Self {
            socket,
            ended: Ended::default(),
        })
    }

    /// Writes to the process's stdin, or to the port.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.send(STDIN, text.as_bytes())
    }

    /// Gives the terminal another size.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = serde_json::json!({ "Width": columns, "Height": rows });
        self.send(RESIZE, size.to_string().as_bytes())
    }

    /// Reads until `wanted` is among what came as stdout.
    pub fn read_until(&mut self, wanted: &str) -> Result<&str> {
        while !self.ended.stdout.contains(wanted) {
            if !self.hear()? {
                let what = format!("a stream that was to say {wanted:?}");
                return Err(Error::invalid(what, format!("{:?}", self.ended)));
            }
        }
        Ok(&self.ended.stdout)
    }

    /// Reads what comes from a port until `wanted` is among it.
    pub fn read_port_until(&mut self, wanted: &str) -> Result<String> {
        let mut came = Vec::new();
        while !String::from_utf8_lossy(&came).contains(wanted) {
            match self.message()? {
                Some((0, bytes)) => came.extend(bytes),
                // Each channel begins with the port's number; the second one is for errors.
                Some((_, bytes)) if bytes.len() == 2 => {}
                other => return Err(Error::invalid("a port", format!("{other:?}"))),
            }
        }
        Ok(String::from_utf8_lossy(&came).into_owned())
    }

    /// Reads to the end.
    pub fn finish(mut self) -> Result<Ended> {
        while self.hear()? {}
        Ok(self.ended)
    }

    /// Leaves without a word, as a client that dies.
    pub fn hang_up(self) {}

    /// Takes one message; whether there was one.
    fn hear(&mut self) -> Result<bool> {
        let Some((channel, bytes)) = self.message()? else {
            return Ok(false);
        };
        let text = String::from_utf8_lossy(&bytes);
        match channel {
            STDOUT => self.ended.stdout.push_str(&text),
            STDERR => self.ended.stderr.push_str(&text),
            STATUS => self.ended.status.push_str(&text),
            _ => {}
        }
        Ok(true)
    }

    /// The next message's channel and bytes; none at the end.
    fn message(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    let split = bytes.split_first();
                    return Ok(split.map(|(channel, bytes)| (*channel, bytes.to_vec())));
                }
                Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed) => {
                    return Ok(None);
                }
                Ok(_) => {}
                Err(error) => {
                    let reason = format!("{error}; so far {:?}", self.ended);
                    return Err(Error::invalid("a stream", reason));
                }
            }
        }
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let message = [&[channel], bytes].concat();
        let sent = self.socket.send(Message::Binary(message.into()));
        sent.map_err(|error| Error::invalid("a stream", error))
    }
}
