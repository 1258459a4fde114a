//! The artifacts that refer to a manifest (OCI distribution specification 1.1).

use std::sync::{Arc, PoisonError};

use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};

use crate::digest::Digest;
use crate::discover::Manifests;
use crate::error::{Error, Result};

use super::failure::Failure;
use super::hosts::{Capability, Endpoint};
use super::manifest::{Descriptor, Document, MAX_MANIFEST, OCI_INDEX};
use super::pull::{DISCOVERY_LIMIT, FetchedManifest};
use super::reference::ImageRef;
use super::registry::{Registry, Session, pull_scope, subject};

/// Most pages of one listing that are read; a registry has no reason to need more.
const MAX_PAGES: usize = 16;

impl Manifests for Registry {
    fn manifest(&self, image: &ImageRef) -> Result<FetchedManifest> {
        self.manifest_within(DISCOVERY_LIMIT, image)
    }

    /// The answer is filtered here as well: a registry need not do it.
    fn referrers(
        &self,
        image: &ImageRef,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>> {
        let unlisting = || {
            let known = self.session.unlisting.lock();
            known.unwrap_or_else(PoisonError::into_inner)
        };
        let mut found = if unlisting().contains(image.host()) {
            self.tagged(image, subject)?
        } else {
            match self.listing(image, subject, artifact_type) {
                // Who has the API answers with an empty list.
                Err(Error::NotFound(_)) => {
                    unlisting().insert(image.host().to_owned());
                    self.tagged(image, subject)?
                }
                listed => listed?,
            }
        };
        found.retain(|descriptor| descriptor.artifact_type() == Some(artifact_type));
        Ok(found)
    }
}

impl Registry {
    /// The referrers API.
    fn listing(
        &self,
        image: &ImageRef,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>> {
        let (session, image, subject) = (Arc::clone(&self.session), image.clone(), *subject);
        // Of what may stand in a media type only `+` means something else in a query.
        let filter = artifact_type.replace('+', "%2B");
        let path = format!(
            "{}/referrers/{subject}?artifactType={filter}",
            image.repository()
        );
        self.block(async move {
            let limit = session.config.deadline.min(DISCOVERY_LIMIT);
            let action = format!("referrers of {subject}");
            session
                .attempt_within(limit, &image, Capability::Resolve, &action, |s, e| {
                    pages_from(s, e, image.clone(), path.clone())
                })
                .await
        })
    }

    /// The index under the referrers tag, which clients keep up where there is no such API.
    fn tagged(&self, image: &ImageRef, subject: &Digest) -> Result<Vec<Descriptor>> {
        let tag = image.referrers_tag(subject);
        match self.manifest_within(DISCOVERY_LIMIT, &tag) {
            Ok(fetched) => match fetched.document(&format!("referrers {tag}"))? {
                Document::Index(index) => Ok(index.manifests),
                Document::Manifest(_) => Ok(Vec::new()),
            },
            Err(Error::NotFound(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

async fn pages_from(
    session: Arc<Session>,
    endpoint: Arc<Endpoint>,
    image: ImageRef,
    path: String,
) -> Result<Vec<Descriptor>, Failure> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(OCI_INDEX));
    let scope = pull_scope(&image);
    let (mut found, mut next) = (Vec::new(), Some(path));
    for _ in 0..MAX_PAGES {
        let Some(path) = next.take() else {
            break;
        };
        let request = (Method::GET, path.as_str());
        let (response, _) = session
            .get(&endpoint, subject(&image, &scope), request, &headers)
            .await?;
        if response.status().as_u16() != 200 {
            return Err(session.refusal(response).await);
        }
        let link = response.headers().get(LINK);
        next = link.and_then(|link| next_page(link.to_str().ok()?, image.repository()));
        let body = session.body(response, MAX_MANIFEST).await?;
        match Document::parse(&body, OCI_INDEX, "list of referrers") {
            Ok(Document::Index(index)) => found.extend(index.manifests),
            Ok(Document::Manifest(_)) => return Err(Failure::Protocol("not an index".into())),
            Err(error) => return Err(Failure::Protocol(error.to_string())),
        }
    }
    Ok(found)
}

/// The path below the API root of the next page, out of a `Link` header (RFC 8288). One that leads
/// elsewhere than to this repository's referrers is not followed.
fn next_page(link: &str, repository: &str) -> Option<String> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !parameters.replace('"', "").contains("rel=next") {
        return None;
    }
    let prefix = format!("{repository}/referrers/");
    let at = target.find(&format!("/v2/{prefix}"))?;
    Some(target[at + "/v2/".len()..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listings_next_page_is_followed_within_the_repository_only() {
        let next = |link| next_page(link, "a/b");
        assert_eq!(
            next(r#"</v2/a/b/referrers/sha256:1?n=2&last=x>; rel="next""#).as_deref(),
            Some("a/b/referrers/sha256:1?n=2&last=x")
        );
        assert_eq!(
            next("<https://h/v2/a/b/referrers/d?x>; rel=next").as_deref(),
            Some("a/b/referrers/d?x")
        );
        for link in [
            "",
            "<>",
            "/v2/a/b/referrers/d",
            "</v2/a/b/referrers/d>; rel=prev",
            "</v2/c/d/referrers/d>; rel=next",
            "</v2/a/b/blobs/d>; rel=next",
        ] {
            assert_eq!(next(link), None, "{link}");
        }
    }
}
