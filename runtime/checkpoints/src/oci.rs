//! Checkpoint images: an OCI image layout whose one layer is an archive, with annotations
//! `org.criu.checkpoint.*` by which engines know it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::archive::{Compression, decompressed};
use crate::beneath::Room;
use crate::error::{Error, Result};
use crate::metadata::ConfigDump;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation by which an image is known as a checkpoint, as containerd and CRI-O have it, and podman.
const NAMES: [&str; 2] = [
    "org.criu.checkpoint.container.name",
    "io.podman.annotations.checkpoint.name",
];
/// Largest manifest that is read, in bytes.
const DOCUMENT_MAX: u64 = 4 << 20;
/// Indexes within indexes.
const DEPTH_MAX: u32 = 3;

type Annotations = BTreeMap<String, String>;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    annotations: Annotations,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    platform: Option<serde_json::Value>,
}

/// A manifest or an index, as far as they differ in what is read.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: Annotations,
}

/// Whether a directory is an image layout.
pub fn is_layout(directory: &Path) -> bool {
    directory.join("oci-layout").is_file()
}

/// Opens the archive in a checkpoint image of a layout, which is verified first; `name` is the
/// image's, and needed where there are several.
///
/// # Errors
/// There is no such image, it is no checkpoint, or a digest does not match.
pub fn open_archive(directory: &Path, name: Option<&str>) -> Result<File> {
    let layout = Layout { directory };
    let index = document(&directory.join("index.json"))?;
    let image = select(&index.manifests, name).ok_or_else(|| {
        layout.refuse(match name {
            Some(name) => format!("there is no image {name:?}"),
            None => format!("there are {} images: name one", index.manifests.len()),
        })
    })?;
    let mut annotations = image.annotations.clone();
    let layers = layout.layers(image, &mut annotations, 0)?;
    if !NAMES.iter().any(|name| annotations.contains_key(*name)) {
        return Err(layout.refuse("the image is not a checkpoint"));
    }
    match layers.as_slice() {
        [layer] => layout.blob(layer),
        layers => Err(layout.refuse(format!("a checkpoint has one layer, not {}", layers.len()))),
    }
}

fn select<'a>(images: &'a [Descriptor], name: Option<&str>) -> Option<&'a Descriptor> {
    match (name, images) {
        (None, [image]) => Some(image),
        (None, _) => None,
        (Some(name), _) => images.iter().find(|image| {
            let own = image.annotations.get(REF_NAME);
            own.is_some_and(|own| {
                own == name || own.rsplit_once(':').is_some_and(|(_, tag)| tag == name)
            })
        }),
    }
}

struct Layout<'a> {
    directory: &'a Path,
}

impl Layout<'_> {
    fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::malformed(self.directory.display().to_string(), reason.into())
    }

    /// The layers of a manifest, or of the one manifest of an index.
    fn layers(
        &self,
        image: &Descriptor,
        annotations: &mut Annotations,
        depth: u32,
    ) -> Result<Vec<Descriptor>> {
        if image.size > DOCUMENT_MAX || depth > DEPTH_MAX {
            return Err(self.refuse(format!("{} is no manifest", image.digest)));
        }
        self.blob(image)?;
        let document = document(&self.blob_path(&image.digest)?)?;
        annotations.extend(document.annotations);
        match (image.media_type.as_str(), document.manifests.as_slice()) {
            (INDEX, [manifest]) => self.layers(manifest, annotations, depth + 1),
            (INDEX, manifests) => {
                let reason = format!("{} has {} images, not one", image.digest, manifests.len());
                Err(self.refuse(reason))
            }
            _ => Ok(document.layers),
        }
    }

    fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let hex = hex.ok_or_else(|| self.refuse(format!("{digest:?} is no digest")))?;
        Ok(self.directory.join("blobs/sha256").join(hex))
    }

    /// Opens a blob after its size and digest have been found right.
    fn blob(&self, descriptor: &Descriptor) -> Result<File> {
        let path = self.blob_path(&descriptor.digest)?;
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let mut hash = Hashing::new(io::sink());
        let mut limited = (&file).take(descriptor.size.saturating_add(1));
        let size = io::copy(&mut limited, &mut hash).map_err(Error::io("read", &path))?;
        if size != descriptor.size || hash.digest() != descriptor.digest {
            return Err(self.refuse(format!("{} is not what it is called", descriptor.digest)));
        }
        file.seek(SeekFrom::Start(0))
            .map_err(Error::io("read", &path))?;
        Ok(file)
    }
}

