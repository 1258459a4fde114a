//! A checkpoint of ours becomes an archive: CRIU's images, the configuration, and what the container
//! has changed in its root file system, where that is an overlay.

mod diff;
mod overlay;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::archive::{
    CHECKPOINT, CONFIG_DUMP, Compression, DELETED_FILES, DUMP_LOG, Packer, ROOTFS_DIFF, SPEC_DUMP,
    STATS_DUMP,
};
use crate::error::{Error, Result};
use crate::import::processor_features;
use crate::metadata::ConfigDump;
use diff::write_diff;
use overlay::layers_of;

/// What is exported.
#[derive(Debug)]
pub struct Exported<'a> {
    /// Directory of CRIU's images; its own name is of no interest.
    pub images: &'a Path,
    /// The container's `config.json`.
    pub config: &'a Path,
    /// Its root file system.
    pub rootfs: &'a Path,
    /// What is said of it; features of the processor are added.
    pub container: ConfigDump,
}

/// Writes an archive to `path`, which is there as a whole or not at all. `work` is a directory for
/// what is in the making. Nothing may change meanwhile.
///
/// # Errors
/// A file cannot be read or written; the root file system is an overlay with features that a diff
/// cannot say. Nothing is left then.
pub fn write_archive(
    exported: &Exported<'_>,
    path: &Path,
    work: &Path,
    compression: Compression,
) -> Result<()> {
    let draft = work.join("archive");
    let mut file = create(&draft)?;
    pack(exported, &mut file, work, compression)?;
    file.sync_all().map_err(Error::io("write", &draft))?;
    fs::rename(&draft, path).map_err(Error::io("rename", path))
}

fn pack(
    exported: &Exported<'_>,
    output: &mut File,
    work: &Path,
    compression: Compression,
) -> Result<()> {
    let mut packer = Packer::new(io::BufWriter::new(output), compression)?;
    let cpuinfo = "/proc/cpuinfo";
    let features = fs::read_to_string(cpuinfo).map_err(Error::io("read", cpuinfo))?;
    let container = ConfigDump {
        processor_features: processor_features(&features),
        ..exported.container.clone()
    };
    packer.add_bytes(CONFIG_DUMP, &json(&container)?)?;
    let spec = fs::read(exported.config).map_err(Error::io("read", exported.config))?;
    packer.add_bytes(SPEC_DUMP, &spec)?;
    for name in [DUMP_LOG, STATS_DUMP] {
        let path = exported.images.join(name);
        if path.exists() {
            packer.add_path(Path::new(name), &path)?;
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    packer.add_path(Path::new(CHECKPOINT), exported.images)?;
    if let Some(layers) = layers_of(exported.rootfs)? {
        let path = work.join(ROOTFS_DIFF);
        let deleted = write_diff(&layers, create(&path)?)?;
        packer.add_path(Path::new(ROOTFS_DIFF), &path)?;
        if !deleted.is_empty() {
            packer.add_bytes(DELETED_FILES, &json(&deleted)?)?;
        }
    }
    let mut output = packer.finish()?;
    io::Write::flush(&mut output).map_err(Error::io("write", "the archive"))
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::malformed(CONFIG_DUMP, e))
}

fn create(path: &Path) -> Result<File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))
}

/// What the annotations of a `config.json` say of the image of a container, in the words of
/// containerd, CRI-O and OCI.
pub fn image_of(config: &Value) -> Option<&str> {
    const NAMES: [&str; 4] = [
        "io.kubernetes.cri.image-name",
        "io.kubernetes.cri-o.ImageName",
        "io.kubernetes.cri-o.Image",
        "org.opencontainers.image.ref.name",
    ];
    let annotations = config.get("annotations")?;
    NAMES
        .iter()
        .find_map(|name| annotations.get(name)?.as_str())
}
