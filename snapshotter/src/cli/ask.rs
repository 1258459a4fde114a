//! Questions of commands to the daemon.

use std::io::{Read, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::daemon::status::{Answer, Request, socket_path};
use crate::error::{Error, Result};

/// Where the daemon is.
#[derive(Debug, clap::Args)]
pub(super) struct DaemonArgs {
    /// Configuration file of the daemon [default: /etc/xebec/snapshotter.toml, a user's own below
    /// ~/.config, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unix socket on which the daemon serves containerd (overrides the file)
    #[arg(long, value_name = "SOCKET")]
    address: Option<PathBuf>,
}

impl DaemonArgs {
    /// Its configuration.
    pub(super) fn config(&self) -> Result<Config> {
        Config::load(self.config.as_deref())
    }

    /// The socket on which it serves containerd's API.
    pub(super) fn socket(&self) -> Result<PathBuf> {
        let config = self.config()?;
        Ok(self.address.clone().unwrap_or(config.address))
    }

    /// Its answer to a request; `patience` of none waits for ever.
    pub(super) fn ask(&self, request: &Request, patience: Option<Duration>) -> Result<Answer> {
        let request = serde_json::to_string(request);
        let request = request.map_err(|error| Error::Internal(error.to_string()))?;
        self.ask_text(&request, patience).map(|(answer, _)| answer)
    }

    /// Its answer to a request as text (an empty one asks for its status), and that as it came.
    pub(super) fn ask_text<T: DeserializeOwned>(
        &self,
        request: &str,
        patience: Option<Duration>,
    ) -> Result<(T, String)> {
        let socket = socket_path(&self.socket()?);
        let text = exchange(&socket, request, patience)?;
        let answer = serde_json::from_str(&text).map_err(|error| Error::Malformed {
            what: format!("answer of {}", socket.display()),
            reason: error.to_string(),
        })?;
        Ok((answer, text))
    }
}

fn exchange(socket: &Path, request: &str, patience: Option<Duration>) -> Result<String> {
    let mut stream = UnixStream::connect(socket).map_err(Error::io("connect to", socket))?;
    let mut exchange = || {
        stream.set_read_timeout(patience)?;
        stream.write_all(request.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    exchange().map_err(Error::io("talk to", socket))
}