/// Parses a small JSON file.
fn document(path: &Path) -> Result<Document> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut text = Vec::new();
    file.take(DOCUMENT_MAX)
        .read_to_end(&mut text)
        .map_err(Error::io("read", path))?;
    let shown = path.display().to_string();
    serde_json::from_slice(&text).map_err(|e| Error::malformed(shown, e))
}

/// Passes bytes on, and hashes them.
struct Hashing<W> {
    output: W,
    hash: Sha256,
    size: u64,
}

impl<W> Hashing<W> {
    fn new(output: W) -> Self {
        Self {
            output,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn digest(&self) -> String {
        let hash = self.hash.clone().finalize();
        let mut digest = "sha256:".to_owned();
        for byte in hash {
            // Writing to a string does not fail.
            let _ = std::fmt::Write::write_fmt(&mut digest, format_args!("{byte:02x}"));
        }
        digest
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Makes a layout at `directory`, which must not be there, of the archive `archive`; `name` is what
/// the image is called in it. The annotations are on its manifest, where CRI-O looks for them, and on
/// an index around it, where containerd does.
///
/// # Errors
/// A file cannot be read or written: nothing is left then.
pub fn write_layout(
    directory: &Path,
    name: &str,
    archive: &mut File,
    container: &ConfigDump,
) -> Result<()> {
    let room = Room::make(directory)?;
    let annotations = annotations(container);
    let manifest = put_image(directory, archive, &annotations)?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [manifest],
        "annotations": annotations,
    });
    let mut index = put(directory, INDEX, &mut index.to_string().as_bytes())?;
    index.annotations = annotations;
    name_image(directory, index, name)?;
    room.keep();
    Ok(())
}

/// Makes a layout at `directory`, which must not be there, of one layer; `name` is what the image is
/// called in it.
///
/// # Errors
/// A file cannot be read or written: nothing is left then.
pub fn write_image(
    directory: &Path,
    name: &str,
    archive: &mut File,
    annotations: BTreeMap<String, String>,
) -> Result<()> {
    let room = Room::make(directory)?;
    let image = put_image(directory, archive, &annotations)?;
    name_image(
        directory,
        Descriptor {
            annotations,
            ..image
        },
        name,
    )?;
    room.keep();
    Ok(())
}

/// Stores an image of one layer in a layout whose index does not name it yet.
fn put_image(
    directory: &Path,
    archive: &mut File,
    annotations: &Annotations,
) -> Result<Descriptor> {
    fs::create_dir_all(directory.join("blobs/sha256")).map_err(Error::io("mkdir", directory))?;
    let diff_id = uncompressed_digest(archive)?;
    let layer = put(directory, &media_type(archive)?, archive)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = put(directory, CONFIG, &mut config.to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [layer],
        "annotations": annotations,
    });
    let image = put(directory, MANIFEST, &mut manifest.to_string().as_bytes())?;
    let platform = json!({"architecture": architecture, "os": "linux"});
    Ok(Descriptor {
        platform: Some(platform),
        ..image
    })
}

/// Gives the one image of a layout its name, with which the layout is complete.
fn name_image(directory: &Path, mut image: Descriptor, name: &str) -> Result<()> {
    let name = name.to_owned();
    image.annotations.insert(REF_NAME.to_owned(), name);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image]});
    let marker = json!({"imageLayoutVersion": "1.0.0"});
    for (name, document) in [("index.json", index), ("oci-layout", marker)] {
        let path = directory.join(name);
        fs::write(&path, document.to_string()).map_err(Error::io("write", &path))?;
    }
    Ok(())
}

