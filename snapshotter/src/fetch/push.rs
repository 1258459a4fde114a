//! Pushing to a registry: blobs that are not there yet, and manifests.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Client, Method, Response, Url};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::digest::Digest;
use crate::error::{Error, Result};

use super::failure::Failure;
use super::hosts::{Capability, Endpoint};
use super::manifest::Descriptor;
use super::pull::size_from;
use super::reference::ImageRef;
use super::registry::{Registry, Session, subject};

/// Bytes read from the file at once while it is sent.
const PIECE: usize = 256 << 10;
/// Length of the parts of a chunked upload, for registries behind a proxy that limits bodies.
const PART: u64 = 8 << 20;
/// Bytes per second below which an upload counts as stalled.
const SLOWEST: u64 = 64 << 10;

impl Registry {
    /// Whether `image`'s repository has the blob; asked with push rights, so that a repository that
    /// may only be written by this user is seen too.
    pub fn has_blob(&self, image: &ImageRef, digest: &Digest) -> Result<bool> {
        let (session, image, digest) = (Arc::clone(&self.session), image.clone(), *digest);
        let asked = self.block(async move {
            let action = format!("check for blob {digest}");
            session
                .attempt(&image, Capability::Push, &action, |session, endpoint| {
                    size_from(session, endpoint, image.clone(), digest, push_scope(&image))
                })
                .await
        });
        match asked {
            Ok(_) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry to take the blob from its repository `from`; false when it will not.
    pub fn mount_blob(&self, image: &ImageRef, digest: &Digest, from: &ImageRef) -> Result<bool> {
        if image.host() != from.host() {
            return Ok(false);
        }
        let (session, image, digest) = (Arc::clone(&self.session), image.clone(), *digest);
        let from = from.repository().to_owned();
        self.block(async move {
            let action = format!("mount of blob {digest}");
            session
                .attempt(&image, Capability::Push, &action, |session, endpoint| {
                    mount_from(session, endpoint, image.clone(), digest, from.clone())
                })
                .await
        })
    }

    /// Uploads the blob of `descriptor`, whose bytes are those of `file`.
    pub fn push_blob(&self, image: &ImageRef, descriptor: &Descriptor, file: File) -> Result<()> {
        let upload = Arc::new(Upload {
            image: image.clone(),
            digest: descriptor.digest,
            size: descriptor.size,
            source: Source::File(Arc::new(file)),
        });
        self.push(upload)
    }

    /// Uploads `content`, whose digest it computes.
    pub fn push_bytes(&self, image: &ImageRef, content: &[u8]) -> Result<()> {
        let upload = Arc::new(Upload {
            image: image.clone(),
            digest: Digest::of(content),
            size: content.len() as u64,
            source: Source::Bytes(Bytes::copy_from_slice(content)),
        });
        self.push(upload)
    }

    fn push(&self, upload: Arc<Upload>) -> Result<()> {
        let session = Arc::clone(&self.session);
        self.block(async move {
            let action = format!("push of blob {}", upload.digest);
            let image = upload.image.clone();
            let limit = session.config.deadline + sending_time(upload.size);
            session
                .attempt_within(
                    limit,
                    &image,
                    Capability::Push,
                    &action,
                    |session, endpoint| Arc::clone(&upload).send_to(session, endpoint),
                )
                .await
        })
    }

    /// Stores a manifest or index under `image`'s digest or tag and gives its digest.
    pub fn put_manifest(
        &self,
        image: &ImageRef,
        media_type: &str,
        content: &[u8],
    ) -> Result<Digest> {
        let digest = Digest::of(content);
        let content = Bytes::copy_from_slice(content);
        let (session, image) = (Arc::clone(&self.session), image.clone());
        let media_type = media_type.to_owned();
        self.block(async move {
            let action = format!("push of manifest {}", image.manifest_key());
            session
                .attempt(&image, Capability::Push, &action, |session, endpoint| {
                    let (media_type, content) = (media_type.clone(), content.clone());
                    put_manifest(session, endpoint, image.clone(), media_type, content)
                })
                .await
        })?;
        Ok(digest)
    }
}

/// Time that `length` bytes may take on the slowest link worth waiting for.
fn sending_time(length: u64) -> Duration {
    Duration::from_secs(length / SLOWEST)
}

fn push_scope(image: &ImageRef) -> String {
    format!("repository:{}:pull,push", image.repository())
}

async fn put_manifest(
    session: Arc<Session>,
    endpoint: Arc<Endpoint>,
    image: ImageRef,
    media_type: String,
    content: Bytes,
) -> Result<(), Failure> {
    let path = format!("{}/manifests/{}", image.repository(), image.manifest_key());
    let url = endpoint.url(&path, image.host())?;
    let scope = push_scope(&image);
    let make = |client: &Client| {
        client
            .put(url.clone())
            .header(CONTENT_TYPE, &media_type)
            .body(content.clone())
    };
    let response = session
        .send_authorized(&endpoint, subject(&image, &scope), make)
        .await?;
    accept(&session, response, &[200, 201, 202]).await.map(drop)
}

/// The answer, if its status is one of `wanted`.
async fn accept(
    session: &Session,
    response: Response,
    wanted: &[u16],
) -> Result<Response, Failure> {
    if wanted.contains(&response.status().as_u16()) {
        return Ok(response);
    }
    Err(session.refusal(response).await)
}

/// Where an upload goes on.
fn upload_url(response: &Response) -> Result<Url, Failure> {
    response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|location| response.url().join(location).ok())
        .ok_or_else(|| Failure::Protocol("upload answer without a usable Location".into()))
}

async fn mount_from(
    session: Arc<Session>,
    endpoint: Arc<Endpoint>,
    image: ImageRef,
    digest: Digest,
    from: String,
) -> Result<bool, Failure> {
    let mut url = endpoint.url(
        &format!("{}/blobs/uploads/", image.repository()),
        image.host(),
    )?;
    url.query_pairs_mut()
        .append_pair("mount", &digest.to_string())
        .append_pair("from", &from);
    let scope = format!("{} repository:{from}:pull", push_scope(&image));
    let subject = subject(&image, &scope);
    let make = |client: &Client| client.post(url.clone()).header(CONTENT_LENGTH, 0);
    let response = session.send_authorized(&endpoint, subject, make).await?;
    let response = accept(&session, response, &[201, 202]).await?;
    if response.status().as_u16() == 201 {
        return Ok(true);
    }
    // The registry opened an ordinary upload instead, which is not wanted.
    let opened = upload_url(&response)?;
    let make = |client: &Client| client.delete(opened.clone());
    let cancelled = session.send_authorized(&endpoint, subject, make).await?;
    tracing::debug!(
        status = cancelled.status().as_u16(),
        "mount refused, upload cancelled"
    );
    Ok(false)
}

/// One blob on its way to a registry.
struct Upload {
    image: ImageRef,
    digest: Digest,
    size: u64,
    source: Source,
}

enum Source {
    Bytes(Bytes),
    File(Arc<File>),
}

impl Upload {
    /// In one request; in parts when the registry finds that too large.
    async fn send_to(
        self: Arc<Self>,
        session: Arc<Session>,
        endpoint: Arc<Endpoint>,
    ) -> Result<(), Failure> {
        let location = self.begin(&session, &endpoint).await?;
        let whole = self.body(0, self.size);
        let response = self
            .transmit(
                &session,
                &endpoint,
                (Method::PUT, self.finished(&location)),
                whole,
            )
            .await?;
        if response.status().as_u16() != 413 {
            return accept(&session, response, &[201, 202, 204]).await.map(drop);
        }
        self.send_in_parts(&session, &endpoint).await
    }

