//! Whole content from a registry: manifests, and blobs as verified streams.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue,
};
use reqwest::{Method, Response};
use tokio::sync::mpsc;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

use super::failure::Failure;
use super::hosts::{Capability, Endpoint};
use super::manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Document, MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST,
};
use super::range;
use super::reference::ImageRef;
use super::registry::{Registry, Session, pull_scope, subject};

/// What describes a layer is asked for before anything depends on it: containerd can still pull the
/// whole image, so a registry that does not answer is given up sooner than in a read.
pub(super) const DISCOVERY_LIMIT: Duration = Duration::from_secs(8);
/// Pieces of a pulled blob that may wait for its reader.
const QUEUE: usize = 32;

/// A manifest or index as the registry sent it.
#[derive(Debug, Clone)]
pub struct FetchedManifest {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes, which have that digest.
    pub bytes: Vec<u8>,
}

impl FetchedManifest {
    /// Parses it; `what` names it in errors.
    pub fn document(&self, what: &str) -> Result<Document> {
        Document::parse(&self.bytes, &self.media_type, what)
    }
}

impl Registry {
    /// The manifest or index that `image` names. By a digest its bytes are checked.
    pub fn manifest(&self, image: &ImageRef) -> Result<FetchedManifest> {
        self.manifest_within(self.session.config.deadline, image)
    }

    /// The same within `limit`, or the configured deadline if that is shorter.
    pub(super) fn manifest_within(
        &self,
        limit: Duration,
        image: &ImageRef,
    ) -> Result<FetchedManifest> {
        let (session, image) = (Arc::clone(&self.session), image.clone());
        self.block(async move {
            let key = image.manifest_key();
            let by_tag = image.digest().is_none();
            let capability = if by_tag {
                Capability::Resolve
            } else {
                Capability::Pull
            };
            session
                .attempt_within(
                    session.config.deadline.min(limit),
                    &image,
                    capability,
                    &format!("manifest {key}"),
                    |session, endpoint| manifest_from(session, endpoint, image.clone()),
                )
                .await
        })
    }

