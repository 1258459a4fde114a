//! `delete`: cleans up after a shim. The daemon may be dead, the bundle half gone; most often
//! the daemon has done everything, and there is nothing left to do.

use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use prost::Message;
use xebec_proto::task::DeleteResponse;

use crate::args::Args;
use crate::bootstrap;
use crate::engine::Engine;
use crate::error::{Context, Result};
use crate::io;
use crate::link;
use crate::mounts;
use crate::task::{Record, sandbox};

/// Exit status of a container that was killed because its shim is gone.
const KILLED: u32 = 128 + 9;

/// Runs the `delete` action and prints the encoded response.
pub fn delete(args: &Args) -> Result<()> {
    link::container_id(&args.id)?;
    let bundle = bootstrap::bundle(args)?;
    let record = Record::read(&bundle)?;
    if let Some(record) = &record {
        let engine = Engine::new(&record.options, &args.namespace, None);
        if engine.knows(&args.id) {
            engine.delete(&args.id, true)?;
        }
        bootstrap::remove_stale(&record.socket);
        if record.options.overflow().is_some() {
            io::remove_spilled(&bundle)?;
        }
    }
    mounts::unmount_rootfs(&bundle.join("rootfs"))?;
    sandbox::unmount(&bundle)?;
    let response = DeleteResponse {
        pid: init_pid(&bundle),
        exit_status: KILLED,
        exited_at: Some(SystemTime::now().into()),
    };
    std::io::stdout()
        .write_all(&response.encode_to_vec())
        .context(|| "print the response".into())
}

/// The pid that init had; 0 if there was none.
fn init_pid(bundle: &Path) -> u32 {
    let text = std::fs::read_to_string(bundle.join("init.pid")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}
