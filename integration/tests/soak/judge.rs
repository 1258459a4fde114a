//! Whether every exit was told, and told once, in containerd's own stream of events.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use integration::events::Event;

/// How long containerd may take to tell an exit that it knows of.
const DELIVERY: Duration = Duration::from_secs(5);
/// How long before its end containerd may have told an event without the shim's having heard of
/// it: the shim tells the next containerd again.
const UNHEARD: Duration = Duration::from_secs(2);

/// One subscription.
#[derive(Debug)]
pub(crate) struct Session {
    /// Since when everything that is told comes here.
    pub(crate) from: Instant,
    /// When containerd was killed.
    pub(crate) until: Option<Instant>,
    pub(crate) told: Vec<Event>,
}

impl Session {
    /// Whether an exit between these two moments had to be told in this session: containerd lived
    /// long enough after it, and nothing of it was told before.
    fn must_tell(&self, exit: &Exit) -> bool {
        let lasts = |until| exit.until + DELIVERY <= until;
        self.from <= exit.from && self.until.is_none_or(lasts)
    }
}

/// The end of a process, which is certain whatever is told of it.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) container: String,
    /// The container's id for init, or an exec id.
    pub(crate) process: String,
    /// `None` if it is not known.
    pub(crate) status: Option<u32>,
    /// It ended after this,
    pub(crate) from: Instant,
    /// and before this.
    pub(crate) until: Instant,
}

/// What came of the exits.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// How many exits had to be told within one session.
    pub(crate) certain: usize,
    /// How many were told at all.
    pub(crate) told: usize,
    pub(crate) faults: Vec<String>,
}

/// Compares what was told with what happened.
pub(crate) fn judge(sessions: &[Session], exits: &[Exit]) -> Verdict {
    let mut told: BTreeMap<(&str, &str), Vec<(usize, &Event)>> = BTreeMap::new();
    for (number, session) in sessions.iter().enumerate() {
        let ends = session.told.iter().filter(|e| e.topic == "/tasks/exit");
        for event in ends {
            let process = (&*event.container, &*event.process);
            told.entry(process).or_default().push((number, event));
        }
    }
    let mut verdict = Verdict {
        told: told.len(),
        ..Verdict::default()
    };
    for tellings in told.values() {
        let doubled = tellings.windows(2).any(|pair| {
            let (first, second) = (pair[0], pair[1]);
            first.0 == second.0 || !may_be_unheard(&sessions[first.0], first.1)
        });
        if doubled {
            verdict.faults.push(format!("told twice: {tellings:?}"));
        }
    }
    for exit in exits {
        let of_it = told.get(&(&*exit.container, &*exit.process));
        let of_it = of_it.map_or(&[][..], Vec::as_slice);
        let is_wrong =
            |(_, event): &(usize, &Event)| exit.status.is_some() && event.status != exit.status;
        if of_it.iter().any(is_wrong) {
            verdict
                .faults
                .push(format!("{exit:?} was told as {of_it:?}"));
        }
        if let Some(number) = sessions.iter().position(|s| s.must_tell(exit)) {
            verdict.certain += 1;
            if !of_it.iter().any(|(session, _)| *session == number) {
                verdict
                    .faults
                    .push(format!("lost: {exit:?}, told: {of_it:?}"));
            }
        }
    }
    verdict
}

/// Whether containerd may have died before it acknowledged the event.
fn may_be_unheard(session: &Session, event: &Event) -> bool {
    session
        .until
        .is_some_and(|until| event.at + UNHEARD >= until)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Times(Instant);

    impl Times {
        fn at(&self, seconds: u64) -> Instant {
            self.0 + Duration::from_secs(seconds)
        }

        fn told(&self, seconds: u64, status: u32) -> Event {
            Event {
                topic: "/tasks/exit".into(),
                container: "c".into(),
                process: "c".into(),
                status: Some(status),
                at: self.at(seconds),
            }
        }

        /// Containerd killed at 20, and heard again from 30 on.
        fn judge(&self, first: Vec<Event>, second: Vec<Event>, exits: &[Exit]) -> Verdict {
            let session = |from, until: Option<u64>, told| Session {
                from: self.at(from),
                until: until.map(|seconds| self.at(seconds)),
                told,
            };
            judge(
                &[session(0, Some(20), first), session(30, None, second)],
                exits,
            )
        }

        fn exit(&self, from: u64, until: u64) -> Exit {
            Exit {
                container: "c".into(),
                process: "c".into(),
                status: Some(7),
                from: self.at(from),
                until: self.at(until),
            }
        }
    }

    #[test]
    fn an_exit_within_a_session_must_be_told_there_with_its_status() {
        let times = Times(Instant::now());
        let good = times.judge(vec![times.told(6, 7)], vec![], &[times.exit(5, 7)]);
        assert_eq!((good.certain, good.told, good.faults.len()), (1, 1, 0));
        let lost = times.judge(vec![], vec![], &[times.exit(5, 7)]);
        assert_eq!(lost.faults.len(), 1, "{lost:?}");
        let wrong = times.judge(vec![times.told(6, 8)], vec![], &[times.exit(5, 7)]);
        assert_eq!(wrong.faults.len(), 1, "{wrong:?}");
    }

    #[test]
    fn an_exit_that_nobody_may_have_listened_to_need_not_have_come() {
        let times = Times(Instant::now());
        for (from, until) in [(18, 19), (19, 31), (25, 26)] {
            let verdict = times.judge(vec![], vec![], &[times.exit(from, until)]);
            assert_eq!(
                (verdict.certain, verdict.faults.len()),
                (0, 0),
                "{verdict:?}"
            );
        }
    }

    #[test]
    fn an_exit_is_told_twice_only_if_containerd_died_on_it() {
        let times = Times(Instant::now());
        let twice = times.judge(vec![times.told(6, 7), times.told(6, 7)], vec![], &[]);
        assert_eq!(twice.faults.len(), 1, "{twice:?}");
        let again = times.judge(vec![times.told(6, 7)], vec![times.told(31, 7)], &[]);
        assert_eq!(again.faults.len(), 1, "{again:?}");
        let unheard = times.judge(vec![times.told(19, 7)], vec![times.told(31, 7)], &[]);
        assert_eq!(unheard.faults.len(), 0, "{unheard:?}");
    }
}
