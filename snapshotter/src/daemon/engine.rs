//! The lazy engine, put together from the configuration and from what this host offers.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, MountMode, ProfilePull};
use crate::error::{Error, Result};
use crate::fetch::{Passed, Registry, RegistryConfig};
use crate::mount::{BackEnd, Keeping, Lazy, LazyConfig, probe};
use crate::store::{self, FsVerity, Sealing};

const FUSE: &str = "/dev/fuse";

/// Opens the lazy layers below the root, unless there is nothing to mount them with. No network is
/// used. The choice is logged: a silent full pull is the worst of all defaults.
pub(super) fn open(config: &Config, passed: Option<Arc<Passed>>) -> Result<Option<Arc<Lazy>>> {
    let root = config.root.join("lazy");
    let Some(back_end) = choose(config.mount, &root)? else {
        return Ok(None);
    };
    let keeping = Keeping {
        socket: keeper_socket(&config.address),
        deadline: Duration::from_secs(config.lazy.keeper_deadline),
    };
    let settings = LazyConfig {
        back_end,
        keeping: Some(keeping),
        sealing: sealing(config.store.fs_verity, &root),
        background: (&config.fill).into(),
        trust_referrers: config.index.trust_referrers,
        index_push: config.index.push,
        profile_pull: config.profile.pull == ProfilePull::Auto,
        profile_push: config.profile.push,
        ..(&config.lazy).into()
    };
    let blobs = Arc::new(Registry::new(RegistryConfig {
        passed,
        ..RegistryConfig::from(&config.registry)
    })?);
    Lazy::open(&root, blobs, settings).map(|lazy| Some(Arc::new(lazy)))
}

/// The keeper's socket beside the socket of containerd.
fn keeper_socket(address: &Path) -> PathBuf {
    address.with_extension("keeper")
}

/// What is done about fs-verity; and why. Tried whatever the configuration says: what was sealed
/// is treated as that.
fn sealing(wanted: FsVerity, root: &Path) -> Sealing {
    match (store::probe(root), wanted) {
        (Err(reason), _) => {
            tracing::info!(reason, "files of the store are not sealed");
            Sealing::Absent
        }
        (Ok(()), FsVerity::Off) => {
            tracing::info!(
                "files of the store are not sealed: the configuration says fs_verity = \"off\""
            );
            Sealing::Off
        }
        (Ok(()), FsVerity::Auto) => {
            tracing::info!("complete files of the store are sealed: its file system has fs-verity");
            Sealing::On
        }
    }
}

/// The back end that the configuration names, or the best that works here; and why.
fn choose(mode: MountMode, root: &Path) -> Result<Option<BackEnd>> {
    match mode {
        MountMode::Off => {
            tracing::info!("nothing is mounted lazily: the configuration says mount = \"off\"");
            Ok(None)
        }
        MountMode::Kernel => match probe(root) {
            Ok(()) => {
                tracing::info!("lazy layers are mounted by the kernel: the configuration says so");
                Ok(Some(BackEnd::Kernel))
            }
            Err(reason) => Err(Error::Unusable {
                what: "mount = \"kernel\"".to_owned(),
                reason,
            }),
        },
        MountMode::Fuse => {
            open_fuse()?;
            tracing::info!("lazy layers are mounted by FUSE: the configuration says so");
            Ok(Some(BackEnd::Fuse))
        }
        MountMode::Auto => Ok(best(root)),
    }
}

/// The kernel back end wherever it works: it is faster at everything, and what is local needs no
/// daemon.
fn best(root: &Path) -> Option<BackEnd> {
    let reason = match probe(root) {
        Ok(()) => {
            tracing::info!("lazy layers are mounted by the kernel: all that it needs is here");
            return Some(BackEnd::Kernel);
        }
        Err(reason) => reason,
    };
    match open_fuse() {
        Ok(()) => {
            tracing::info!(reason, "lazy layers are mounted by FUSE");
            Some(BackEnd::Fuse)
        }
        Err(error) => {
            tracing::warn!(reason, %error, "nothing is mounted lazily, not by FUSE either");
            None
        }
    }
}

fn open_fuse() -> Result<()> {
    let fuse = File::options().read(true).write(true).open(FUSE);
    fuse.map(drop).map_err(Error::io("open", Path::new(FUSE)))
}
