//! What is known about one snapshot, and the only ways in which it may change.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::mount::LayerId;

/// Labels of a snapshot, as containerd hands them over.
pub type Labels = BTreeMap<String, String>;

/// Number that names a snapshot's directory; never used twice under one root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub u64);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The state of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only look at a committed snapshot.
    View,
    /// Writable, to be committed or thrown away.
    Active,
    /// Final; others may build on it.
    Committed,
}

impl Kind {
    /// The name that filters use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// Disk space that a snapshot takes, its parents not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Files, directories and other inodes; a hard-linked file counts once.
    pub inodes: u64,
    /// Allocated bytes.
    pub bytes: u64,
}

/// A point in time with the resolution of containerd's timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: u64,
    /// Nanoseconds of that second.
    pub nanos: u32,
}

impl Timestamp {
    /// This moment; the epoch itself if the clock stands before it.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self {
            seconds: since.as_secs(),
            nanos: since.subsec_nanos(),
        }
    }
}

/// The record of one snapshot; its name is the key under which it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names the directory of the snapshot.
    pub id: SnapshotId,
    /// Name of the committed snapshot it builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Its state.
    pub kind: Kind,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was prepared or, once committed, committed.
    pub created: Timestamp,
    /// When it was last changed.
    pub updated: Timestamp,
    /// What it takes, once committed.
    #[serde(default)]
    pub usage: Usage,
    /// The layer whose files are read lazily; such a snapshot has no directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerId>,
    /// That layer is the tree of all layers up to here: those below it are not looked at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
}

/// The layer of a lazy snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LazyLayer {
    /// The layer.
    pub layer: LayerId,
    /// Whether it is the tree of all layers up to here.
    pub whole: bool,
}

impl From<LayerId> for LazyLayer {
    fn from(layer: LayerId) -> Self {
        let whole = false;
        Self { layer, whole }
    }
}

impl Record {
    /// A new active snapshot or view.
    pub fn new(
        id: SnapshotId,
        kind: Kind,
        parent: Option<&str>,
        labels: Labels,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            parent: parent.map(str::to_owned),
            kind,
            labels: without_empty(labels),
            created: now,
            updated: now,
            usage: Usage::default(),
            layer: None,
            whole: false,
        }
    }

    /// A snapshot whose files come from a lazy layer: it is committed from the start.
    pub fn lazy(
        id: SnapshotId,
        parent: Option<&str>,
        labels: Labels,
        now: Timestamp,
        LazyLayer { layer, whole }: LazyLayer,
    ) -> Self {
        let record = Self::new(id, Kind::Committed, parent, labels, now);
        Self {
            layer: Some(layer),
            whole,
            ..record
        }
    }

    /// Fails unless others may build on this snapshot.
    pub fn check_parent(&self, name: &str) -> Result<()> {
        match self.kind {
            Kind::Committed => Ok(()),
            Kind::Active | Kind::View => Err(Error::InvalidArgument(format!(
                "parent {name:?} is not a committed snapshot"
            ))),
        }
    }

    /// The committed form of an active snapshot. Labels are replaced, not inherited.
    pub fn commit(self, name: &str, labels: Labels, usage: Usage, now: Timestamp) -> Result<Self> {
        match self.kind {
            Kind::Active => Ok(Self {
                kind: Kind::Committed,
                labels: without_empty(labels),
                usage,
                created: now,
                updated: now,
                ..self
            }),
            Kind::View | Kind::Committed => Err(Error::FailedPrecondition(format!(
                "snapshot {name:?} is not active"
            ))),
        }
    }

    /// Applies an update: only labels can change; an empty mask replaces all of them.
    ///
    /// A label that the mask names and `labels` lacks is deleted.
    pub fn relabel(mut self, labels: &Labels, mask: &[String], now: Timestamp) -> Result<Self> {
        if mask.is_empty() {
            self.labels.clone_from(labels);
        }
        for path in mask {
            if path == "labels" {
                self.labels.clone_from(labels);
            } else if let Some(key) = path.strip_prefix("labels.") {
                let value = labels.get(key).cloned().unwrap_or_default();
                self.labels.insert(key.to_owned(), value);
            } else {
                return Err(Error::InvalidArgument(format!(
                    "field {path:?} cannot be updated"
                )));
            }
        }
        self.labels = without_empty(self.labels);
        self.updated = now;
        Ok(self)
    }
}

