//! Out-of-memory kills in a container's cgroup, from `memory.events`.
//!
//! The file is polled, not watched by inotify: the kernel gives a user 128 of those by default, for
//! everything on the node, and every pod has a shim.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::task::{AbortHandle, spawn_local};

use super::Publisher;
use crate::task::keys;
use crate::{log, sys};
use xebec_proto::events::TaskOom;

/// The counter of one container, watched until it is dropped.
#[derive(Debug)]
pub struct Counter {
    kills: Rc<Kills>,
    watch: AbortHandle,
}

#[derive(Debug)]
struct Kills {
    container: String,
    /// `memory.events`, which is read again and again.
    file: AsyncFd<OwnedFd>,
    seen: Cell<u64>,
    publisher: Publisher,
}

impl Counter {
    /// Watches the container whose cgroup is at `cgroup`, of which `seen` kills are told already;
    /// `None` without a memory controller. Must run inside a `LocalSet`.
    pub fn watch(
        container: &str,
        cgroup: &Path,
        seen: u64,
        publisher: &Publisher,
    ) -> io::Result<Option<Counter>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = match rustix::fs::open(cgroup.join("memory.events"), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            result => result?,
        };
        let kills = Rc::new(Kills {
            container: container.to_owned(),
            file: sys::watch_for(file, Interest::PRIORITY)?,
            seen: Cell::new(seen),
            publisher: publisher.clone(),
        });
        // The kernel reports changes since the last read.
        kills.check();
        let watch = spawn_local(follow(Rc::clone(&kills))).abort_handle();
        Ok(Some(Counter { kills, watch }))
    }

    /// Publishes an event if there were kills since the last look. Called once more at the exit
    /// of init, because the notification may lose the race against it.
    pub fn check(&self) {
        self.kills.check();
    }

    /// How many kills are known.
    pub fn kills(&self) -> u64 {
        self.kills.seen.get()
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Kills {
    fn check(&self) {
        let mut text = [0; 512];
        // Nothing can be read once the cgroup is gone; then there is nothing new to learn either.
        let Ok(length) = rustix::io::pread(&self.file, &mut text, 0) else {
            return;
        };
        let kills = oom_kills(&text[..length]);
        if kills > self.seen.replace(kills) {
            let event = TaskOom {
                container_id: self.container.clone(),
            };
            let told = keys::oom_kills(&self.container, kills);
            self.publisher.publish(vec![told], "/tasks/oom", &event);
        }
    }
}

async fn follow(kills: Rc<Kills>) {
    loop {
        match kills.file.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready_matching(Ready::ALL),
            Err(error) => return log::error(format_args!("watch for OOM kills: {error}")),
        }
        kills.check();
    }
}

/// The `oom_kill` line of `memory.events`.
fn oom_kills(text: &[u8]) -> u64 {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("oom_kill ")))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::oom_kills;

    #[test]
    fn only_kills_count() {
        let text = b"low 0\nhigh 3\nmax 9\noom 4\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(oom_kills(text), 2);
        assert_eq!(oom_kills(b"low 0\noom 4\n"), 0);
        assert_eq!(oom_kills(b""), 0);
    }
}
