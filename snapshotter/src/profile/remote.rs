//! Profiles beside their image in its registry: artifacts that refer to the image's manifest.
//!
//! The blob is the JSON document in one zstd frame. Lists of referrers tell its digest and length,
//! and how many runs it was merged from, so that one request finds the best of several and a second
//! one has it. Anybody who may push to the repository may have written it: it is a hint, bounded,
//! and believed only as far as [`super::Profile`] is.

use std::collections::BTreeMap;
use std::io::Read as _;

use super::{MAX_LEN, Profile};
use crate::digest::Digest;
use crate::discover::Image;
use crate::error::{Error, Result};
use crate::fetch::artifact::Artifact;
use crate::fetch::manifest::Descriptor;
use crate::mount::Blobs;

/// Type of the artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.xebec.profile.v1";
/// Media type of its blob.
pub const MEDIA_TYPE: &str = "application/vnd.xebec.start.profile.v1+zstd";
/// Longest blob that is read: several times what the largest profile packs to.
const MAX_PACKED: u64 = 4 << 20;
/// Largest window that a frame may need, as a power of two.
const MAX_WINDOW: u32 = 24;
const LEVEL: i32 = 9;
/// Most artifacts that are looked at until one is of use.
const MAX_TRIES: usize = 3;

const BLOB_DIGEST: &str = "dev.xebec.profile.digest";
const BLOB_SIZE: &str = "dev.xebec.profile.size";
const RUNS: &str = "dev.xebec.profile.runs";

/// The profile that lies beside an image, the one from most runs if there are several.
pub fn find(image: &Image) -> Result<Option<Profile>> {
    let mut artifacts = image.referrers(ARTIFACT_TYPE)?;
    artifacts.sort_by_key(|artifact| std::cmp::Reverse(number(artifact, RUNS)));
    for artifact in artifacts.iter().take(MAX_TRIES) {
        match read(image, artifact) {
            Ok(profile) => return Ok(Some(profile)),
            Err(error @ (Error::Malformed { .. } | Error::DigestMismatch { .. })) => {
                tracing::warn!(image = %image.reference(), artifact = %artifact.digest, %error,
                    "a profile in the registry is of no use");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn number(artifact: &Descriptor, annotation: &str) -> Option<u64> {
    artifact.annotations.get(annotation)?.parse().ok()
}

fn read(image: &Image, artifact: &Descriptor) -> Result<Profile> {
    let blob = match told(artifact) {
        Some(told) => told,
        None => listed(image, artifact)?,
    };
    let what = format!("profile {} of {}", blob.digest, image.reference());
    let malformed = |reason: String| Error::Malformed {
        what: what.clone(),
        reason,
    };
    if blob.size == 0 || blob.size > MAX_PACKED {
        return Err(malformed(format!("{} bytes", blob.size)));
    }
    let packed = image.blob(&blob)?.read_range(0, blob.size)?;
    blob.digest.verify(&packed, &what)?;
    let json = unpack(&packed).map_err(|error| malformed(error.to_string()))?;
    let profile = Profile::parse(&json, &what)?;
    if profile.layers() != image.chain() {
        return Err(malformed("it is of other layers".to_owned()));
    }
    Ok(profile)
}

/// The blob as a list of referrers tells of it.
fn told(artifact: &Descriptor) -> Option<Descriptor> {
    let digest = artifact.annotations.get(BLOB_DIGEST)?.parse().ok()?;
    Some(descriptor(digest, number(artifact, BLOB_SIZE)?))
}

/// The blob as the artifact's manifest tells of it.
fn listed(image: &Image, artifact: &Descriptor) -> Result<Descriptor> {
    let layers = image.artifact(artifact.digest)?.layers;
    let mut blobs = layers.into_iter();
    blobs
        .find(|blob| blob.media_type == MEDIA_TYPE)
        .ok_or_else(|| Error::Malformed {
            what: format!("artifact {} of {}", artifact.digest, image.reference()),
            reason: "holds no profile".to_owned(),
        })
}

fn descriptor(digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: MEDIA_TYPE.to_owned(),
        digest,
        size,
        annotations: BTreeMap::new(),
        platform: None,
        other: BTreeMap::new(),
    }
}

/// One byte more than may be read of a document that is too long.
fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
    decoder.window_log_max(MAX_WINDOW)?;
    let mut json = Vec::new();
    decoder.take(MAX_LEN as u64 + 1).read_to_end(&mut json)?;
    Ok(json)
}

/// Puts `profile`, merged with the one that is there, beside its image; nothing if that one holds
/// all of it. The artifact's digest.
pub fn push(blobs: &dyn Blobs, image: &Image, mut profile: Profile) -> Result<Option<Digest>> {
    if profile.layers() != image.chain() {
        return Err(Error::FailedPrecondition(format!(
            "the profile is not one of {} as it is now",
            image.reference()
        )));
    }
    if let Some(known) = find(image)? {
        if known.covers(&profile) {
            return Ok(None);
        }
        profile.merge(&known);
    }
    let packed = zstd::bulk::compress(&profile.to_json()?, LEVEL)
        .map_err(|error| Error::Internal(format!("pack a profile: {error}")))?;
    let blob = descriptor(Digest::of(&packed), packed.len() as u64);
    let annotations = [
        (BLOB_DIGEST, blob.digest.to_string()),
        (BLOB_SIZE, blob.size.to_string()),
        (RUNS, profile.runs().to_string()),
    ];
    let artifact = Artifact {
        artifact_type: ARTIFACT_TYPE,
        subject: image.descriptor(),
        blobs: &[blob],
        annotations: annotations
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
    };
    blobs
        .publish(image.reference(), &artifact, &[&packed])
        .map(Some)
}
