//! Which hosts answer a request for several ranges of a blob with just these.
//!
//! A server may as well send everything, or only the first range (RFC 9110, section 14.2). One
//! request finds out; until it has, and where the answer was no, ranges are asked for one by one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most hosts that are remembered: a registry may redirect to ever new ones.
const MAX_HOSTS: usize = 1024;

/// How long a host that does not is not asked again: it may have been out of order at that moment.
const REMEMBER: Duration = Duration::from_mins(10);

/// How long an offer holds.
const OFFER: Duration = Duration::from_millis(500);

/// What is known of each host.
#[derive(Debug, Default)]
pub(super) struct Several(Mutex<HashMap<String, Manner>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Somebody is about to send the first request for several ranges.
    Offered(Instant),
    /// The first request for several ranges is under way.
    Asked,
    Answers,
    Refuses(Instant),
}

/// The right to ask a host for several ranges. What it answers must be told, or nothing is learnt.
#[derive(Debug)]
pub(super) struct Asking {
    several: Arc<Several>,
    host: String,
    is_first: bool,
}

impl Several {
    /// Offers the caller to ask `host` for several ranges now, if that is possible. As long as nothing
    /// is known of a host, only one caller is offered it: the others would have to go without.
    pub(super) fn offer(&self, host: &str) -> bool {
        let mut hosts = self.lock();
        match hosts.get(host) {
            Some(Manner::Answers) => return true,
            Some(Manner::Asked) => return false,
            Some(Manner::Refuses(since)) if since.elapsed() <= REMEMBER => return false,
            Some(Manner::Offered(since)) if since.elapsed() <= OFFER => return false,
            _ => {}
        }
        note(&mut hosts, host, Manner::Offered(Instant::now()));
        true
    }

    /// Has the caller ask for several ranges, if that is possible now.
    pub(super) fn ask(self: &Arc<Self>, host: &str) -> Option<Asking> {
        let mut hosts = self.lock();
        let is_first = match hosts.get(host) {
            Some(Manner::Answers) => false,
            Some(Manner::Asked) => return None,
            Some(Manner::Refuses(since)) if since.elapsed() <= REMEMBER => return None,
            _ => true,
        };
        if is_first {
            note(&mut hosts, host, Manner::Asked);
        }
        drop(hosts);
        Some(Asking {
            several: Arc::clone(self),
            host: host.to_owned(),
            is_first,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Manner>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(hosts: &mut HashMap<String, Manner>, host: &str, manner: Manner) {
    if hosts.len() >= MAX_HOSTS {
        hosts.clear();
    }
    hosts.insert(host.to_owned(), manner);
}

impl Asking {
    /// Whether nothing is known of the host.
    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    /// Notes whether the host answers such requests, and the one that `by` a redirect gave the
    /// answer.
    pub(super) fn learn(self, by: Option<&str>, answers: bool) {
        let manner = if answers {
            Manner::Answers
        } else {
            Manner::Refuses(Instant::now())
        };
        let mut hosts = self.several.lock();
        for host in [Some(&*self.host), by].into_iter().flatten() {
            note(&mut hosts, host, manner);
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut hosts = self.several.lock();
        if hosts.get(&self.host) == Some(&Manner::Asked) {
            hosts.remove(&self.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_finds_out_for_all() {
        let several = Arc::new(Several::default());
        assert!(several.offer("a") && !several.offer("a"), "to one only");
        assert!(several.offer("b"), "hosts differ");
        let asking = several.ask("a").unwrap();
        assert!(asking.is_first());
        assert!(several.ask("a").is_none() && !several.offer("a"));
        drop(asking);
        assert!(several.offer("a"), "nothing was learnt");
        several.ask("a").unwrap().learn(Some("cdn"), true);
        for host in ["a", "cdn"] {
            assert!(several.offer(host) && several.offer(host));
            assert!(several.ask(host).is_some() && !several.ask(host).unwrap().is_first());
        }
        several.ask("a").unwrap().learn(None, false);
        assert!(several.ask("a").is_none() && !several.offer("a") && several.offer("cdn"));
    }
}
