//! A layer blob in a registry, read by ranges: the way of every cold read of a lazy file.

use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE};
use reqwest::{Method, Response, Url};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::mount::Blobs;

use super::artifact::Artifact;
use super::breaker::HostHealth;
use super::failure::Failure;
use super::hosts::{Capability, Endpoint, host_and_port};
use super::multipart::{self, Multipart};
use super::range;
use super::reference::ImageRef;
use super::registry::{Registry, Session, pull_scope, subject};
use super::several::Asking;
use super::source::{BlobSource, check_range};
use super::trust::Trust;

/// How long a redirect's target is used directly. Signed URLs live for minutes; a target that
/// stops answering before is asked for again at once.
const REMEMBER: Duration = Duration::from_mins(2);

/// Bytes a second that a read is given time for beyond the deadline.
const SLOW_LINE: u64 = 64 << 10;

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
    trust: Trust,
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
            trust: Trust::default(),
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

    fn publish(
        &self,
        image: &ImageRef,
        artifact: &Artifact<'_>,
        contents: &[&[u8]],
    ) -> Result<Digest> {
        for content in contents {
            if !self.has_blob(image, &Digest::of(content))? {
                self.push_bytes(image, content)?;
            }
        }
        self.push_artifact(image, artifact)
    }

    fn health(&self) -> Vec<HostHealth> {
        Registry::health(self)
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

    fn read_parts(&self, offset: u64, len: u64, part: &mut dyn FnMut(&[u8])) -> Result<()> {
        let range = offset..offset.saturating_add(len);
        self.read_ranges(slice::from_ref(&range), part)
    }

    fn read_ranges(&self, ranges: &[Range<u64>], part: &mut dyn FnMut(&[u8])) -> Result<()> {
        let (parts, arrived) = Parts::new();
        let (sender, outcome) = mpsc::sync_channel(1);
        let (blob, ranges) = (Arc::clone(&self.0), ranges.into());
        self.0.session.handle.spawn(async move {
            // The receiver waits until this has happened.
            let _ = sender.send(blob.stream(ranges, parts).await);
        });
        // Ends when the task has dropped its end of the channel.
        for bytes in arrived {
            part(&bytes);
        }
        outcome
            .recv()
            .unwrap_or_else(|_| Err(Error::Internal("the registry client has shut down".into())))
    }

    fn takes_several(&self) -> bool {
        let Blob { session, image, .. } = &*self.0;
        let first = session.first(image, Capability::Blob);
        first.is_some_and(|endpoint| session.several.offer(&self.0.asked(&endpoint)))
    }

    fn suspect(&self, offset: u64, len: u64) -> bool {
        let Blob { session, trust, .. } = &*self.0;
        let suspects = trust.suspect(&(offset..offset.saturating_add(len)));
        session.has_others(&self.0.image, Capability::Blob, &suspects)
    }

    fn convict(&self) {
        for host in self.0.trust.suspects() {
            self.0.session.breakers.convict(&host, &self.0.digest);
        }
    }
}

/// Where the bytes of an answer go. An attempt after a failed one asks for the rest only.
struct Parts {
    sender: mpsc::Sender<Bytes>,
    arrived: AtomicU64,
}

impl Parts {
    fn new() -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel();
        let arrived = AtomicU64::new(0);
        (Arc::new(Self { sender, arrived }), receiver)
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    fn push(&self, bytes: Bytes) {
        let len = bytes.len() as u64;
        self.arrived.fetch_add(len, Ordering::Relaxed);
        // Nobody listens any more when the reader has gone; the answer is then of no use.
        let _ = self.sender.send(bytes);
    }
}

impl Blob {
    async fn read(self: Arc<Self>, offset: u64, len: u64) -> Result<Vec<u8>> {
        let (parts, arrived) = Parts::new();
        let range = offset..offset.saturating_add(len);
        self.stream([range].into(), parts).await?;
        Ok(arrived.try_iter().collect::<Vec<Bytes>>().concat())
    }

