//! Operations that block have threads, which live for a moment only. Few of them run at once; one
//! that takes long, because it waits for a hook, a program or a disk and not for a processor, does
//! not count any more: it holds nobody else's up.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tokio::time::timeout;

/// Most operations at once that have not taken long yet.
const AT_ONCE: usize = 2;
/// How long an operation counts as one of these.
pub(crate) const TURN: Duration = Duration::from_millis(250);
/// Most threads. Operations that find them all taken by others that take long wait.
pub(crate) const THREADS: usize = 64;

static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Runs `work` on a thread, once it is its turn; an error if it panics.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // An error if the semaphore was closed, which nobody does.
    let turn = TURNS.acquire().await;
    let mut done = tokio::task::spawn_blocking(work);
    let in_turn = timeout(TURN, &mut done).await;
    drop(turn);
    match in_turn {
        Ok(done) => done,
        Err(_) => done.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tokio::task::JoinSet;

    #[test]
    fn what_takes_long_holds_nobody_up() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(THREADS)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (open, gates): (Vec<_>, Vec<_>) = (0..5).map(|_| mpsc::channel::<()>()).unzip();
            let mut slow = JoinSet::new();
            for gate in gates {
                slow.spawn(run(move || gate.recv().unwrap_err()));
            }
            let mut crowd = JoinSet::new();
            for number in 0..200 {
                crowd.spawn(run(move || number));
            }
            let numbers = crowd.join_all().await.into_iter().map(Result::unwrap);
            assert_eq!(numbers.sum::<u32>(), 19_900);
            assert!(slow.try_join_next().is_none(), "it has not taken long");
            drop(open);
            assert_eq!(slow.join_all().await.len(), 5);
        });
    }
}
