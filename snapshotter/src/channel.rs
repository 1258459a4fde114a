//! Connections of commands to gRPC services on unix sockets, whose calls block.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::error::{Error, Result};

/// How long a service may take to accept.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects to `who` at `socket`; calls run on the runtime that comes with the channel.
pub(crate) fn connect(socket: &Path, who: &str) -> Result<(Runtime, Channel)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::Internal(format!("client of {who}: {error}")))?;
    let connector = {
        let socket = socket.to_owned();
        service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        })
    };
    // The name stands for nothing: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://unix");
    let connected = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, endpoint.connect_with_connector(connector)).await
    });
    let unavailable = |reason: String| Error::Unavailable {
        what: format!("{who} at {}", socket.display()),
        reason,
    };
    let channel = connected
        .map_err(|_| unavailable("does not answer".into()))?
        .map_err(|error| unavailable(cause(&error)))?;
    Ok((runtime, channel))
}

/// The last of the causes, which says what happened.
fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
