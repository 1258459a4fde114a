//! A layer blob in a registry, read by ranges: the way of every cold read of a lazy file.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, Url};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::mount::Blobs;

use super::failure::Failure;
use super::hosts::{Capability, Endpoint};
use super::range;
use super::reference::ImageRef;
use super::registry::{Registry, Session, pull_scope, subject};
use super::source::{BlobSource, check_range};

/// How long a redirect's target is used directly. Signed URLs live for minutes; a target that
/// stops answering before is asked for again at once.
const REMEMBER: Duration = Duration::from_secs(120);
/// Memory set aside for an answer at once; chunks are smaller, whole small layers may be larger.
const FIRST_ALLOCATION: u64 = 16 << 20;

/// One blob of one repository, readable by ranges from any thread.
#[derive(Clone)]
pub struct RemoteBlob(Arc<Blob>);

struct Blob {
    session: Arc<Session>,
    image: ImageRef,
    digest: Digest,
    size: u64,
    scope: String,
    path: String,
    /// Where each endpoint (by its API root) last sent us.
    targets: Mutex<Vec<(Url, Url, Instant)>>,
}

impl Registry {
    /// The blob `digest` of `size` bytes in `image`'s repository. Nothing is asked yet.
    pub fn blob(&self, image: &ImageRef, digest: &Digest, size: u64) -> Arc<RemoteBlob> {
        Arc::new(RemoteBlob(Arc::new(Blob {
            session: Arc::clone(&self.session),
            image: image.clone(),
            digest: *digest,
            size,
            scope: pull_scope(image),
            path: format!("{}/blobs/{digest}", image.repository()),
            targets: Mutex::default(),
        })))
    }
}

impl Blobs for Registry {
    /// A size of 0 stands for one that the caller was not told; the registry is asked then.
    fn blob(&self, image: &ImageRef, layer: &Digest, size: u64) -> Result<Arc<dyn BlobSource>> {
        let size = match size {
            0 => self
                .blob_size(image, layer)?
                .ok_or_else(|| Error::NotFound(format!("blob {layer} of {}", image.name())))?,
            known => known,
        };
        Ok(Registry::blob(self, image, layer, size))
    }
}

impl RemoteBlob {
    /// The blob's digest.
    pub fn digest(&self) -> &Digest {
        &self.0.digest
    }

    /// Reads exactly `len` bytes at `offset`, or fails within the deadline.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        Arc::clone(&self.0).read(offset, len).await
    }
}

impl BlobSource for RemoteBlob {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.0.session.block(Arc::clone(&self.0).read(offset, len))
    }
}

impl Blob {
    async fn read(self: Arc<Self>, offset: u64, len: u64) -> Result<Vec<u8>> {
        check_range(&format!("blob {}", self.digest), self.size, offset, len)?;
        if len == 0 {
            return Ok(Vec::new());
        }
        let action = format!("read of {len} bytes at {offset} of blob {}", self.digest);
        self.session
            .attempt(&self.image, Capability::Pull, &action, |_, endpoint| {
                Arc::clone(&self).read_from(endpoint, offset, len)
            })
            .await
    }

    async fn read_from(
        self: Arc<Self>,
        endpoint: Arc<Endpoint>,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, Failure> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&range::request(offset, len))
            .map_err(|error| Failure::Protocol(error.to_string()))?;
        headers.insert(RANGE, value);
        if let Some(target) = self.target(&endpoint) {
            let make =
                |client: &reqwest::Client| client.get(target.clone()).headers(headers.clone());
            let response = self
                .session
                .send_foreign(&target, self.session.config.stall_timeout, make)
                .await?;
            if !response.status().is_client_error() && !response.status().is_redirection() {
                return self.receive(response, offset, len).await;
            }
            // The signed URL has expired.
            self.remember(&endpoint, None);
        }
        let subject = subject(&self.image, &self.scope);
        let request = (Method::GET, self.path.as_str());
        let (response, target) = self
            .session
            .get(&endpoint, subject, request, &headers)
            .await?;
        let data = self.receive(response, offset, len).await?;
        self.remember(&endpoint, target);
        Ok(data)
    }

    async fn receive(
        &self,
        mut response: Response,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, Failure> {
        let status = response.status();
        if !status.is_success() && status.as_u16() != 416 {
            return Err(self.session.refusal(response).await);
        }
        let header = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok());
        range::check(status.as_u16(), header, offset, len, self.size)?;
        // The manifest's size is not to be trusted with memory before bytes have come.
        let mut data = Vec::with_capacity(len.min(FIRST_ALLOCATION) as usize);
        while let Some(chunk) = self.session.chunk(&mut response).await? {
            data.extend_from_slice(&chunk);
            if data.len() as u64 > len {
                return Err(Failure::Protocol(format!(
                    "more than the {len} bytes asked for"
                )));
            }
        }
        if (data.len() as u64) < len {
            let got = data.len();
            return Err(Failure::Unreachable(format!(
                "answer ends after {got} of {len} bytes"
            )));
        }
        Ok(data)
    }

    fn target(&self, endpoint: &Endpoint) -> Option<Url> {
        let targets = self
            .targets
            .lock()
            .expect("no panic while targets are held");
        targets
            .iter()
            .find(|(base, _, since)| *base == endpoint.base && since.elapsed() < REMEMBER)
            .map(|(_, target, _)| target.clone())
    }

    fn remember(&self, endpoint: &Endpoint, target: Option<Url>) {
        let mut targets = self
            .targets
            .lock()
            .expect("no panic while targets are held");
        targets.retain(|(base, ..)| *base != endpoint.base);
        targets.extend(target.map(|target| (endpoint.base.clone(), target, Instant::now())));
    }
}
