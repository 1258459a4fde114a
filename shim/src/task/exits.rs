//! The ends of processes, as the supervisor tells them.

use std::cell::RefCell;
use std::collections::HashMap;

use tokio::sync::watch;

use crate::supervisor::Exit;
pub use crate::supervisor::UNKNOWN_STATUS;

/// Who waits for which process.
#[derive(Debug, Default)]
pub struct Exits(RefCell<HashMap<i32, watch::Sender<Option<Exit>>>>);

impl Exits {
    /// The supervisor tells the end of `pid`.
    pub fn exited(&self, pid: i32, exit: Exit) {
        self.0
            .borrow_mut()
            .entry(pid)
            .or_default()
            .send_replace(Some(exit));
    }

    /// The supervisor has watched `pid` for an earlier worker.
    pub fn expect(&self, pid: i32) {
        self.0.borrow_mut().entry(pid).or_default();
    }

    /// True for a process that is watched, and that somebody has waited for or is to wait for.
    pub fn is_expected(&self, pid: i32) -> bool {
        self.0.borrow().contains_key(&pid)
    }

    /// Waits for the end of `pid`, which the supervisor watches.
    pub async fn wait(&self, pid: i32) -> Exit {
        let mut exit = self.0.borrow_mut().entry(pid).or_default().subscribe();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        // The sender is dropped by whoever has dealt with the end already.
        ended
            .ok()
            .flatten()
            .unwrap_or_else(|| Exit::now(UNKNOWN_STATUS))
    }

    /// The end of `pid` has been dealt with; the pid may come back as another process.
    pub fn forget(&self, pid: i32) {
        self.0.borrow_mut().remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_whether_it_comes_before_or_after_the_wait() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let exits = Exits::default();
            let exit = Exit::now(3);
            exits.exited(1, exit);
            assert_eq!(exits.wait(1).await, exit);
            let (waited, ()) = tokio::join!(exits.wait(2), async { exits.exited(2, exit) });
            assert_eq!(waited, exit);
            exits.forget(1);
            let again = Exit::now(4);
            exits.exited(1, again);
            assert_eq!(exits.wait(1).await, again);
        });
    }
}
