//! Out-of-memory kills in a container's cgroup, from `memory.events`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_local;

use super::Publisher;
use crate::task::keys;
use crate::{log, sys};
use xebec_proto::events::TaskOom;

/// The counter of one container.
#[derive(Debug)]
pub struct Counter {
    container: String,
    file: PathBuf,
    seen: Cell<u64>,
    publisher: Publisher,
}

impl Counter {
    /// Publishes an event if there were kills since the last look. Called once more at the exit
    /// of init, because the notification may lose the race against it.
    pub fn check(&self) {
        // The file is gone with the cgroup; then there is nothing new to learn either.
        let Ok(text) = std::fs::read(&self.file) else {
            return;
        };
        let kills = oom_kills(&text);
        if kills > self.seen.replace(kills) {
            let event = TaskOom {
                container_id: self.container.clone(),
            };
            let told = keys::oom_kills(&self.container, kills);
            self.publisher.publish(vec![told], "/tasks/oom", &event);
        }
    }
}

/// Watches the counters of all containers of this shim.
#[derive(Debug)]
pub struct Watch {
    inotify: Rc<AsyncFd<OwnedFd>>,
    counters: Rc<RefCell<HashMap<i32, Rc<Counter>>>>,
}

impl Watch {
    /// Starts watching. Must run inside a `LocalSet`.
    pub fn start() -> io::Result<Watch> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = Rc::new(sys::watch(inotify::init(flags)?)?);
        let counters = Rc::new(RefCell::new(HashMap::new()));
        spawn_local(follow(Rc::clone(&inotify), Rc::clone(&counters)));
        Ok(Watch { inotify, counters })
    }

    /// Adds the container whose cgroup is at `cgroup`, of which `seen` kills are told already;
    /// `None` without a memory controller.
    pub fn add(
        &self,
        container: &str,
        cgroup: &Path,
        seen: u64,
        publisher: &Publisher,
    ) -> io::Result<Option<Rc<Counter>>> {
        let file = cgroup.join("memory.events");
        let watch = match inotify::add_watch(&*self.inotify, &file, inotify::WatchFlags::MODIFY) {
            Err(Errno::NOENT) => return Ok(None),
            result => result?,
        };
        let counter = Rc::new(Counter {
            container: container.to_owned(),
            file,
            seen: Cell::new(seen),
            publisher: publisher.clone(),
        });
        self.counters
            .borrow_mut()
            .insert(watch, Rc::clone(&counter));
        Ok(Some(counter))
    }
}

async fn follow(inotify: Rc<AsyncFd<OwnedFd>>, counters: Rc<RefCell<HashMap<i32, Rc<Counter>>>>) {
    loop {
        let Ok(mut ready) = inotify.readable().await else {
            return;
        };
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut reader = inotify::Reader::new(inotify.as_fd(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => {
                    // The kernel drops the watch with the cgroup.
                    counters.borrow_mut().remove(&event.wd());
                }
                Ok(event) => {
                    let counter = counters.borrow().get(&event.wd()).cloned();
                    if let Some(counter) = counter {
                        counter.check();
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return log::error(format_args!("watch for OOM kills: {error}")),
            }
        }
        ready.clear_ready();
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
