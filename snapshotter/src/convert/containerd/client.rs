//! Calls of containerd's API, which block.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::FieldMask;
use tokio::runtime::Runtime;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use xebec_proto::content::content_client::ContentClient;
use xebec_proto::content::{Info, InfoRequest, UpdateRequest};
use xebec_proto::images::images_client::ImagesClient;
use xebec_proto::images::{
    CreateImageRequest, Descriptor as Target, GetImageRequest, Image, UpdateImageRequest,
};
use xebec_proto::leases::leases_client::LeasesClient;
use xebec_proto::leases::{CreateRequest, DeleteRequest};

use super::ContainerdImage;
use super::transfer::{self, ContentBlob, ContentReader};
use crate::channel;
use crate::convert::undo::Undo;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::FetchedManifest;
use crate::fetch::manifest::{Descriptor, Document, MAX_MANIFEST};
use crate::formats::timestamp;

/// Limit of calls that move no content.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest message: as large as containerd sends.
const MAX_MESSAGE: usize = 16 << 20;
/// Prefix of labels that say what else a blob keeps alive.
const GC_REF: &str = "containerd.io/gc.ref.content";
/// Label with the time when a lease ends by itself, should we die before we end it.
const GC_EXPIRE: &str = "containerd.io/gc.expire";
const LEASE_LIFE: Duration = Duration::from_hours(24);

/// containerd, and the image in it that is meant.
pub(in crate::convert) struct Client {
    pub(super) runtime: Runtime,
    pub(super) content: ContentClient<Channel>,
    channel: Channel,
    image: ContainerdImage,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Connects, to read only.
    pub(in crate::convert) fn connect(image: &ContainerdImage) -> Result<Self> {
        let namespace = image.namespace.parse().map_err(|_| {
            Error::InvalidArgument(format!("containerd namespace {:?}", image.namespace))
        })?;
        let (runtime, channel) = channel::connect(&image.socket, "containerd")?;
        let content = ContentClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        Ok(Self {
            runtime,
            content,
            channel,
            image: image.clone(),
            namespace,
            lease: None,
        })
    }

    /// Connects to write: everything is held by a lease that ends with `undo`.
    pub(in crate::convert) fn with_lease(
        image: &ContainerdImage,
        undo: &Undo,
    ) -> Result<Arc<Self>> {
        let mut client = Self::connect(image)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let id = format!("xebec-convert-{}-{}", std::process::id(), now.as_nanos());
        client.lease = id.parse().ok();
        let client = Arc::new(client);
        let (leasing, ending) = (Arc::clone(&client), Arc::clone(&client));
        let ended = id.clone();
        undo.make(
            move || leasing.create_lease(&id, now + LEASE_LIFE),
            move || {
                if let Err(error) = ending.delete_lease(&ended) {
                    tracing::warn!(lease = ended, %error, "is left over");
                }
            },
        )?;
        Ok(client)
    }

    fn create_lease(&self, id: &str, end: Duration) -> Result<()> {
        let end = timestamp::format(end.as_secs() as i64, 0);
        let message = CreateRequest {
            id: id.to_owned(),
            labels: HashMap::from([(GC_EXPIRE.to_owned(), end)]),
        };
        let mut leases = LeasesClient::new(self.channel.clone());
        self.call("lease", leases.create(self.quick(message)))
            .map(drop)
    }

    fn delete_lease(&self, id: &str) -> Result<()> {
        let message = DeleteRequest {
            id: id.to_owned(),
            sync: false,
        };
        let mut leases = LeasesClient::new(self.channel.clone());
        self.call("lease", leases.delete(self.quick(message)))
            .map(drop)
    }

    /// The manifest or index that the image's name leads to.
    pub(in crate::convert) fn manifest(self: &Arc<Self>) -> Result<FetchedManifest> {
        let name = self.image.name.clone();
        let mut images = ImagesClient::new(self.channel.clone());
        let what = format!("image {} in namespace {}", name, self.image.namespace);
        let message = GetImageRequest { name };
        let answer = self.call(&what, images.get(self.quick(message)))?;
        let target = answer.image.and_then(|image| image.target);
        let target = target.ok_or_else(|| Error::NotFound(what.clone()))?;
        self.document(&target.media_type, target.digest.parse()?)
    }