    async fn begin(&self, session: &Session, endpoint: &Endpoint) -> Result<Url, Failure> {
        let path = format!("{}/blobs/uploads/", self.image.repository());
        let url = endpoint.url(&path, self.image.host())?;
        let scope = push_scope(&self.image);
        let make = |client: &Client| client.post(url.clone()).header(CONTENT_LENGTH, 0);
        let response = session
            .send_authorized(endpoint, subject(&self.image, &scope), make)
            .await?;
        upload_url(&accept(session, response, &[202]).await?)
    }

    async fn send_in_parts(&self, session: &Session, endpoint: &Endpoint) -> Result<(), Failure> {
        let mut location = self.begin(session, endpoint).await?;
        let mut at = 0;
        while at < self.size {
            let end = self.size.min(at + PART);
            let part = self.body(at, end);
            let response = self
                .transmit(session, endpoint, (Method::PATCH, location), part)
                .await?;
            location = upload_url(&accept(session, response, &[202, 204]).await?)?;
            at = end;
        }
        let last = (Method::PUT, self.finished(&location));
        let response = self
            .transmit(session, endpoint, last, self.body(at, at))
            .await?;
        accept(session, response, &[201, 204]).await.map(drop)
    }

    fn finished(&self, location: &Url) -> Url {
        let mut url = location.clone();
        url.query_pairs_mut()
            .append_pair("digest", &self.digest.to_string());
        url
    }

