//! Circuit breakers: a host that does not answer costs the readers who find out, and nobody after.
//!
//! A breaker opens when requests have failed in a row for as long as [`Breakers`] is told to be
//! patient: a registry that is restarted costs its readers a wait, not an error. While it is open
//! requests fail at once. After a pause one of them is let through to see how the host is
//! (half-open); the pause doubles with each such probe that fails.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Failures in a row that it takes at least: one broken connection is no outage.
const MIN_FAILURES: u32 = 3;
/// The first pause between two probes; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// How long a host that has sent wrong bytes is asked after all others.
const SENTENCE: Duration = Duration::from_mins(10);

/// How one host answers, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHealth {
    /// The host, with its port.
    pub host: String,
    /// What happens to requests to it.
    pub state: BreakerState,
    /// Requests that failed since the last that did not.
    pub failures: u32,
    /// How often it sent bytes that were wrong, while others had the right ones.
    #[serde(default)]
    pub wrong: u32,
}

/// What happens to requests to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// They are sent.
    Closed,
    /// One of them is under way to see whether the host answers again; the others fail.
    HalfOpen,
    /// They fail at once.
    Open,
}

/// The breakers of all hosts.
pub(super) struct Breakers {
    patience: Duration,
    hosts: Mutex<HashMap<String, Breaker>>,
}

/// The right to send one request. Its outcome must be told; a request that is given up, because
/// its time has run out, counts as one that failed.
pub(super) struct Pass {
    breakers: Arc<Breakers>,
    host: String,
    begun: Instant,
    is_probe: bool,
    told: bool,
}

impl Breakers {
    /// Breakers that open after `patience`.
    pub(super) fn new(patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            patience,
            hosts: Mutex::default(),
        })
    }

    /// Lets a request to `host` through, or says in how long the next one may be.
    pub(super) fn admit(self: &Arc<Self>, host: String) -> Result<Pass, Duration> {
        let begun = Instant::now();
        let is_probe = match self.lock().entry(host.clone()).or_default().admit(begun) {
            Verdict::Send => false,
            Verdict::Probe => true,
            Verdict::Refuse(wait) => return Err(wait),
        };
        let breakers = Arc::clone(self);
        Ok(Pass {
            breakers,
            host,
            begun,
            is_probe,
            told: false,
        })
    }

    /// Every host that was asked for something, by name.
    pub(super) fn health(&self) -> Vec<HostHealth> {
        let hosts = self.lock();
        let mut health: Vec<_> = hosts
            .iter()
            .map(|(host, breaker)| HostHealth {
                host: host.clone(),
                state: breaker.state(),
                failures: breaker.failures,
                wrong: breaker.wrong,
            })
            .collect();
        health.sort_by(|one, other| one.host.cmp(&other.host));
        health
    }

    /// Notes that `host` has sent wrong bytes of `blob`: it is asked last for a while.
    pub(super) fn convict(&self, host: &str, blob: &Digest) {
        let mut hosts = self.lock();
        let breaker = hosts.entry(host.to_owned()).or_default();
        breaker.wrong = breaker.wrong.saturating_add(1);
        breaker.convicted = Some(Instant::now());
        tracing::warn!(
            host, %blob, times = breaker.wrong,
            "this host sends wrong bytes: others are asked in its place"
        );
    }

    /// Whether `host` has sent wrong bytes lately.
    pub(super) fn is_convicted(&self, host: &str) -> bool {
        let hosts = self.lock();
        let since = hosts.get(host).and_then(|breaker| breaker.convicted);
        since.is_some_and(|since| since.elapsed() < SENTENCE)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Breaker>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// The host has answered, whatever it said.
    pub(super) fn answered(mut self) {
        self.told = true;
        let mut hosts = self.breakers.lock();
        if hosts.entry(self.host.clone()).or_default().answered() {
            tracing::info!(host = self.host, "the registry answers again");
        }
    }

    /// The host has not answered. Tells how long nothing is sent to it, if that is so now: whoever
    /// waits then is not to wait for it.
    pub(super) fn failed(mut self) -> Option<Duration> {
        self.fail()
    }

    fn fail(&mut self) -> Option<Duration> {
        self.told = true;
        let now = Instant::now();
        let mut hosts = self.breakers.lock();
        let breaker = hosts.entry(self.host.clone()).or_default();
        if breaker.failed(self.is_probe, self.begun, now, self.breakers.patience) {
            tracing::warn!(
                host = self.host,
                failures = breaker.failures,
                "the registry does not answer: what needs it fails at once until it does"
            );
        }
        breaker
            .open
            .as_ref()
            .map(|open| open.until.saturating_duration_since(now))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.told {
            self.fail();
        }
    }
}

