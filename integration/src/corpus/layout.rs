//! Writing an OCI image layout: blobs by digest, layers as gzipped tars.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tree::Tree;
use crate::error::{Error, Result};
use crate::hash::hex;

/// No file of an image is younger (2023-11-14T22:13:20Z).
const EPOCH: u64 = 1_700_000_000;
const CREATED: &str = "2023-11-14T22:13:20Z";

/// A layer's blob and the digest of its tar.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) descriptor: Value,
    pub(super) diff_id: String,
}

/// How the tar of a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
    None,
}

/// An image layout directory under construction.
#[derive(Debug)]
pub(super) struct Layout {
    directory: PathBuf,
}

impl Layout {
    pub(super) fn create(directory: &Path) -> Result<Self> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(Error::file("create", &blobs))?;
        let marker = directory.join("oci-layout");
        fs::write(&marker, r#"{"imageLayoutVersion":"1.0.0"}"#)
            .map_err(Error::file("write", &marker))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn blob(&self, hex: &str) -> PathBuf {
        self.directory.join("blobs/sha256").join(hex)
    }

    /// Writes the entries `paths` of the tree at `root` as one layer.
    pub(super) fn add_layer<'a>(
        &self,
        root: &Path,
        tree: &Tree,
        paths: impl Iterator<Item = &'a PathBuf>,
    ) -> Result<Layer> {
        self.add_archive(Packing::Gzip, |output| {
            let mut tar = tar::Builder::new(output);
            let mut links = HashMap::new();
            for path in paths {
                append(&mut tar, root, path, tree, &mut links)?;
            }
            tar.finish().map_err(Error::system("archive a layer"))
        })
    }

    /// Writes the tar that `fill` makes as one layer.
    pub(super) fn add_archive(
        &self,
        packing: Packing,
        fill: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<Layer> {
        let temporary = self.directory.join("blobs/layer");
        let failed = || Error::file("write", &temporary);
        let file = File::create(&temporary).map_err(Error::file("create", &temporary))?;
        let mut blob = Hashing::new(BufWriter::new(file));
        let (diff_id, kind) = match packing {
            Packing::Gzip => {
                let gzip = GzBuilder::new().mtime(0);
                let mut tar = Hashing::new(gzip.write(&mut blob, Compression::new(6)));
                fill(&mut tar)?;
                let (gzip, diff_id, _) = tar.finish();
                gzip.finish().map_err(failed())?;
                (diff_id, "application/vnd.oci.image.layer.v1.tar+gzip")
            }
            Packing::Zstd => {
                let zstd = zstd::Encoder::new(&mut blob, 3).map_err(failed())?;
                let mut tar = Hashing::new(zstd);
                fill(&mut tar)?;
                let (zstd, diff_id, _) = tar.finish();
                zstd.finish().map_err(failed())?;
                (diff_id, "application/vnd.oci.image.layer.v1.tar+zstd")
            }
            Packing::None => {
                let mut tar = Hashing::new(&mut blob);
                fill(&mut tar)?;
                (tar.finish().1, "application/vnd.oci.image.layer.v1.tar")
            }
        };
        let (mut file, digest, size) = blob.finish();
        file.flush().map_err(failed())?;
        let blob = self.blob(&digest);
        fs::rename(&temporary, &blob).map_err(Error::file("rename", &temporary))?;
        Ok(Layer {
            descriptor: descriptor(kind, &digest, size),
            diff_id: format!("sha256:{diff_id}"),
        })
    }

    fn add_json(&self, kind: &str, value: &Value) -> Result<Value> {
        let bytes = value.to_string().into_bytes();
        let digest = hex(&Sha256::digest(&bytes));
        let blob = self.blob(&digest);
        fs::write(&blob, &bytes).map_err(Error::file("write", &blob))?;
        Ok(descriptor(kind, &digest, bytes.len() as u64))
    }

    /// Writes configuration, manifest and index: the layout is complete then.
    pub(super) fn finish(self, name: &str, layers: &[Layer], command: &[&str]) -> Result<()> {
        let architecture = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let history: Vec<_> = layers
            .iter()
            .map(|_| json!({"created": CREATED, "created_by": "xebec corpus"}))
            .collect();
        let configuration = json!({
            "created": CREATED, "architecture": architecture, "os": "linux",
            "config": {"Env": [path, "LC_ALL=C.UTF-8"], "Cmd": command},
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
            },
            "history": history,
        });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": self.add_json("application/vnd.oci.image.config.v1+json", &configuration)?,
            "layers": layers.iter().map(|layer| &layer.descriptor).collect::<Vec<_>>(),
        });
        let mut entry = self.add_json(kind, &manifest)?;
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        let path = self.directory.join("index.json");
        fs::write(&path, index.to_string()).map_err(Error::file("write", &path))
    }
}

fn descriptor(kind: &str, hex: &str, size: u64) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": size})
}

/// Appends one entry; a second name of an inode that is there already becomes a hard link.
fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    root: &Path,
    path: &Path,
    tree: &Tree,
    links: &mut HashMap<u64, PathBuf>,
) -> Result<()> {
    let Some(metadata) = tree.get(path) else {
        return Ok(());
    };
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0).min(EPOCH));
    header.set_size(0);
    let source = root.join(path);
    let appended = if metadata.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, path, io::empty())
    } else if metadata.is_symlink() {
        let target = fs::read_link(&source).map_err(Error::file("read link", &source))?;
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, path, target)
    } else if !metadata.is_file() {
        return Ok(());
    } else if let Some(first) = links.get(&metadata.ino()) {
        header.set_entry_type(tar::EntryType::Link);
        tar.append_link(&mut header, path, first)
    } else {
        if metadata.nlink() > 1 {
            links.insert(metadata.ino(), path.to_owned());
        }
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(metadata.len());
        let file = File::open(&source).map_err(Error::file("open", &source))?;
        tar.append_data(&mut header, path, file)
    };
    appended.map_err(Error::file("archive", &source))
}

/// Hashes and counts what it passes on.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    count: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            count: 0,
        }
    }

    fn finish(self) -> (W, String, u64) {
        (self.inner, hex(&self.hash.finalize()), self.count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::corpus::tree::walk;

    fn build(root: &Path, into: &Path) -> Value {
        let tree = walk(root).unwrap();
        let layout = Layout::create(into).unwrap();
        let layer = layout.add_layer(root, &tree, tree.keys()).unwrap();
        layout.finish("x", &[layer], &["/a"]).unwrap();
        serde_json::from_slice(&fs::read(into.join("index.json")).unwrap()).unwrap()
    }

    #[test]
    fn the_same_tree_gives_the_same_image_and_blobs_match_their_names() {
        let work = tempfile::tempdir().unwrap();
        let root = work.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("a"), "text").unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        symlink("a", root.join("c")).unwrap();
        let first = build(&root, &work.path().join("1"));
        assert_eq!(first, build(&root, &work.path().join("2")));
        assert_eq!(
            first["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"],
            "x"
        );
        for blob in fs::read_dir(work.path().join("1/blobs/sha256")).unwrap() {
            let path = blob.unwrap().path();
            let digest = hex(&Sha256::digest(fs::read(&path).unwrap()));
            assert_eq!(path.file_name().unwrap().to_str(), Some(&*digest));
        }
    }
}
