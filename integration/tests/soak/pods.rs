//! Churn by CRI: pods of one to three containers, which go in any order.

use std::path::Path;
use std::time::Instant;

use integration::cri::{Container, Cri, Pod};
use integration::random::Random;

use crate::HANDLERS;
use crate::ledger::Ledger;

/// What CRI says of a container whose task is gone when containerd comes back.
const FORGOTTEN: &str = "Unknown";

pub(crate) struct Pods<'a> {
    cri: Cri,
    image: &'a str,
    ledger: &'a Ledger,
    random: Random,
    /// Its names begin with that.
    name: String,
    number: u32,
}

/// A started container.
struct Started {
    id: String,
    at: Instant,
    /// What it ends with by itself; `None` if it does not.
    status: Option<u32>,
}

impl<'a> Pods<'a> {
    pub(crate) fn new(
        socket: &Path,
        image: &'a str,
        ledger: &'a Ledger,
        (name, seed): (String, u64),
    ) -> Self {
        Self {
            cri: Cri::connect(socket).expect("containerd listens"),
            image,
            ledger,
            random: Random::new(seed),
            name,
            number: 0,
        }
    }

    /// Pods that come and go.
    pub(crate) fn churn(&mut self, until: Instant) {
        while Instant::now() < until {
            let name = self.next();
            let handler = HANDLERS[self.random.below(2) as usize];
            let run = || self.cri.run_pod(&name, handler);
            if let Some(pod) = self.ledger.once("run a pod", run) {
                self.containers_of(&pod);
                self.remove_pod(&pod);
            } else {
                self.clear_pods(&name);
            }
        }
    }

    /// Containers that come and go in a pod that stays.
    pub(crate) fn churn_in(&mut self, pod: &Pod, until: Instant) {
        while Instant::now() < until {
            self.containers_of(pod);
            self.ledger.clear("empty a pod", || {
                let ids = self.cri.containers_of(pod)?;
                ids.iter().try_for_each(|id| self.cri.remove(id))
            });
        }
    }

    fn next(&mut self) -> String {
        self.number += 1;
        format!("{}-{}", self.name, self.number)
    }

    /// A few containers, from their starts to their ends; some may be left to the pod.
    fn containers_of(&mut self, pod: &Pod) {
        let mut started = Vec::new();
        for _ in 0..=self.random.below(3) {
            let Some(container) = self.start(pod) else {
                return;
            };
            started.push(container);
        }
        for _ in 0..self.random.below(4) {
            let container = &started[self.random.below(started.len() as u64) as usize];
            if container.status.is_none() {
                let id = container.id.clone();
                self.exec(&id);
            }
        }
        while !started.is_empty() {
            if self.random.below(6) == 0 {
                return;
            }
            let number = self.random.below(started.len() as u64) as usize;
            self.end(&started.swap_remove(number));
        }
    }

    fn start(&mut self, pod: &Pod) -> Option<Started> {
        let name = self.next();
        let status = (self.random.below(2) == 0).then(|| 3 + self.random.below(97) as u32);
        let script = match status {
            Some(status) => format!("sleep 0.{}; exit {status}", self.random.below(10)),
            None => "exec sleep 100000".into(),
        };
        let container = Container {
            name: &name,
            image: self.image,
            command: &["sh", "-c", &script],
        };
        let create = || self.cri.create(pod, &container);
        let id = self.ledger.once("create a container", create)?;
        let at = Instant::now();
        self.ledger
            .once("start a container", || self.cri.start(&id))?;
        Some(Started { id, at, status })
    }

    fn exec(&mut self, id: &str) {
        let status = 3 + self.random.below(97) as i32;
        let script = format!("exit {status}");
        let exec = || self.cri.exec_sync(id, &["sh", "-c", &script]);
        if let Some(ran) = self.ledger.once("exec by CRI", exec)
            && ran.exit_code != status
        {
            self.ledger
                .fault(format!("exec in {id}: {ran:?} instead of {status}"));
        }
    }

    /// Waits for the end of a container, or brings it about, and removes it.
    fn end(&self, container: &Started) {
        let id = &*container.id;
        let (status, from) = if let Some(status) = container.status {
            (status, container.at)
        } else {
            let from = Instant::now();
            self.ledger
                .persist("stop a container", || self.cri.stop(id, 0));
            // As pid 1 of its namespace it hears no other signal.
            (137, from)
        };
        let wait = || self.cri.wait_exit(id);
        if let Some(ended) = self.ledger.persist("wait for a container", wait) {
            // containerd deletes a task before it notes the status that it has heard of.
            let is_forgotten =
                ended.reason == FORGOTTEN && self.ledger.is_troubled_since(container.at);
            if ended.exit_code != status as i32 && !is_forgotten {
                self.ledger
                    .fault(format!("status of {id}: {ended:?} instead of {status}"));
            }
            self.ledger.exit(id, id, Some(status), from);
        }
        self.ledger
            .persist("remove a container", || self.cri.remove(id));
    }

    fn remove_pod(&mut self, pod: &Pod) {
        let from = Instant::now();
        if self.random.below(2) == 0 {
            self.ledger.persist("stop a pod", || self.cri.stop_pod(pod));
        }
        let remove = || self.cri.remove_pod(pod);
        if self.ledger.persist("remove a pod", remove).is_some() {
            self.ledger.exit(&pod.id, &pod.id, None, from);
        }
    }

    /// Removes what has become of a pod whose client was cut off.
    fn clear_pods(&self, name: &str) {
        self.ledger.clear("clear up after a pod", || {
            let pods = self.cri.pods()?;
            let mut left = pods.iter().filter(|pod| pod.name() == name);
            left.try_for_each(|pod| self.cri.remove_pod(pod))
        });
    }
}
