//! Checkpoints that are sealed, or kept in a store: CRIU dumps into memory, from where they go.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use xebec_checkpoints::sealed::{is_sealed, seal, unseal};
use xebec_checkpoints::store::{DEFAULT_ROOT, Keep, Label, Limits, Store, check_name};
use xebec_checkpoints::{Identities, PrivateDir, Recipients};
use xebec_runtime::{CheckpointRequest, Error, Result, Runtime, rfc3339};

use super::kept::refused;
use super::list::print;
use super::{duration, size};

/// What makes a part of a checkpoint only, or something else of it.
const OTHER_WAYS: [&str; 5] = ["pre_dump", "parent_path", "page_server", "lazy_pages", "to"];

/// Where stores are.
#[derive(Args, Debug)]
pub(super) struct Root {
    /// Directory of the store
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT, env = "XEBEC_STORE_ROOT", hide_env_values = true)]
    store_root: PathBuf,
}

impl Root {
    pub(super) fn open(&self) -> Result<Store> {
        Store::open(&self.store_root).map_err(|e| refused(&e))
    }
}

/// What a store may hold.
#[derive(Args, Debug)]
pub(super) struct LimitArguments {
    /// Checkpoints of one container that stay
    #[arg(long = "keep-count", value_name = "NUMBER")]
    count: Option<u32>,
    /// How old checkpoints may be, such as 72h
    #[arg(long = "keep-age", value_name = "TIME", value_parser = age)]
    age: Option<u64>,
    /// What all checkpoints may take of the disk, such as 10G
    #[arg(long = "keep-bytes", value_name = "SIZE", value_parser = bytes)]
    bytes: Option<u64>,
    /// What stays free on the disk, such as 2G
    #[arg(long = "keep-free", value_name = "SIZE", value_parser = bytes)]
    free: Option<u64>,
}

impl LimitArguments {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            count: self.count,
            age: self.age,
            bytes: self.bytes,
            free: self.free,
        }
    }
}

fn age(text: &str) -> std::result::Result<u64, String> {
    let found = duration::parse(text).map(|length| length.as_secs());
    found.ok_or_else(|| "a time with its unit is needed, such as 90m or 72h".to_owned())
}

fn bytes(text: &str) -> std::result::Result<u64, String> {
    let found = size::parse(text).and_then(|size| u64::try_from(size).ok());
    found.ok_or_else(|| "a size is needed, such as 500M or 10G".to_owned())
}

/// What becomes of a checkpoint.
#[derive(Args, Debug)]
pub(super) struct Keeping {
    /// Encrypt everything for an age recipient, or for those in a file; may be given again
    #[arg(long, value_name = "RECIPIENT|FILE", conflicts_with_all = OTHER_WAYS, action = clap::ArgAction::Append)]
    encrypt_to: Vec<String>,
    /// Keep it in the store of checkpoints, which have their common parts once, and print its name
    #[arg(long, conflicts_with_all = OTHER_WAYS, conflicts_with = "image_path")]
    store: bool,
    #[command(flatten)]
    root: Root,
    /// Its name in the store [default: the container's and the time]
    #[arg(long, value_name = "NAME", requires = "store")]
    name: Option<String>,
    /// Have no limit of the store remove it
    #[arg(long, requires = "store")]
    pin: bool,
    #[command(flatten)]
    limits: LimitArguments,
}

impl Keeping {
    /// Makes a checkpoint, the way that was asked for.
    pub(super) fn checkpoint(self, runtime: &Runtime, request: CheckpointRequest) -> Result<()> {
        if !self.store && self.encrypt_to.is_empty() {
            return runtime.checkpoint(request);
        }
        let keeper = Keeper::new(self, &request)?;
        keeper.checkpoint(runtime, request)?;
        match keeper.destination {
            Destination::Store { label, .. } => print(&format!("{}\n", label.name)).map(drop),
            Destination::File(_) => Ok(()),
        }
    }
}

/// Everything that can be refused has been.
struct Keeper {
    memory: PrivateDir,
    recipients: Option<Recipients>,
    destination: Destination,
}