/// containerd's own store takes a label with an empty value for one that is not there.
fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use tonic::Code;

    const THEN: Timestamp = Timestamp {
        seconds: 1,
        nanos: 0,
    };
    const NOW: Timestamp = Timestamp {
        seconds: 2,
        nanos: 5,
    };

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    fn record(kind: Kind) -> Record {
        Record::new(
            SnapshotId(7),
            kind,
            Some("base"),
            labels(&[("a", "1"), ("b", "2")]),
            THEN,
        )
    }

    #[test]
    fn only_an_active_snapshot_can_be_committed() {
        for kind in [Kind::View, Kind::Committed] {
            let error = record(kind)
                .commit("n", Labels::new(), Usage::default(), NOW)
                .unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{kind:?}");
        }
        let usage = Usage {
            inodes: 3,
            bytes: 4096,
        };
        let done = record(Kind::Active)
            .commit("n", labels(&[("c", "3")]), usage, NOW)
            .unwrap();
        assert_eq!(done.kind, Kind::Committed);
        assert_eq!(done.labels, labels(&[("c", "3")]));
        assert_eq!((done.usage, done.created, done.updated), (usage, NOW, NOW));
        assert_eq!(
            (done.id, done.parent.as_deref()),
            (SnapshotId(7), Some("base"))
        );
    }

    #[test]
    fn only_a_committed_snapshot_can_be_a_parent() {
        record(Kind::Committed).check_parent("p").unwrap();
        for kind in [Kind::View, Kind::Active] {
            let error = record(kind).check_parent("p").unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{kind:?}");
        }
    }

    #[test]
    fn an_update_changes_the_labels_that_its_mask_names() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let cases: [(&[&str], Pairs<'_>, Pairs<'_>); 5] = [
            (&[], &[("c", "3")], &[("c", "3")]),
            (&["labels"], &[("c", "3")], &[("c", "3")]),
            (
                &["labels.a"],
                &[("a", "9"), ("b", "9")],
                &[("a", "9"), ("b", "2")],
            ),
            (&["labels.a"], &[], &[("b", "2")]),
            (
                &["labels.x/y.z"],
                &[("x/y.z", "1")],
                &[("a", "1"), ("b", "2"), ("x/y.z", "1")],
            ),
        ];
        for (mask, given, expected) in cases {
            let mask: Vec<String> = mask.iter().map(ToString::to_string).collect();
            let updated = record(Kind::Active)
                .relabel(&labels(given), &mask, NOW)
                .expect("a legal update");
            assert_eq!(updated.labels, labels(expected), "{mask:?} {given:?}");
            assert_eq!((updated.created, updated.updated), (THEN, NOW));
        }
    }

    #[test]
    fn nothing_but_labels_can_be_updated() {
        for path in ["kind", "parent", "name", "labelsx"] {
            let mask = [path.to_owned()];
            let error = record(Kind::Active)
                .relabel(&Labels::new(), &mask, NOW)
                .unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{path}");
        }
    }

    #[test]
    fn a_record_survives_being_written_and_read() {
        let lazy = Record::lazy(
            SnapshotId(9),
            None,
            labels(&[("a", "1")]),
            NOW,
            LazyLayer {
                layer: Digest::of(b"layer").into(),
                whole: true,
            },
        );
        for record in [record(Kind::View), lazy] {
            let bytes = serde_json::to_vec(&record).unwrap();
            assert_eq!(serde_json::from_slice::<Record>(&bytes).unwrap(), record);
        }
    }
}
