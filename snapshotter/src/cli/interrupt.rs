//! Ctrl-C and its like in the middle of a command that writes: everything is taken back first.

use std::sync::Arc;
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::convert::Undo;
use crate::error::{Error, Result};

/// What shells add to a signal's number when a program ended by it.
const BY_SIGNAL: i32 = 128;

/// Something to undo when the process is asked to end, with which it then ends.
pub(super) fn undo_on_signal() -> Result<Arc<Undo>> {
    let undo = Arc::new(Undo::new());
    let failed = |error| Error::Internal(format!("listen for signals: {error}"));
    let runtime = Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(failed)?;
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let guard = runtime.enter();
    let signals: std::io::Result<Vec<_>> = kinds.into_iter().map(signal).collect();
    let [mut interrupt, mut terminate, mut hangup] =
        <[_; 3]>::try_from(signals.map_err(failed)?)
            .map_err(|_| Error::Internal("three signals".into()))?;
    drop(guard);
    let to_undo = Arc::clone(&undo);
    thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 2,
                _ = terminate.recv() => 15,
                _ = hangup.recv() => 1,
            }
        });
        to_undo.run_for_good();
        eprintln!("xebec-snapshotter: interrupted: nothing was left behind");
        std::process::exit(BY_SIGNAL + number);
    });
    Ok(undo)
}