/// What engines know a checkpoint image by.
fn annotations(container: &ConfigDump) -> Annotations {
    let pairs = [
        (NAMES[0], &container.name),
        (
            "org.criu.checkpoint.rootfsImageName",
            &container.rootfs_image_name,
        ),
        (
            "org.criu.checkpoint.rootfsImageID",
            &container.rootfs_image_id,
        ),
        ("org.criu.checkpoint.runtime.name", &container.runtime),
    ];
    let own = [
        ("org.criu.checkpoint.engine.name", "xebec".to_owned()),
        (
            "org.criu.checkpoint.engine.version",
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
    ];
    let given = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    let given = given.map(|(key, value)| (key, value.clone()));
    let all = given.chain(own);
    all.map(|(key, value)| (key.to_owned(), value)).collect()
}

fn media_type(archive: &mut File) -> Result<String> {
    let mut beginning = Vec::new();
    archive
        .take(4)
        .read_to_end(&mut beginning)
        .and_then(|_| archive.seek(SeekFrom::Start(0)))
        .map_err(Error::io("read", "archive"))?;
    Ok(match Compression::of(&beginning) {
        Compression::None => LAYER.to_owned(),
        Compression::Gzip => format!("{LAYER}+gzip"),
        Compression::Zstd => format!("{LAYER}+zstd"),
    })
}

fn uncompressed_digest(archive: &mut File) -> Result<String> {
    let mut hash = Hashing::new(io::sink());
    let copied = decompressed(&*archive).and_then(|mut input| io::copy(&mut input, &mut hash));
    copied
        .and_then(|_| archive.seek(SeekFrom::Start(0)))
        .map_err(Error::io("read", "archive"))?;
    Ok(hash.digest())
}

/// Stores a blob under its digest.
fn put(directory: &Path, media_type: &str, content: &mut dyn Read) -> Result<Descriptor> {
    let draft = directory.join("draft");
    let file = File::create(&draft).map_err(Error::io("create", &draft))?;
    let mut hashing = Hashing::new(file);
    io::copy(content, &mut hashing).map_err(Error::io("write", &draft))?;
    let digest = hashing.digest();
    let hex = digest.trim_start_matches("sha256:");
    let path = directory.join("blobs/sha256").join(hex);
    fs::rename(&draft, &path).map_err(Error::io("rename", &path))?;
    Ok(Descriptor {
        media_type: media_type.to_owned(),
        size: hashing.size,
        digest,
        annotations: Annotations::new(),
        platform: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(parent: &Path, archive: &[u8]) -> PathBuf {
        let path = parent.join("a.tar");
        fs::write(&path, archive).expect("written");
        let container = ConfigDump {
            name: "web".to_owned(),
            rootfs_image_name: "busybox".to_owned(),
            ..ConfigDump::default()
        };
        let directory = parent.join("layout");
        let mut file = File::open(path).expect("there");
        write_layout(&directory, "web:1", &mut file, &container).expect("a layout");
        directory
    }

    #[test]
    fn an_archive_comes_back_from_an_image() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = layout(parent.path(), b"an archive");
        for name in [None, Some("web:1"), Some("1")] {
            let mut text = String::new();
            let mut file = open_archive(&directory, name).expect("opened");
            file.read_to_string(&mut text).expect("read");
            assert_eq!(text, "an archive");
        }
        let error = open_archive(&directory, Some("other")).expect_err("refused");
        assert!(error.to_string().contains("no image \"other\""), "{error}");
    }

    #[test]
    fn engines_find_the_annotations_on_the_manifest_and_on_the_index() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = layout(parent.path(), b"an archive");
        let read = |path: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
        };
        let blob = |document: &serde_json::Value| {
            let digest = document["manifests"][0]["digest"]
                .as_str()
                .expect("a digest");
            read(&directory.join("blobs").join(digest.replace(':', "/")))
        };
        let index = blob(&read(&directory.join("index.json")));
        assert_eq!(index["mediaType"], INDEX);
        assert_eq!(index["manifests"][0]["platform"]["os"], "linux");
        for document in [&index, &blob(&index)] {
            assert_eq!(document["annotations"][NAMES[0]], "web", "{document}");
        }
    }

    #[test]
    fn an_image_with_a_flipped_byte_is_refused() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = layout(parent.path(), b"an archive");
        let blobs = directory.join("blobs/sha256");
        for entry in fs::read_dir(blobs).expect("listed") {
            let path = entry.expect("an entry").path();
            let whole = fs::read(&path).expect("read");
            let mut flipped = whole.clone();
            flipped[3] ^= 1;
            fs::write(&path, flipped).expect("written");
            // The configuration says nothing that is of use here.
            let is_config = String::from_utf8_lossy(&whole).contains("diff_ids");
            assert_eq!(
                open_archive(&directory, None).is_ok(),
                is_config,
                "{}",
                path.display()
            );
            fs::write(&path, whole).expect("written");
        }
        open_archive(&directory, None).expect("whole again");
    }

    #[test]
    fn digests_that_are_paths_are_refused() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = layout(parent.path(), b"an archive");
        let index = json!({"manifests": [{"mediaType": MANIFEST, "size": 1, "digest": "sha256:../../../etc/passwd"}]});
        fs::write(directory.join("index.json"), index.to_string()).expect("written");
        let error = open_archive(&directory, None)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("is no digest"), "{error}");
    }
}
