//! The daemon's life: lock, socket, signals, readiness.

mod lock;
mod logging;

use crate::config::Config;
use crate::error::{Error, Result};

/// Serves until SIGTERM or SIGINT.
pub fn run(config: &Config) -> Result<()> {
    logging::start(&config.log)?;
    std::fs::create_dir_all(&config.root).map_err(Error::io("create", &config.root))?;
    let _lock = lock::RootLock::take(&config.root)?;
    Ok(())
}
