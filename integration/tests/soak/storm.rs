//! What is killed: containerd, and the shims' workers; and who listens to containerd meanwhile.

use std::time::Instant;

use integration::events::Events;
use integration::hosts::{NativeHost, Service};
use integration::random::Random;

use crate::judge::Session;
use crate::ledger::{Ledger, Trouble};

/// The name of a worker's process.
pub(crate) const WORKER: &str = "xebec-worker";

pub(crate) struct Storm<'a> {
    host: &'a NativeHost,
    ledger: &'a Ledger,
    /// The subscription that is there now, and since when.
    listening: Option<(Instant, Events)>,
    sessions: Vec<Session>,
}

impl<'a> Storm<'a> {
    /// Begins to listen.
    pub(crate) fn new(host: &'a NativeHost, ledger: &'a Ledger) -> Self {
        let mut storm = Self {
            host,
            ledger,
            listening: None,
            sessions: Vec::new(),
        };
        storm.listen();
        storm
    }

    fn listen(&mut self) {
        let events = Events::follow(self.host).expect("containerd tells its events");
        self.listening = Some((Instant::now(), events));
    }

    /// One trouble after the other; containerd runs at the end.
    pub(crate) fn rage(&mut self, random: &mut Random, until: Instant) {
        while Instant::now() < until {
            std::thread::sleep(random.between(200, 4000));
            match random.below(10) {
                0..5 => self.kill_a_worker(random),
                5..8 => self.kill_all_workers(),
                8 => self.restart_containerd(random, false),
                _ => self.restart_containerd(random, true),
            }
        }
    }

    fn kill_a_worker(&self, random: &mut Random) {
        let pids = self.host.processes(WORKER).unwrap();
        if !pids.is_empty() {
            let pid = pids[random.below(pids.len() as u64) as usize];
            self.kill(&[pid]);
        }
    }

    pub(crate) fn kill_all_workers(&self) {
        self.kill(&self.host.processes(WORKER).unwrap());
    }

    fn kill(&self, pids: &[u32]) {
        let kill = || self.host.kill_processes(pids).unwrap();
        self.ledger.during(Trouble::Kill, kill);
    }

    /// Kills containerd, perhaps the workers while it is away, and starts it again.
    pub(crate) fn restart_containerd(&mut self, random: &mut Random, and_workers: bool) {
        let ledger = self.ledger;
        ledger.during(Trouble::Outage, || {
            let killed = Instant::now();
            self.host.kill(Service::Containerd).unwrap();
            if let Some((from, events)) = self.listening.take() {
                self.sessions.push(Session {
                    from,
                    until: Some(killed),
                    told: events.until_the_end().unwrap(),
                });
            }
            std::thread::sleep(random.between(0, 1000));
            if and_workers {
                self.kill_all_workers();
            }
            let started = self.host.start_services(&[Service::Containerd]);
            started.expect("containerd starts again");
        });
        self.listen();
    }

    /// All that was told, once everything has been.
    pub(crate) fn end(mut self) -> Vec<Session> {
        if let Some((from, events)) = self.listening.take() {
            self.sessions.push(Session {
                from,
                until: None,
                told: events.all(self.host).unwrap(),
            });
        }
        self.sessions
    }
}
