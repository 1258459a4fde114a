//! CRI's image service, passed through to the container runtime: a kubelet whose
//! `--image-service-endpoint` is our socket tells us the credentials of its pods' pull secrets.
//!
//! Requests and answers go through as they are, of whatever version; only `PullImage` is looked at.

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::error::{Error, Result};
use crate::fetch::{ImageRef, Login, Passed};

/// What the paths of its calls begin with.
const SERVICE: &str = "/runtime.v1.ImageService/";
/// The call that brings credentials.
const PULL: &str = "/runtime.v1.ImageService/PullImage";
/// Longest `PullImage` that is taken, as gRPC's own limit is.
const MAX_PULL: usize = 4 << 20;
/// What stands before a message in a body: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Stands in for the image service of a container runtime.
#[derive(Clone)]
pub struct Images {
    runtime: Channel,
    passed: Arc<Passed>,
}

/// The part of `runtime.v1.PullImageRequest` that is of interest.
#[derive(Clone, PartialEq, Message)]
struct PullImage {
    #[prost(message, optional, tag = "1")]
    image: Option<Spec>,
    #[prost(message, optional, tag = "2")]
    auth: Option<Auth>,
}

/// `runtime.v1.ImageSpec`.
#[derive(Clone, PartialEq, Message)]
struct Spec {
    #[prost(string, tag = "1")]
    image: String,
}

/// `runtime.v1.AuthConfig`.
#[derive(Clone, PartialEq, Message)]
struct Auth {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
    /// `auth` there.
    #[prost(string, tag = "3")]
    pair: String,
    #[prost(string, tag = "4")]
    server_address: String,
    #[prost(string, tag = "5")]
    identity_token: String,
    #[prost(string, tag = "6")]
    registry_token: String,
}

impl Images {
    /// Passes calls on to the runtime at `socket`, which is connected to when it is needed, and
    /// credentials to `passed`. Must be called within a runtime of Tokio's.
    pub fn new(socket: &Path, passed: Arc<Passed>) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let endpoint = endpoint.map_err(|error| Error::Unusable {
            what: format!("registry.cri.socket {}", socket.display()),
            reason: error.to_string(),
        })?;
        let runtime = endpoint.connect_lazy();
        Ok(Self { runtime, passed })
    }

    /// Reads a `PullImage`, and gives it back to be passed on.
    async fn listen(
        &self,
        request: http::Request<Body>,
    ) -> std::result::Result<http::Request<Body>, Status> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_PULL).collect().await;
        let body = body
            .map_err(|error| Status::invalid_argument(format!("PullImage: {error}")))?
            .to_bytes();
        if let Err(reason) = self.learn(&body) {
            tracing::warn!(reason, "the credentials of a PullImage are not known to us");
        }
        let body = Body::new(Full::<Bytes>::new(body));
        Ok(http::Request::from_parts(head, body))
    }

    fn learn(&self, body: &[u8]) -> std::result::Result<(), String> {
        if body.first() == Some(&1) {
            return Err("it is compressed".to_owned());
        }
        let message = body.get(PREFIX..).ok_or("it is empty")?;
        let PullImage { image, auth } =
            PullImage::decode(message).map_err(|error| error.to_string())?;
        let (Some(image), Some(auth)) = (image, auth) else {
            return Ok(());
        };
        let image = ImageRef::parse(&image.image).map_err(|error| error.to_string())?;
        let login = Login {
            username: auth.username,
            password: auth.password,
            auth: auth.pair,
            server_address: auth.server_address,
            identity_token: auth.identity_token,
            registry_token: auth.registry_token,
        };
        self.passed
            .remember(&image, login)
            .map_err(|error| error.to_string())
    }

    async fn pass(mut self, request: http::Request<Body>) -> http::Response<Body> {
        let request = if request.uri().path() == PULL {
            match self.listen(request).await {
                Ok(request) => request,
                Err(status) => return status.into_http(),
            }
        } else {
            request
        };
        let passed = async {
            std::future::poll_fn(|context| self.runtime.poll_ready(context)).await?;
            self.runtime.call(request).await
        };
        match passed.await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(%error, "the container runtime's image service does not answer");
                let reason = format!("the container runtime behind xebec-snapshotter: {error}");
                Status::new(Code::Unavailable, reason).into_http()
            }
        }
    }
}

/// Both services of one socket.
#[derive(Clone)]
pub struct Front<S> {
    /// The snapshots service, to which everything goes that is not for the other.
    pub snapshots: S,
    /// The image service, if it is passed through.
    pub images: Option<Images>,
}

type Answer = std::result::Result<http::Response<Body>, Infallible>;

impl<S> Service<http::Request<Body>> for Front<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<std::result::Result<(), Infallible>> {
        self.snapshots.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match &self.images {
            Some(images) if request.uri().path().starts_with(SERVICE) => {
                let pass = images.clone().pass(request);
                Box::pin(async move { Ok(pass.await) })
            }
            _ => Box::pin(self.snapshots.call(request)),
        }
    }
}