/// One host's breaker, without clock and lock.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    /// When the first request of those that failed in a row was sent.
    since: Option<Instant>,
    open: Option<Open>,
    /// How often it has sent wrong bytes, and when last.
    wrong: u32,
    convicted: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    /// When the next probe may be sent.
    until: Instant,
    pause: Duration,
    is_probed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Send,
    Probe,
    Refuse(Duration),
}

impl Breaker {
    fn admit(&mut self, now: Instant) -> Verdict {
        match &mut self.open {
            None => Verdict::Send,
            Some(open) if open.is_probed => Verdict::Refuse(open.pause),
            Some(open) if now < open.until => Verdict::Refuse(open.until - now),
            Some(open) => {
                open.is_probed = true;
                Verdict::Probe
            }
        }
    }

    /// Whether this has closed the breaker.
    fn answered(&mut self) -> bool {
        self.failures = 0;
        self.since = None;
        self.open.take().is_some()
    }

    /// Whether this has opened the breaker. A request from before it opened, and one that was sent
    /// while another one is the probe, tells nothing new.
    fn failed(&mut self, is_probe: bool, begun: Instant, now: Instant, patience: Duration) -> bool {
        self.failures = self.failures.saturating_add(1);
        let since = *self.since.get_or_insert(begun);
        let pause = match &self.open {
            Some(open) if is_probe => (open.pause * 2).min(LAST_PAUSE),
            Some(_) => return false,
            None if self.failures < MIN_FAILURES || now - since < patience => return false,
            None => FIRST_PAUSE,
        };
        let opens = self.open.is_none();
        let open = Open {
            until: now + jittered(pause),
            pause,
            is_probed: false,
        };
        self.open = Some(open);
        opens
    }

    fn state(&self) -> BreakerState {
        match &self.open {
            None => BreakerState::Closed,
            Some(open) if open.is_probed => BreakerState::HalfOpen,
            Some(_) => BreakerState::Open,
        }
    }
}

/// Three to five quarters of `pause`: the nodes of a cluster do not come back all at once.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn opened(at: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        let begun = at.checked_sub(PATIENCE).unwrap();
        let opens = (0..MIN_FAILURES).map(|_| breaker.failed(false, begun, at, PATIENCE));
        assert_eq!(opens.collect::<Vec<_>>(), [false, false, true]);
        breaker
    }

    #[test]
    fn a_short_outage_and_a_single_failure_do_not_open() {
        let now = Instant::now() + Duration::from_mins(1);
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            assert!(!breaker.failed(false, now, now + PATIENCE / 2, PATIENCE));
        }
        let mut breaker = Breaker::default();
        assert!(!breaker.failed(false, now, now + PATIENCE * 2, PATIENCE));
        assert!(!breaker.answered());
        assert_eq!(breaker.admit(now), Verdict::Send);
    }

    #[test]
    fn while_open_nothing_is_sent_and_then_one_probe() {
        let now = Instant::now() + Duration::from_mins(1);
        let mut breaker = opened(now);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(matches!(breaker.admit(now), Verdict::Refuse(_)));
        let later = now + FIRST_PAUSE * 2;
        assert_eq!(breaker.admit(later), Verdict::Probe);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(matches!(breaker.admit(later), Verdict::Refuse(_)));
        assert!(breaker.answered());
        assert_eq!(breaker.admit(later), Verdict::Send);
    }

    #[test]
    fn probes_that_fail_come_less_and_less_often_but_keep_coming() {
        let mut now = Instant::now() + Duration::from_mins(1);
        let mut breaker = opened(now);
        for _ in 0..20 {
            let until = breaker.open.as_ref().unwrap().until;
            assert!(until - now <= LAST_PAUSE * 2);
            now = until;
            assert_eq!(breaker.admit(now), Verdict::Probe);
            assert!(!breaker.failed(true, now, now, PATIENCE), "it was open");
        }
        assert_eq!(breaker.open.as_ref().unwrap().pause, LAST_PAUSE);
    }

    #[test]
    fn requests_from_before_do_not_decide_for_the_probe() {
        let now = Instant::now() + Duration::from_mins(1);
        let mut breaker = opened(now);
        let later = now + FIRST_PAUSE * 2;
        assert_eq!(breaker.admit(later), Verdict::Probe);
        assert!(!breaker.failed(false, now, later, PATIENCE));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(breaker.answered(), "a late answer is a sign of life");
    }

    #[test]
    fn a_request_that_is_given_up_counts_as_failed() {
        let breakers = Breakers::new(Duration::ZERO);
        for _ in 0..MIN_FAILURES {
            drop(breakers.admit("h".to_owned()).unwrap());
        }
        assert!(breakers.admit("h".to_owned()).is_err());
        assert!(breakers.admit("other".to_owned()).is_ok());
        let health = &breakers.health()[0];
        assert_eq!(
            (health.state, health.failures),
            (BreakerState::Open, MIN_FAILURES)
        );
    }
}