    /// Length in bytes of the blob `digest` in `image`'s repository, or none when it is not there.
    pub fn blob_size(&self, image: &ImageRef, digest: &Digest) -> Result<Option<u64>> {
        let (session, image, digest) = (Arc::clone(&self.session), image.clone(), *digest);
        let asked = self.block(async move {
            session
                .attempt_within(
                    session.config.deadline.min(DISCOVERY_LIMIT),
                    &image,
                    Capability::Pull,
                    &format!("size of blob {digest}"),
                    |s, e| size_from(s, e, image.clone(), digest, pull_scope(&image)),
                )
                .await
        });
        match asked {
            Ok(size) => Ok(Some(size)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Streams the blob of `descriptor` from `image`'s repository. The reader resumes a broken
    /// transfer, and fails at the end unless length and digest are those of the descriptor.
    /// It must be read on a thread that may block.
    pub fn pull(&self, image: &ImageRef, descriptor: &Descriptor) -> BlobReader {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let transfer = Transfer {
            session: Arc::clone(&self.session),
            image: image.clone(),
            digest: descriptor.digest,
            size: descriptor.size,
        };
        self.session.handle.spawn(transfer.run(sender));
        BlobReader {
            receiver,
            piece: Bytes::new(),
            hasher: Some(Hasher::new()),
            left: descriptor.size,
            expected: descriptor.digest,
            what: format!("blob {} of {}", descriptor.digest, image.name()),
        }
    }
}

async fn manifest_from(
    session: Arc<Session>,
    endpoint: Arc<Endpoint>,
    image: ImageRef,
) -> Result<FetchedManifest, Failure> {
    let mut headers = HeaderMap::new();
    for media_type in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX] {
        headers.append(ACCEPT, HeaderValue::from_static(media_type));
    }
    let path = format!("{}/manifests/{}", image.repository(), image.manifest_key());
    let scope = pull_scope(&image);
    let request = (Method::GET, path.as_str());
    let (response, _) = session
        .get(&endpoint, subject(&image, &scope), request, &headers)
        .await?;
    if response.status().as_u16() != 200 {
        return Err(session.refusal(response).await);
    }
    let header = |name| {
        response
            .headers()
            .get(name)
            .and_then(|v: &HeaderValue| v.to_str().ok())
    };
    let media_type = header(CONTENT_TYPE).and_then(|value| value.split(';').next());
    let media_type = media_type.unwrap_or_default().trim().to_owned();
    let bytes = session.body(response, MAX_MANIFEST).await?;
    let digest = Digest::of(&bytes);
    match image.digest() {
        Some(expected) if expected != digest => Err(Failure::Digest {
            expected: expected.to_string(),
            actual: digest.to_string(),
        }),
        _ => Ok(FetchedManifest {
            media_type,
            digest,
            bytes,
        }),
    }
}

/// Asks for a blob's length; `scope` may be one that allows pushing.
pub(super) async fn size_from(
    session: Arc<Session>,
    endpoint: Arc<Endpoint>,
    image: ImageRef,
    digest: Digest,
    scope: String,
) -> Result<u64, Failure> {
    let path = format!("{}/blobs/{digest}", image.repository());
    let request = (Method::HEAD, path.as_str());
    let headers = HeaderMap::new();
    let (response, _) = session
        .get(&endpoint, subject(&image, &scope), request, &headers)
        .await?;
    if response.status().as_u16() != 200 {
        return Err(session.refusal(response).await);
    }
    let length = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    length
        .and_then(|length| length.parse().ok())
        .ok_or_else(|| Failure::Protocol("no Content-Length".into()))
}

/// The sending half of a pull.
struct Transfer {
    session: Arc<Session>,
    image: ImageRef,
    digest: Digest,
    size: u64,
}

impl Transfer {
    /// Ends when all is sent, the reader is gone, or no attempt brings anything further.
    async fn run(self, sender: mpsc::Sender<Result<Bytes>>) {
        let mut at = 0;
        loop {
            let before = at;
            let failure = match self.open(at).await {
                Ok(response) => match self.forward(response, &mut at, &sender).await {
                    Ok(()) => return,
                    Err(failure) => failure,
                },
                Err(error) => {
                    // The reader may be gone; nobody else is there to be told.
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            if at == before || !failure.is_transient() {
                let what = format!("pull of blob {} of {}", self.digest, self.image.name());
                let _ = sender.send(Err(failure.into_error(what))).await;
                return;
            }
            tracing::debug!(blob = %self.digest, at, %failure, "pull is resumed");
        }
    }

    async fn open(&self, at: u64) -> Result<Response> {
        let action = format!("pull of blob {}", self.digest);
        self.session
            .attempt(
                &self.image,
                Capability::Blob,
                &action,
                |session, endpoint| {
                    open_from(
                        session,
                        endpoint,
                        self.image.clone(),
                        self.digest,
                        (at, self.size),
                    )
                },
            )
            .await
    }

    async fn forward(
        &self,
        response: Response,
        at: &mut u64,
        sender: &mpsc::Sender<Result<Bytes>>,
    ) -> Result<(), Failure> {
        let mut pieces = self.session.pieces(response);
        while let Some(piece) = pieces.next().await? {
            *at += piece.len() as u64;
            if sender.send(Ok(piece)).await.is_err() || *at > self.size {
                return Ok(());
            }
        }
        if *at < self.size {
            let reason = format!("blob ends after {at} of {} bytes", self.size);
            return Err(Failure::Unreachable(reason));
        }
        Ok(())
    }
}

async fn open_from(
    session: Arc<Session>,
    endpoint: Arc<Endpoint>,
    image: ImageRef,
    digest: Digest,
    (at, size): (u64, u64),
) -> Result<Response, Failure> {
    let mut headers = HeaderMap::new();
    if at > 0 {
        let value = HeaderValue::from_str(&range::request(at, size - at))
            .map_err(|error| Failure::Protocol(error.to_string()))?;
        headers.insert(reqwest::header::RANGE, value);
    }
    let path = format!("{}/blobs/{digest}", image.repository());
    let scope = pull_scope(&image);
    let request = (Method::GET, path.as_str());
    let (response, _) = session
        .get(&endpoint, subject(&image, &scope), request, &headers)
        .await?;
    if !response.status().is_success() {
        return Err(session.refusal(response).await);
    }
    if at > 0 {
        let header = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok());
        range::check(response.status().as_u16(), header, at, size - at, size)?;
    }
    Ok(response)
}

/// The receiving half of a pull.
pub struct BlobReader {
    receiver: mpsc::Receiver<Result<Bytes>>,
    piece: Bytes,
    /// None once the end was reached and checked.
    hasher: Option<Hasher>,
    left: u64,
    expected: Digest,
    what: String,
}

impl BlobReader {
    fn check_end(&mut self) -> Result<()> {
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        if self.left > 0 {
            let reason = format!("ends {} bytes too early", self.left);
            return Err(Error::Malformed {
                what: self.what.clone(),
                reason,
            });
        }
        self.expected.expect(hasher.finish(), &self.what)
    }

    fn accept(&mut self, piece: Bytes) -> Result<()> {
        let length = piece.len() as u64;
        self.left = self
            .left
            .checked_sub(length)
            .ok_or_else(|| Error::Malformed {
                what: self.what.clone(),
                reason: "is longer than its manifest says".into(),
            })?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        self.piece = piece;
        Ok(())
    }
}

impl Read for BlobReader {
    /// Errors carry the crate's [`Error`] inside.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.accept(piece.map_err(io::Error::other)?),
                None => {
                    return self.check_end().map(|()| 0).map_err(io::Error::other);
                }
            }
            .map_err(io::Error::other)?;
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
