use std::ffi::OsString;
use std::io::stdin;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use clap::Args;
use xebec_runtime::{Error, PageProgram, Result, serve_pages};

/// This program as a server of pages.
pub(super) fn page_program() -> PageProgram {
    let argv = ["/proc/self/exe", "page-server"].map(OsString::from);
    PageProgram {
        argv: argv.to_vec(),
    }
}

/// Ends with the last clone that it serves.
#[derive(Args, Debug)]
#[command(hide = true)]
pub(super) struct PageServer {
    /// Root directory of the clones' state
    root: PathBuf,
    /// A guard watches over this process; its line is standard input
    #[arg(long)]
    guarded: bool,
}

impl PageServer {
    pub(super) fn carry_out(self) -> Result<u8> {
        let line = if self.guarded {
            let line = stdin().as_fd().try_clone_to_owned();
            Some(line.map_err(Error::os("duplicate standard input"))?)
        } else {
            None
        };
        serve_pages(&self.root, line)?;
        Ok(0)
    }
}
