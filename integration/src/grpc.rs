//! Connections to the gRPC services of daemons on Unix sockets.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::error::{Error, Result};

/// Connects to a socket such as /run/containerd/containerd.sock; a call fails after `deadline`.
pub(crate) async fn connect(socket: &Path, deadline: Duration) -> Result<Channel> {
    let path = socket.to_owned();
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://daemon")
        .timeout(deadline)
        .connect_with_connector(connector)
        .await
        .map_err(|e| Error::invalid(format!("gRPC socket {}", socket.display()), e))
}