enum Destination {
    File(PathBuf),
    Store {
        store: Store,
        label: Label,
        pinned: bool,
        limits: Limits,
    },
}

impl Keeper {
    fn new(keeping: Keeping, request: &CheckpointRequest) -> Result<Self> {
        let recipients = match &*keeping.encrypt_to {
            [] => None,
            named => Some(Recipients::parse(named).map_err(|e| refused(&e))?),
        };
        let destination = if keeping.store {
            let now = SystemTime::now();
            let container = request.id.to_string();
            let name = keeping
                .name
                .unwrap_or_else(|| default_name(&container, now));
            check_name(&name).map_err(|e| refused(&e))?;
            Destination::Store {
                store: Store::make(&keeping.root.store_root).map_err(|e| refused(&e))?,
                label: Label {
                    name,
                    container,
                    created: now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
                },
                pinned: keeping.pin,
                limits: keeping.limits.limits(),
            }
        } else {
            Destination::File(request.criu.image_path.clone())
        };
        Ok(Self {
            memory: PrivateDir::new().map_err(|e| refused(&e))?,
            recipients,
            destination,
        })
    }

    fn checkpoint(&self, runtime: &Runtime, mut request: CheckpointRequest) -> Result<()> {
        request.criu.image_path = self.memory.path();
        request.criu.sealed = self.recipients.is_some();
        if request.leave_running {
            // It need not stand still for this.
            runtime.checkpoint(request)?;
            self.keep()
        } else {
            runtime.checkpoint_then(request, &mut || self.keep())
        }
    }

    fn keep(&self) -> Result<()> {
        let images = self.memory.path();
        let recipients = self.recipients.as_ref();
        match (&self.destination, recipients) {
            (Destination::File(directory), Some(recipients)) => {
                seal(&images, directory, recipients)
            }
            // Only what is sealed is put into a file.
            (Destination::File(_), None) => Ok(()),
            (
                Destination::Store {
                    store,
                    label,
                    pinned,
                    limits,
                },
                _,
            ) => {
                let keep = Keep {
                    label: label.clone(),
                    recipients,
                    pinned: *pinned,
                    limits: *limits,
                };
                store.save(&images, &keep).map(drop)
            }
        }
        .map_err(|e| refused(&e))
    }
}

/// Sorts by time, and two of a second differ.
fn default_name(container: &str, now: SystemTime) -> String {
    let time = rfc3339(now).replace(['-', ':'], "");
    let millisecond = time.get(..19).unwrap_or(&time);
    format!("{container}-{millisecond}")
}

/// Where a restore finds a checkpoint that is sealed or kept.
#[derive(Args, Debug)]
pub(super) struct Found {
    /// A checkpoint in the store
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image_path", "import"])]
    store: Option<String>,
    #[command(flatten)]
    root: Root,
    /// File with an age identity that opens a sealed checkpoint; may be given again
    #[arg(long, value_name = "FILE", conflicts_with = "import", action = clap::ArgAction::Append)]
    identity: Vec<PathBuf>,
}

impl Found {
    /// Puts what has to be unpacked or opened first into memory, all of it verified; nothing, if the
    /// images lie there as CRIU reads them.
    pub(super) fn fetch(&self, image_path: &std::path::Path) -> Result<Option<PrivateDir>> {
        if self.store.is_none() && !is_sealed(image_path) {
            if self.identity.is_empty() {
                return Ok(None);
            }
            let reason = format!("{}: no sealed checkpoint is here", image_path.display());
            return Err(Error::InvalidArgument(reason));
        }
        let identities = Identities::read(&self.identity).map_err(|e| refused(&e))?;
        let memory = PrivateDir::new().map_err(|e| refused(&e))?;
        match &self.store {
            Some(name) => self.root.open()?.load(name, &identities, &memory.path()),
            None => unseal(image_path, &identities, &memory.path()),
        }
        .map_err(|e| refused(&e))?;
        Ok(Some(memory))
    }
}
