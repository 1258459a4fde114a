//! What engines write beside CRIU's images, as far as it is of use here.

use std::fs::File;
use std::io::{Read as _, Seek as _};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::archive::{
    BIND_MOUNTS, CONFIG_DUMP, NETWORK_STATUS, SPEC_DUMP, STATUS_DUMP, decompressed, read_members,
};
use crate::error::{Error, Result};
use crate::files::{Files, LIMITS};
use crate::images::shown;

/// `config.dump`: the fields that containerd, CRI-O and podman have in common, and ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigDump {
    /// The container's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image of its root file system.
    pub rootfs_image_name: String,
    /// That image with its digest.
    pub rootfs_image_ref: String,
    /// The image's id.
    #[serde(rename = "rootfsImageID")]
    pub rootfs_image_id: String,
    /// The runtime, by the name that the engine has for it.
    pub runtime: String,
    /// When the container was created, RFC 3339.
    pub created_time: String,
    /// When the checkpoint was made, RFC 3339.
    pub checkpointed_at: String,
    /// What the processor could do, in the words of `/proc/cpuinfo`; only we write it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processor_features: Vec<String>,
}

/// Largest `config.dump` of an archive, in bytes.
const CONFIG_MAX: u64 = 1 << 20;

/// Reads `config.dump` of an archive, which `name` names in errors and which is read to its end.
///
/// # Errors
/// The archive is damaged, or has no such file.
pub fn config_of(archive: &File, name: &str) -> Result<ConfigDump> {
    let malformed = |e: &dyn std::fmt::Display| Error::malformed(name, e);
    let mut found = None;
    let mut input = decompressed(archive).map_err(|e| malformed(&e))?;
    read_members(&mut input, name, LIMITS, &mut |member, content| {
        if member.name.as_os_str() == CONFIG_DUMP {
            let mut text = Vec::new();
            let read = content.take(CONFIG_MAX).read_to_end(&mut text);
            read.map_err(|e| malformed(&e))?;
            let parsed = serde_json::from_slice(&text);
            found = Some(parsed.map_err(|e| Error::refused(name, CONFIG_DUMP, e.to_string()))?);
        }
        Ok(())
    })?;
    drop(input);
    let mut archive = archive;
    archive.rewind().map_err(|e| malformed(&e))?;
    found.ok_or_else(|| malformed(&format_args!("{CONFIG_DUMP} is missing")))
}

/// Parses a JSON file of a checkpoint; none if it is not there.
///
/// # Errors
/// It is not JSON, or not of this form.
pub(crate) fn json<T: DeserializeOwned>(files: &Files, name: &str) -> Result<Option<T>> {
    let parse = |content| {
        let parsed = serde_json::from_slice(content);
        parsed.map_err(|e| Error::malformed(shown(files, name), e))
    };
    files.get(name)?.map(parse).transpose()
}

/// Reads `config.dump`.
///
/// # Errors
/// It is not of its form.
pub(crate) fn config_dump(files: &Files) -> Result<Option<ConfigDump>> {
    json(files, CONFIG_DUMP)
}

/// Reads `spec.dump`.
///
/// # Errors
/// It is not JSON.
pub(crate) fn spec_dump(files: &Files) -> Result<Option<Value>> {
    json(files, SPEC_DUMP)
}

/// The engine that has written a checkpoint, by the files that only it writes; none if no engine has.
pub(crate) fn engine(files: &Files, spec: Option<&Value>) -> Option<&'static str> {
    let annotations = spec.and_then(|spec| spec.get("annotations"));
    let manager = annotations.and_then(|all| all.get("io.container.manager")?.as_str());
    let has = |name| files.sizes().contains_key(name);
    match manager {
        Some("cri-o") => Some("CRI-O"),
        Some("libpod") => Some("Podman"),
        _ if has(STATUS_DUMP) => Some("containerd"),
        _ if has(BIND_MOUNTS) => Some("CRI-O"),
        _ if has(NETWORK_STATUS) => Some("Podman"),
        _ if has(CONFIG_DUMP) => Some("xebec"),
        _ => None,
    }
}
