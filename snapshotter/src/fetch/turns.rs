//! How many requests are under way to one host at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of all hosts.
pub(super) struct Turns {
    /// Most at once; 0 for as many as there are.
    limit: usize,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// The right to have one request under way, until it is dropped.
pub(super) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(Semaphore::MAX_PERMITS),
            hosts: Mutex::default(),
        }
    }

    /// Waits for a turn at `host`: who comes first is first.
    pub(super) async fn take(&self, host: String) -> Turn {
        if self.limit == 0 {
            return Turn { _permit: None };
        }
        let turns = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(self.limit));
            Arc::clone(hosts.entry(host).or_insert_with(new))
        };
        // Fails for a closed semaphore only, and nobody closes these.
        Turn {
            _permit: turns.acquire_owned().await.ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::path::Path;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::super::hostile::{Server, partial};
    use super::super::{BlobSource as _, Registry, RegistryConfig};
    use super::*;

    /// A server that answers when `together` requests are under way, and the most that were.
    fn crowded(together: usize) -> (Server, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, all) = (Arc::clone(&most), Arc::new(Barrier::new(together)));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, under_way) = (stream.unwrap(), Arc::clone(&under_way));
                let (seen, all) = (Arc::clone(&seen), Arc::clone(&all));
                thread::spawn(move || {
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                    let now = under_way.fetch_add(1, Ordering::SeqCst) + 1;
                    seen.fetch_max(now, Ordering::SeqCst);
                    all.wait();
                    // Before the answer: the next one may come as soon as it is there.
                    under_way.fetch_sub(1, Ordering::SeqCst);
                    stream.write_all(partial().as_bytes()).unwrap();
                });
            }
        });
        let requests = Arc::default();
        (Server { host, requests }, most)
    }

    /// The most requests under way at once when `readers` read, of which `together` must be.
    fn most_of(readers: usize, together: usize, limit: usize) -> usize {
        let (server, most) = crowded(together);
        let patient = Duration::from_mins(2);
        let config = RegistryConfig {
            requests_per_host: limit,
            deadline: patient,
            stall_timeout: patient,
            ..server.config(Path::new("/nonexistent"))
        };
        let registry = Registry::new(config).unwrap();
        let blob = server.blob(&registry);
        thread::scope(|scope| {
            for _ in 0..readers {
                scope.spawn(|| assert_eq!(blob.read_range(2, 4).unwrap(), b"2345"));
            }
        });
        most.load(Ordering::SeqCst)
    }

    #[test]
    fn a_host_gets_as_many_requests_at_once_as_it_is_to_get_and_no_more() {
        for limit in [1, 3] {
            assert_eq!(most_of(12, limit, limit), limit);
        }
        assert_eq!(most_of(12, 12, 0), 12, "without a limit nobody waits");
    }
}
