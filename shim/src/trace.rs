//! The trace context (W3C Trace Context) that a call carries in its ttrpc metadata.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;
use xebec_proto::ttrpc::KeyValue;

/// Longest `traceparent`; one of version 00 has 55 bytes.
const PARENT: usize = 128;
/// Longest `tracestate` that is taken along, in bytes.
const STATE: usize = 512;

tokio::task_local! {
    static CURRENT: Option<Rc<Trace>>;
}

/// Whose work a call is.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Version, trace id, id of the caller's span, flags.
    #[serde(rename = "traceparent")]
    pub(crate) parent: Box<str>,
    /// What tracing systems say to each other; may be empty.
    #[serde(rename = "tracestate", skip_serializing_if = "str::is_empty")]
    pub(crate) state: Box<str>,
    #[serde(skip)]
    ids: Ids,
    /// What the call has gone through so far.
    #[serde(skip)]
    phases: RefCell<Vec<Phase>>,
}

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ids {
    trace: u128,
    caller: u64,
    is_sampled: bool,
}

/// A part of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) began: Instant,
    pub(crate) took: Duration,
}

impl Ids {
    /// Parses version, trace id, id of the caller's span and flags, in hexadecimal; a later
    /// version may have more. `None` for what is not well-formed.
    fn parse(parent: &str) -> Option<Ids> {
        let digits = |text: &str, length: usize| {
            let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let is_right = text.len() == length && text.bytes().all(is_digit);
            is_right.then(|| u128::from_str_radix(text, 16).ok())?
        };
        let mut parts = parent.split('-');
        let version = digits(parts.next()?, 2).filter(|version| *version != 0xff)?;
        let trace = digits(parts.next()?, 32).filter(|id| *id != 0)?;
        let caller = digits(parts.next()?, 16).filter(|id| *id != 0)?;
        let flags = digits(parts.next()?, 2)?;
        (version > 0 || parts.next().is_none()).then_some(Ids {
            trace,
            caller: caller as u64,
            is_sampled: flags & 1 == 1,
        })
    }
}

impl Trace {
    /// The trace context in a call's metadata; what is not well-formed is none.
    pub(crate) fn of(metadata: &[KeyValue]) -> Option<Rc<Trace>> {
        let value = |name: &str| {
            let mut pairs = metadata.iter();
            pairs.find(|pair| pair.key.eq_ignore_ascii_case(name))
        };
        let parent = &*value("traceparent")?.value;
        let is_printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        if parent.len() > PARENT || !parent.bytes().all(is_printable) {
            return None;
        }
        let ids = Ids::parse(parent)?;
        let state = value("tracestate").map_or("", |pair| &*pair.value);
        let is_state = state.len() <= STATE && state.bytes().all(is_printable);
        Some(Rc::new(Trace {
            parent: parent.into(),
            state: if is_state { state.into() } else { "".into() },
            ids,
            phases: RefCell::default(),
        }))
    }

    /// True if whoever began the trace wants its spans.
    pub(crate) fn is_sampled(&self) -> bool {
        self.ids.is_sampled
    }

    /// Id of the trace.
    pub(crate) fn id(&self) -> [u8; 16] {
        self.ids.trace.to_be_bytes()
    }

    /// Id of the caller's span.
    pub(crate) fn caller(&self) -> [u8; 8] {
        self.ids.caller.to_be_bytes()
    }

    /// The phases that are noted; they are forgotten.
    pub(crate) fn take_phases(&self) -> Vec<Phase> {
        self.phases.take()
    }
}

/// Runs `work` as part of `trace`. An `async fn` would hold `work` twice, for as long as a call
/// waits.
pub(crate) fn within<T>(
    trace: Option<Rc<Trace>>,
    work: impl Future<Output = T>,
) -> impl Future<Output = T> {
    CURRENT.scope(trace, work)
}

/// The trace that the running call is part of.
pub(crate) fn current() -> Option<Rc<Trace>> {
    CURRENT.try_with(Option::clone).ok().flatten()
}

/// Notes phases of the running call, if it is part of a trace that is sampled.
pub(crate) fn note(phases: &[Phase]) {
    if let Some(trace) = current().filter(|trace| trace.is_sampled()) {
        trace.phases.borrow_mut().extend_from_slice(phases);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn pairs(pairs: &[(&str, &str)]) -> Vec<KeyValue> {
        let pair = |(key, value): &(&str, &str)| KeyValue {
            key: (*key).into(),
            value: (*value).into(),
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_a_well_formed_context_of_bounded_length_is_taken_along() {
        let trace = Trace::of(&pairs(&[("Traceparent", PARENT), ("tracestate", "a=1")])).unwrap();
        assert_eq!((&*trace.parent, &*trace.state), (PARENT, "a=1"));
        assert_eq!(trace.id()[..2], [0x0a, 0xf7]);
        assert_eq!(trace.caller()[..2], [0xb7, 0xad]);
        assert!(trace.is_sampled());
        let later = format!("01-{}0-x", &PARENT[3..54]);
        let later = Trace::of(&pairs(&[("traceparent", &later)])).unwrap();
        assert!(!later.is_sampled());
        for state in ["a=\n", &"x".repeat(513)] {
            let trace = Trace::of(&pairs(&[("traceparent", PARENT), ("tracestate", state)]));
            assert_eq!(&*trace.unwrap().state, "");
        }
        let long = PARENT.repeat(3);
        for parent in [
            "",
            "00-1-2-01",
            &PARENT.replace('b', " "),
            &PARENT.replace("b7ad6b7169203331", "0000000000000000"),
            &PARENT.replacen("00", "ff", 1),
            &format!("{PARENT}-1"),
            &PARENT.to_uppercase(),
            &long,
        ] {
            assert_eq!(Trace::of(&pairs(&[("traceparent", parent)])), None);
        }
        assert_eq!(Trace::of(&pairs(&[("tracestate", "a=1")])), None);
    }
}