    /// A manifest or index.
    pub(in crate::convert) fn document(
        self: &Arc<Self>,
        media_type: &str,
        digest: Digest,
    ) -> Result<FetchedManifest> {
        let what = format!("manifest {digest} of {}", self.image);
        let mut bytes = Vec::new();
        let limit = MAX_MANIFEST as u64;
        self.read(digest)
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| crate::convert::store::from_stream(error, &what))?;
        if bytes.len() > MAX_MANIFEST {
            let reason = format!("larger than {limit} bytes");
            return Err(Error::Malformed { what, reason });
        }
        digest.verify(&bytes, &what)?;
        Ok(FetchedManifest {
            media_type: media_type.to_owned(),
            digest,
            bytes,
        })
    }

    /// A blob as a stream, unverified.
    pub(in crate::convert) fn read(self: &Arc<Self>, digest: Digest) -> ContentReader {
        ContentReader::start(self, digest)
    }

    /// A blob by ranges.
    pub(in crate::convert) fn blob(self: &Arc<Self>, digest: Digest, size: u64) -> ContentBlob {
        ContentBlob::new(Arc::clone(self), digest, size)
    }

    pub(in crate::convert) fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let message = InfoRequest {
            digest: digest.to_string(),
        };
        let mut content = self.content.clone();
        match self.call(&self.blob_name(digest), content.info(self.quick(message))) {
            Ok(_) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stores a blob, and what its labels keep alive; one that is there only gets the labels.
    pub(in crate::convert) fn put(
        &self,
        digest: Digest,
        size: u64,
        content: impl Read + Send,
        labels: HashMap<String, String>,
    ) -> Result<()> {
        if transfer::write(self, (digest, size), content, &labels)? || labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|label| format!("labels.{label}"));
        let message = UpdateRequest {
            update_mask: Some(FieldMask {
                paths: paths.collect(),
            }),
            info: Some(Info {
                digest: digest.to_string(),
                labels,
                ..Info::default()
            }),
        };
        let mut content = self.content.clone();
        let updating = content.update(self.quick(message));
        self.call(&self.blob_name(&digest), updating).map(drop)
    }

    /// Stores a manifest or index with labels for all that it names.
    pub(in crate::convert) fn put_document(
        &self,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let what = format!("manifest {digest} of {}", self.image);
        let labels = gc_labels(&Document::parse(bytes, media_type, &what)?);
        self.put(digest, bytes.len() as u64, bytes, labels)?;
        Ok(digest)
    }

    /// Gives the image its name: from here on it is there.
    pub(in crate::convert) fn put_image(&self, target: &Descriptor) -> Result<()> {
        let image = Image {
            name: self.image.name.clone(),
            labels: HashMap::new(),
            target: Some(Target {
                media_type: target.media_type.clone(),
                digest: target.digest.to_string(),
                size: target.size as i64,
                annotations: target.annotations.clone().into_iter().collect(),
            }),
        };
        let mut images = ImagesClient::new(self.channel.clone());
        let what = self.image.to_string();
        let message = CreateImageRequest {
            image: Some(image.clone()),
        };
        match self.call(&what, images.create(self.quick(message))) {
            Err(Error::AlreadyExists(_)) => {}
            outcome => return outcome.map(drop),
        }
        let message = UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask {
                paths: vec!["target".to_owned()],
            }),
        };
        self.call(&what, images.update(self.quick(message)))
            .map(drop)
    }

    pub(super) fn blob_name(&self, digest: &Digest) -> String {
        format!("blob {digest} of {}", self.image)
    }

    /// A request in our namespace and with our lease.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        request
    }

    fn quick<T>(&self, message: T) -> Request<T> {
        let mut request = self.request(message);
        request.set_timeout(PATIENCE);
        request
    }

    fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = std::result::Result<tonic::Response<T>, Status>>,
    ) -> Result<T> {
        self.runtime
            .block_on(call)
            .map(tonic::Response::into_inner)
            .map_err(|status| refused(what, &status))
    }
}

/// containerd's answer as an error of ours.
pub(super) fn refused(what: &str, status: &Status) -> Error {
    let what = what.to_owned();
    match status.code() {
        Code::NotFound => Error::NotFound(format!("{what} in containerd")),
        Code::AlreadyExists => Error::AlreadyExists(what),
        Code::Unavailable | Code::DeadlineExceeded => Error::Unavailable {
            what,
            reason: format!("containerd: {}", status.message()),
        },
        _ => Error::Unusable {
            what,
            reason: format!("containerd: {}", status.message()),
        },
    }
}

/// Labels by which containerd's collector goes from a document to what it names.
fn gc_labels(document: &Document) -> HashMap<String, String> {
    let numbered = |kind: &str, parts: &[Descriptor]| -> Vec<(String, String)> {
        let label = |(number, part): (usize, &Descriptor)| {
            (format!("{GC_REF}.{kind}.{number}"), part.digest.to_string())
        };
        parts.iter().enumerate().map(label).collect()
    };
    match document {
        Document::Index(index) => numbered("m", &index.manifests).into_iter().collect(),
        Document::Manifest(manifest) => {
            let config = manifest.config.digest.to_string();
            let config = (format!("{GC_REF}.config"), config);
            let layers = numbered("l", &manifest.layers);
            layers.into_iter().chain([config]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_keeps_alive_all_that_it_names() {
        let digest = |name: &str| Digest::of(name.as_bytes()).to_string();
        let part =
            |name: &str| serde_json::json!({"mediaType": "t", "digest": digest(name), "size": 1});
        let labels = |document: serde_json::Value, media_type: &str| {
            let bytes = document.to_string();
            gc_labels(&Document::parse(bytes.as_bytes(), media_type, "x").unwrap())
        };
        let manifest = serde_json::json!({"schemaVersion": 2, "config": part("c"),
            "layers": [part("a"), part("b")]});
        let manifest = labels(manifest, crate::fetch::manifest::OCI_MANIFEST);
        assert_eq!(manifest.len(), 3);
        assert_eq!(manifest["containerd.io/gc.ref.content.l.1"], digest("b"));
        assert_eq!(manifest["containerd.io/gc.ref.content.config"], digest("c"));
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [part("m")]});
        let index = labels(index, crate::fetch::manifest::OCI_INDEX);
        assert_eq!(index["containerd.io/gc.ref.content.m.0"], digest("m"));
    }

    #[test]
    fn a_socket_that_nobody_listens_at_is_named() {
        let mut image = ContainerdImage::parse("h/x:v1").unwrap();
        image.socket = "/nowhere/containerd.sock".into();
        let error = Client::connect(&image).err().unwrap().to_string();
        assert!(error.contains("/nowhere/containerd.sock"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }
}
