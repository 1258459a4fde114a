use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use xebec_runtime::{Error, Result};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec spec\n  xebec spec --bundle /bundles/web --rootless\n  xebec spec --file other.json"
)]
pub(super) struct SpecCommand {
    /// Directory to write config.json into
    #[arg(short, long, value_name = "DIR", value_parser = clap::value_parser!(OsString), default_value = ".")]
    bundle: OsString,
    /// Write this file instead of config.json
    #[arg(short, long, value_name = "FILE", default_value = "config.json")]
    file: PathBuf,
    /// For a user without root
    #[arg(long = "rootless", id = "rootless-spec")]
    rootless: bool,
}

impl SpecCommand {
    pub(super) fn carry_out(self) -> Result<u8> {
        let text = xebec_runtime::spec_template(self.rootless);
        let path = Path::new(&self.bundle).join(&self.file);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| {
                if e.kind() == ErrorKind::AlreadyExists {
                    let name = self.file.display();
                    return Error::InvalidArgument(format!("File {name} exists. Remove it first"));
                }
                Error::File {
                    op: "create",
                    path: path.clone(),
                    source: e,
                }
            })?;
        file.write_all(text.as_bytes())
            .map_err(|source| Error::File {
                op: "write",
                path,
                source,
            })?;
        Ok(0)
    }
}
