//! Images in registries, by the help of `xebec-snapshotter`: it knows registries, and whom to name
//! there.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use xebec_runtime::{Error, Result};

const NAME: &str = "xebec-snapshotter";

/// What becomes of what the program says of what it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Shown,
    Dropped,
}

/// Runs the snapshotter beside this program, or the one in `PATH`; it says itself what is wrong.
pub(super) fn run(words: &[&str], options: &[OsString], said: Said) -> Result<()> {
    let program = find()?;
    let mut command = Command::new(&program);
    command.args(words).args(options).stdin(Stdio::null());
    if said == Said::Dropped {
        command.stdout(Stdio::null());
    }
    let status = match command.status() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let reason = format!("{NAME} is needed for images in registries: it is not in PATH");
            return Err(Error::Unsupported(reason));
        }
        status => status.map_err(Error::file("execute", program))?,
    };
    if status.success() {
        return Ok(());
    }
    let reason = format!("{NAME} {} ended with {status}", words.join(" "));
    Err(Error::InvalidArgument(reason))
}

fn find() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::file("resolve", "/proc/self/exe"))?;
    let beside = own.with_file_name(NAME);
    Ok(if beside.exists() { beside } else { NAME.into() })
}
