//! Events as they are remembered: a node keeps several starts, with thousands of events each.

use super::{Event, What};
use crate::digest::Digest;

/// Events in the order in which they were noted.
#[derive(Debug, Default)]
pub(super) struct Events {
    records: Vec<Record>,
    layers: Vec<Digest>,
    /// Causes and back ends.
    names: Vec<String>,
}

/// One event; what the fields from `layer` on say depends on the kind.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// Microseconds: a start is over after minutes.
    at: u32,
    took: u32,
    /// Its place among the layers.
    layer: u16,
    /// Its place among the names.
    name: u8,
    kind: Kind,
    segment: u32,
    offset: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Resolve,
    Open,
    Prepare,
    NoProfile,
    Profile,
    Mount,
    Fetch,
    Wait,
}

impl Events {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Remembers an event; whether there was room for what it names.
    pub(super) fn push(&mut self, event: &Event) -> bool {
        let record = self.pack(event);
        self.records.extend(record);
        record.is_some()
    }

    /// All events as they were.
    pub(super) fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.records.iter().map(|record| self.unpack(record))
    }

    fn pack(&mut self, event: &Event) -> Option<Record> {
        let micros = |time: u64| u32::try_from(time).unwrap_or(u32::MAX);
        let mut record = Record {
            at: micros(event.at),
            took: micros(event.took),
            layer: 0,
            name: 0,
            kind: Kind::Resolve,
            segment: 0,
            offset: 0,
            bytes: 0,
        };
        let (kind, layer, name) = match &event.what {
            What::Resolve => (Kind::Resolve, None, None),
            What::Open { layer } => (Kind::Open, Some(layer), None),
            What::Prepare { layer } => (Kind::Prepare, Some(layer), None),
            What::Profile { reads: None } => (Kind::NoProfile, None, None),
            What::Profile { reads: Some(reads) } => {
                record.bytes = *reads as u64;
                (Kind::Profile, None, None)
            }
            What::Mount { by } => (Kind::Mount, None, Some(by)),
            What::Fetch {
                layer,
                cause,
                offset,
                bytes,
            } => {
                (record.offset, record.bytes) = (*offset, *bytes);
                (Kind::Fetch, Some(layer), Some(cause))
            }
            What::Wait {
                layer,
                bytes,
                place,
                ..
            } => {
                record.bytes = *bytes;
                (record.segment, record.offset) = *place;
                (Kind::Wait, Some(layer), None)
            }
        };
        record.kind = kind;
        if let Some(layer) = layer {
            record.layer = u16::try_from(place(&mut self.layers, layer)).ok()?;
        }
        if let Some(name) = name {
            record.name = u8::try_from(place(&mut self.names, name)).ok()?;
        }
        Some(record)
    }

    fn unpack(&self, record: &Record) -> Event {
        let layer = || self.layers[usize::from(record.layer)];
        let name = || self.names[usize::from(record.name)].clone();
        let what = match record.kind {
            Kind::Resolve => What::Resolve,
            Kind::Open => What::Open { layer: layer() },
            Kind::Prepare => What::Prepare { layer: layer() },
            Kind::NoProfile => What::Profile { reads: None },
            Kind::Profile => What::Profile {
                reads: Some(record.bytes as usize),
            },
            Kind::Mount => What::Mount { by: name() },
            Kind::Fetch => What::Fetch {
                layer: layer(),
                cause: name(),
                offset: record.offset,
                bytes: record.bytes,
            },
            Kind::Wait => What::Wait {
                layer: layer(),
                file: String::new(),
                bytes: record.bytes,
                place: (record.segment, record.offset),
            },
        };
        Event {
            at: u64::from(record.at),
            took: u64::from(record.took),
            what,
        }
    }
}

/// Where `wanted` stands among the few that there are; it is added when it is new.
fn place<T: Clone + PartialEq>(known: &mut Vec<T>, wanted: &T) -> usize {
    known
        .iter()
        .position(|one| one == wanted)
        .unwrap_or_else(|| {
            known.push(wanted.clone());
            known.len() - 1
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_event_is_remembered_as_it_was() {
        let layer = |name: &str| Digest::of(name.as_bytes());
        let fetch = |name, cause: &str| What::Fetch {
            layer: layer(name),
            cause: cause.to_owned(),
            offset: 1 << 40,
            bytes: 3,
        };
        let all = [
            What::Resolve,
            What::Open { layer: layer("a") },
            What::Prepare { layer: layer("b") },
            What::Profile { reads: None },
            What::Profile { reads: Some(7) },
            What::Mount {
                by: "kernel".to_owned(),
            },
            fetch("a", "read"),
            fetch("b", "ahead"),
            What::Wait {
                layer: layer("b"),
                file: String::new(),
                bytes: u64::MAX,
                place: (9, 1 << 41),
            },
        ];
        let mut events = Events::default();
        let expected = all.into_iter().zip(0..).map(|(what, at)| Event {
            at,
            took: at * 2,
            what,
        });
        let expected: Vec<_> = expected.collect();
        assert!(expected.iter().all(|event| events.push(event)));
        assert_eq!(events.iter().collect::<Vec<_>>(), expected);
        assert_eq!((events.layers.len(), events.names.len()), (2, 3));
    }

    #[test]
    fn what_names_too_much_is_not_remembered() {
        let mut events = Events::default();
        let mount = |number: usize| Event {
            at: 0,
            took: 0,
            what: What::Mount {
                by: number.to_string(),
            },
        };
        assert!((0..256).all(|number| events.push(&mount(number))));
        assert!(!events.push(&mount(256)));
        assert!(events.push(&mount(255)));
        assert_eq!(events.len(), 257);
    }
}
