//! The trace context (W3C Trace Context) that a call carries in its ttrpc metadata.

use std::rc::Rc;

use serde::Serialize;
use xebec_proto::ttrpc::KeyValue;

/// Lengths of a `traceparent`: that of version 00, and what a later one may have.
const PARENT: std::ops::RangeInclusive<usize> = 55..=128;
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
}

impl Trace {
    /// The trace context in a call's metadata; what is not well-formed is none.
    pub(crate) fn of(metadata: &[KeyValue]) -> Option<Rc<Trace>> {
        let value = |name: &str| {
            let mut pairs = metadata.iter();
            pairs.find(|pair| pair.key.eq_ignore_ascii_case(name))
        };
        let parent = &*value("traceparent")?.value;
        let is_digit = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        if !PARENT.contains(&parent.len()) || !parent.bytes().all(is_digit) {
            return None;
        }
        let is_printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        let state = value("tracestate").map_or("", |pair| &*pair.value);
        let is_state = state.len() <= STATE && state.bytes().all(is_printable);
        Some(Rc::new(Trace {
            parent: parent.into(),
            state: if is_state { state.into() } else { "".into() },
        }))
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
        for state in ["a=\n", &"x".repeat(513)] {
            let trace = Trace::of(&pairs(&[("traceparent", PARENT), ("tracestate", state)]));
            assert_eq!(&*trace.unwrap().state, "");
        }
        let long = PARENT.repeat(3);
        for parent in ["", "00-1-2-01", &PARENT.replace('b', " "), &long] {
            assert_eq!(Trace::of(&pairs(&[("traceparent", parent)])), None);
        }
        assert_eq!(Trace::of(&pairs(&[("tracestate", "a=1")])), None);
    }
}