    async fn stream(self: Arc<Self>, ranges: Arc<[Range<u64>]>, parts: Arc<Parts>) -> Result<()> {
        let mut len = 0;
        for range in &*ranges {
            let bytes = range.end - range.start;
            check_range(
                &format!("blob {}", self.digest),
                self.size,
                range.start,
                bytes,
            )?;
            len += bytes;
        }
        if len == 0 {
            return Ok(());
        }
        let offset = ranges[0].start;
        let action = format!("read of {len} bytes at {offset} of blob {}", self.digest);
        // A slow line is not an outage: what is long may take long, as long as it flows.
        let limit = self.session.config.deadline + Duration::from_secs(len / SLOW_LINE);
        let read = |_, endpoint| {
            Arc::clone(&self).read_from(endpoint, Arc::clone(&ranges), Arc::clone(&parts))
        };
        self.session
            .attempt_avoiding(
                &self.trust.suspects(),
                limit,
                &self.image,
                Capability::Blob,
                &action,
                read,
            )
            .await
    }

    /// Reads what has not arrived yet: at once, or one range after the other.
    async fn read_from(
        self: Arc<Self>,
        endpoint: Arc<Endpoint>,
        ranges: Arc<[Range<u64>]>,
        parts: Arc<Parts>,
    ) -> Result<(), Failure> {
        let mut one_by_one = false;
        loop {
            let before = parts.arrived();
            let rest = range::after(&ranges, before);
            let Some(first) = rest.first() else {
                return Ok(());
            };
            let asking = if one_by_one || rest.len() == 1 {
                None
            } else {
                self.session.several.ask(&self.asked(&endpoint))
            };
            let read = match asking {
                Some(asking) => self.read_several(&endpoint, &rest, &parts, asking).await,
                None => self.read_one(&endpoint, first, &parts).await.map(|()| true),
            };
            for sent in range::until(&rest, parts.arrived() - before) {
                self.trust.note(sent, endpoint.label());
            }
            one_by_one |= !read?;
        }
    }

    async fn read_one(
        &self,
        endpoint: &Endpoint,
        wanted: &Range<u64>,
        parts: &Parts,
    ) -> Result<(), Failure> {
        let (offset, len) = (wanted.start, wanted.end - wanted.start);
        let (response, target) = self.ask(endpoint, &range::request(offset, len)).await?;
        self.receive(response, offset, len, parts).await?;
        self.remember_new(endpoint, target);
        Ok(())
    }

    /// Asks for all of `wanted` in one request. Whether it made sense: if not, what has not arrived
    /// is to be asked for range by range.
    async fn read_several(
        &self,
        endpoint: &Endpoint,
        wanted: &[Range<u64>],
        parts: &Parts,
        asking: Asking,
    ) -> Result<bool, Failure> {
        let (before, mut target) = (parts.arrived(), None);
        let read = self.try_several(endpoint, wanted, parts, &mut target).await;
        let failure = match &read {
            Ok(()) => None,
            Err(Failure::Protocol(_)) => read.as_ref().err(),
            // A server may as well hang up when it sees such a request.
            Err(failure) if asking.is_first() && parts.arrived() == before => Some(failure),
            Err(_) => return read.map(|()| true),
        };
        if let Some(failure) = failure {
            tracing::debug!(host = endpoint.label(), %failure, "not asked for several ranges");
        }
        let by = target.as_ref().map(host_and_port);
        asking.learn(by.as_deref(), failure.is_none());
        self.remember_new(endpoint, target);
        Ok(read.is_ok())
    }

    async fn try_several(
        &self,
        endpoint: &Endpoint,
        wanted: &[Range<u64>],
        parts: &Parts,
        target: &mut Option<Url>,
    ) -> Result<(), Failure> {
        let asked = self.ask(endpoint, &range::request_several(wanted)).await?;
        *target = asked.1;
        let response = asked.0;
        if !response.status().is_success() && response.status().as_u16() != 416 {
            return Err(self.session.refusal(response).await);
        }
        let reader = self.reader(&response, wanted).map_err(Failure::Protocol)?;
        self.receive_several(response, reader, parts).await
    }

