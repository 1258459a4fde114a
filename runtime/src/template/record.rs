//! What is kept about a template: `template.json` beside its images.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::state::ContainerId;

/// The only version of the record so far.
pub(crate) const VERSION: u32 = 1;

/// Where a clone's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryMode {
    /// All of it is copied before the clone runs.
    Eager,
    /// It is a copy-on-write mapping of the template's page file, which all clones share.
    Share,
    /// A server puts each page of it there when it is touched for the first time.
    Uffd,
}

impl MemoryMode {
    /// The mode whose images this one takes.
    pub(crate) fn images(self) -> Self {
        match self {
            Self::Uffd => Self::Eager,
            mode => mode,
        }
    }
}

impl fmt::Display for MemoryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eager => "eager",
            Self::Share => "share",
            Self::Uffd => "uffd",
        })
    }
}

impl FromStr for MemoryMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "eager" => Ok(Self::Eager),
            "share" => Ok(Self::Share),
            "uffd" => Ok(Self::Uffd),
            _ => Err(Error::InvalidArgument(format!(
                "invalid memory mode {text:?}: eager, share or uffd"
            ))),
        }
    }
}

/// A template, as its record says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Template {
    /// Version of this document.
    pub(crate) version: u32,
    /// Its name.
    pub name: ContainerId,
    /// When it was made (RFC 3339).
    pub created: String,
    /// The bundle of the container that it was made of.
    pub bundle: PathBuf,
    /// How clones may have its memory.
    pub modes: Vec<MemoryMode>,
    /// The container ran under the rules that make sharing exact.
    pub guarded: bool,
    /// Bytes of memory that a clone has of its own however it starts.
    pub own_memory: u64,
    /// Bytes of memory that clones in the mode `share` have together.
    pub shared_memory: u64,
    /// Bytes of memory that clones in the mode `uffd` are given before they touch it.
    #[serde(default)]
    pub hot_memory: u64,
    /// Allow unix sockets whose peer is outside the container.
    pub(crate) ext_unix_sk: bool,
    /// Keep file locks.
    pub(crate) file_locks: bool,
    /// The file systems in memory, whose content is kept in `tmpfs/0`, `tmpfs/1`, …
    pub(crate) filesystems: Vec<KeptFilesystem>,
    /// Each file of images, by its path in the template.
    pub(crate) files: BTreeMap<String, FileFacts>,
    /// The configuration of that container.
    pub config: Spec,
}

/// A tmpfs of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct KeptFilesystem {
    /// Where it is mounted, with symlinks followed.
    pub(crate) destination: String,
    /// Its options, as `mount(2)` takes them.
    pub(crate) options: String,
}

/// What a file has to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileFacts {
    /// Bytes.
    pub(crate) size: u64,
    /// SHA-256, in hexadecimal digits; of the page file, that of each page that is not zero, after
    /// its place (eight bytes, the lowest first).
    pub(crate) sha256: String,
}

impl Template {
    /// Refuses what another version has written, and names that lead elsewhere.
    pub(crate) fn check(&self, name: &ContainerId) -> std::result::Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {} is not {VERSION}", self.version));
        }
        if self.name != *name {
            return Err(format!("it is of the template {}", self.name));
        }
        let leads_away = |path: &&String| {
            let parts = path.split('/');
            path.starts_with('/') || parts.clone().any(|part| matches!(part, "" | "." | ".."))
        };
        if let Some(path) = self.files.keys().find(leads_away) {
            return Err(format!("files: {path:?} is no path in a template"));
        }
        for filesystem in &self.filesystems {
            let destination = &filesystem.destination;
            if !destination.starts_with('/') || destination.contains('\0') {
                return Err(format!("filesystems: {destination:?} is no path"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(change: impl FnOnce(&mut serde_json::Value)) -> std::result::Result<(), String> {
        let mut text = serde_json::json!({
            "version": 1, "name": "t", "created": "", "bundle": "/b", "modes": ["eager"],
            "guarded": false, "ownMemory": 0, "sharedMemory": 0,
            "extUnixSk": false, "fileLocks": false,
            "filesystems": [{"destination": "/dev", "options": ""}],
            "files": {"eager/core-1.img": {"size": 1, "sha256": ""}},
            "config": {"ociVersion": "1.2.0"},
        });
        change(&mut text);
        let record: Template = serde_json::from_value(text).map_err(|e| e.to_string())?;
        record.check(&"t".parse().expect("a name"))
    }

    #[test]
    fn a_record_that_leads_elsewhere_is_refused() {
        assert_eq!(record(|_| ()), Ok(()));
        let refused = |change: fn(&mut serde_json::Value)| record(change).expect_err("refused");
        assert!(refused(|text| text["version"] = 2.into()).contains("version 2"));
        assert!(refused(|text| text["name"] = "u".into()).contains("template u"));
        assert!(refused(|text| text["more"] = 1.into()).contains("more"));
        for path in ["/etc/x", "eager/../x", "", "eager//x"] {
            let files = |text: &mut serde_json::Value| {
                text["files"] = serde_json::json!({path: {"size": 1, "sha256": ""}});
            };
            assert!(record(files).expect_err(path).contains("no path"), "{path}");
        }
    }
}