    fn body(&self, at: u64, end: u64) -> Content {
        let source = match &self.source {
            Source::Bytes(bytes) => Source::Bytes(bytes.slice(at as usize..end as usize)),
            Source::File(file) => Source::File(Arc::clone(file)),
        };
        Content { source, at, end }
    }

    /// Sends a part. Its authorization was renewed by the request before it, so it is sent once.
    async fn transmit(
        &self,
        session: &Session,
        endpoint: &Endpoint,
        (method, url): (Method, Url),
        content: Content,
    ) -> Result<Response, Failure> {
        let scope = push_scope(&self.image);
        let length = content.end - content.at;
        let make = |client: &Client| {
            let request = client
                .request(method.clone(), url.clone())
                .header(CONTENT_LENGTH, length)
                .header(CONTENT_TYPE, "application/octet-stream");
            let request = if method == Method::PATCH {
                let range = format!("{}-{}", content.at, content.end.saturating_sub(1));
                request.header(CONTENT_RANGE, range)
            } else {
                request
            };
            if length == 0 {
                request
            } else {
                request.body(content.stream(&session.handle))
            }
        };
        let patience = session.config.stall_timeout + sending_time(length);
        if url.origin() == endpoint.base.origin() {
            session
                .send_patiently(endpoint, subject(&self.image, &scope), patience, make)
                .await
        } else {
            session.send_foreign(endpoint, &url, patience, make).await
        }
    }
}

/// A range of a blob, turned into a request body anew for each attempt.
struct Content {
    source: Source,
    at: u64,
    end: u64,
}

impl Content {
    fn stream(&self, handle: &tokio::runtime::Handle) -> Body {
        let file = match &self.source {
            Source::Bytes(bytes) => return Body::from(bytes.clone()),
            Source::File(file) => Arc::clone(file),
        };
        let (sender, receiver) = mpsc::channel(4);
        let (at, end) = (self.at, self.end);
        handle.spawn_blocking(move || send_pieces(&file, at, end, &sender));
        Body::wrap_stream(ReceiverStream::new(receiver))
    }
}

/// Reads the file until its end or until the request is gone.
fn send_pieces(file: &File, mut at: u64, end: u64, to: &mpsc::Sender<std::io::Result<Bytes>>) {
    while at < end {
        let mut piece = vec![0; PIECE.min((end - at) as usize)];
        let read = file.read_exact_at(&mut piece, at);
        at += piece.len() as u64;
        let failed = read.is_err();
        if to.blocking_send(read.map(|()| Bytes::from(piece))).is_err() || failed {
            return;
        }
    }
}