    /// What reads an answer to a request for several ranges.
    fn reader(&self, response: &Response, wanted: &[Range<u64>]) -> Result<Multipart, String> {
        let header = |name: HeaderName| response.headers().get(name)?.to_str().ok();
        let status = response.status().as_u16();
        if status != 206 {
            return Err(format!("status {status} to a request for several ranges"));
        }
        if let Some(boundary) = header(CONTENT_TYPE).and_then(multipart::boundary) {
            return Ok(Multipart::new(boundary, wanted, self.size));
        }
        let told = header(CONTENT_RANGE).ok_or("status 206 without ranges")?;
        Multipart::single(range::told(told, self.size)?, wanted, self.size)
    }

    async fn receive_several(
        &self,
        response: Response,
        mut reader: Multipart,
        parts: &Parts,
    ) -> Result<(), Failure> {
        let mut pieces = self.session.pieces(response);
        while let Some(piece) = pieces.next().await? {
            let give = |found| parts.push(piece.slice(found));
            reader.feed(&piece, give).map_err(Failure::Protocol)?;
        }
        if reader.is_complete() {
            return Ok(());
        }
        Err(Failure::Protocol(
            "the answer lacks some of the ranges".into(),
        ))
    }

    /// Asks for ranges; the answer, and the URL on another host that gave it.
    async fn ask(
        &self,
        endpoint: &Endpoint,
        ranges: &str,
    ) -> Result<(Response, Option<Url>), Failure> {
        let mut headers = HeaderMap::new();
        let value =
            HeaderValue::from_str(ranges).map_err(|error| Failure::Protocol(error.to_string()))?;
        headers.insert(RANGE, value);
        if let Some(target) = self.target(endpoint) {
            let make =
                |client: &reqwest::Client| client.get(target.clone()).headers(headers.clone());
            let response = self
                .session
                .send_foreign(endpoint, &target, self.session.config.stall_timeout, make)
                .await?;
            if !response.status().is_client_error() && !response.status().is_redirection() {
                return Ok((response, Some(target)));
            }
            // The signed URL has expired.
            self.remember(endpoint, None);
        }
        let subject = subject(&self.image, &self.scope);
        let request = (Method::GET, self.path.as_str());
        self.session.get(endpoint, subject, request, &headers).await
    }

    async fn receive(
        &self,
        response: Response,
        offset: u64,
        len: u64,
        parts: &Parts,
    ) -> Result<(), Failure> {
        let status = response.status();
        if !status.is_success() && status.as_u16() != 416 {
            return Err(self.session.refusal(response).await);
        }
        let is_whole = status.as_u16() == 200;
        if is_whole {
            range::check_whole(response.content_length(), offset, len, self.size)?;
        } else {
            let header = response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|value| value.to_str().ok());
            range::check(status.as_u16(), header, offset, len, self.size)?;
        }
        let (mut skip, mut got) = (if is_whole { offset } else { 0 }, 0);
        let mut pieces = self.session.pieces(response);
        while let Some(mut chunk) = pieces.next().await? {
            let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            chunk.advance(skipped);
            got += chunk.len() as u64;
            if is_whole && got >= len {
                // The rest is not downloaded: the connection is closed.
                chunk.truncate(chunk.len() - (got - len) as usize);
                parts.push(chunk);
                return Ok(());
            }
            if got > len {
                return Err(Failure::Protocol(format!(
                    "more than the {len} bytes asked for"
                )));
            }
            parts.push(chunk);
        }
        if got < len {
            return Err(Failure::Unreachable(format!(
                "answer ends after {got} of {len} bytes"
            )));
        }
        Ok(())
    }

    /// The host that is asked at first.
    fn asked(&self, endpoint: &Endpoint) -> String {
        let target = self.target(endpoint);
        target.map_or_else(|| endpoint.label(), |target| host_and_port(&target))
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

    /// Remembers a target, unless it is the one that is known: that one grows old.
    fn remember_new(&self, endpoint: &Endpoint, target: Option<Url>) {
        if self.target(endpoint).is_none() {
            self.remember(endpoint, target);
        }
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
