//! Which checkpoints go, before one is written: by age, by number, and for room.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::chunk::Word;
use super::record::{Head, Stored};

/// Files take whole blocks of so many bytes.
const BLOCK: u64 = 4096;

/// What a store may hold. Pinned checkpoints are neither counted nor removed by number and age, and
/// never removed for room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Checkpoints of one container.
    pub count: Option<u32>,
    /// Seconds after which a checkpoint is too old.
    pub age: Option<u64>,
    /// Bytes that all take together.
    pub bytes: Option<u64>,
    /// Bytes that stay free on the disk.
    pub free: Option<u64>,
}

impl Limits {
    /// These, and where they say nothing, others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            count: self.count.or(other.count),
            age: self.age.or(other.age),
            bytes: self.bytes.or(other.bytes),
            free: self.free.or(other.free),
        }
    }
}

/// A checkpoint that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept<'a> {
    pub(crate) head: &'a Head,
    /// Bytes of its record.
    pub(crate) record: u64,
    pub(crate) pinned: bool,
}

/// One that is to come.
#[derive(Debug)]
pub(crate) struct Coming<'a> {
    pub(crate) container: &'a str,
    pub(crate) pinned: bool,
    /// All its chunks.
    pub(crate) chunks: &'a [Stored],
    /// Bytes of its record.
    pub(crate) record: u64,
}

/// What a file of so many bytes takes of the disk.
pub(crate) fn on_disk(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK) * BLOCK
}

/// What checkpoints take of the disk together.
pub(crate) struct Usage {
    references: HashMap<Word, (u32, u64)>,
    total: u64,
}

impl Usage {
    pub(crate) fn new() -> Self {
        Self {
            references: HashMap::new(),
            total: 0,
        }
    }

    /// Bytes.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn add(&mut self, chunks: &[Stored], record: u64) {
        self.total += on_disk(record);
        for chunk in chunks {
            let bytes = on_disk(chunk.bytes.into());
            let (count, _) = self.references.entry(chunk.id).or_insert((0, bytes));
            *count += 1;
            if *count == 1 {
                self.total += bytes;
            }
        }
    }

    fn remove(&mut self, chunks: &[Stored], record: u64) {
        self.total -= on_disk(record);
        for chunk in chunks {
            if let Some((count, bytes)) = self.references.get_mut(&chunk.id) {
                *count -= 1;
                if *count == 0 {
                    self.total -= *bytes;
                }
            }
        }
    }

    /// Bytes that only this checkpoint takes.
    pub(crate) fn own(&self, chunks: &[Stored]) -> u64 {
        let counts = chunks
            .iter()
            .filter_map(|chunk| self.references.get(&chunk.id));
        counts
            .filter(|(count, _)| *count == 1)
            .map(|(_, bytes)| bytes)
            .sum()
    }
}

/// The names of those that go, oldest first; or why there would be no room even so.
pub(crate) fn plan<'a>(
    kept: &[Kept<'a>],
    coming: Option<&Coming<'_>>,
    limits: &Limits,
    (now, free): (Duration, u64),
) -> Result<Vec<&'a str>, String> {
    let mut usage = Usage::new();
    for one in kept {
        usage.add(&one.head.chunks, one.record);
    }
    let before = usage.total();
    if let Some(coming) = coming {
        usage.add(coming.chunks, coming.record);
    }
    let mut going = by_age_and_number(kept, coming, limits, now);
    for one in kept
        .iter()
        .filter(|one| going.contains(one.head.name.as_str()))
    {
        usage.remove(&one.head.chunks, one.record);
    }
    let mut oldest: Vec<_> = kept.iter().filter(|one| !one.pinned).collect();
    oldest.sort_by(|a, b| age_order(a).cmp(&age_order(b)));
    for one in &oldest {
        if lacks(&usage, before, limits, free).is_none() {
            break;
        }
        if going.insert(&one.head.name) {
            usage.remove(&one.head.chunks, one.record);
        }
    }
    // Without a limit nothing is removed for the disk's sake; but what cannot fit is not begun.
    let full = || {
        let missing = -left(&usage, before, free);
        (missing > 0).then(|| format!("the disk lacks {missing} bytes"))
    };
    match lacks(&usage, before, limits, free).or_else(full) {
        // What is there stays, whatever there is no room for.
        Some(reason) if coming.is_some() => Err(reason),
        _ => {
            let names = oldest.iter().map(|one| one.head.name.as_str());
            Ok(names.filter(|name| going.contains(name)).collect())
        }
    }
}

fn age_order<'a>(one: &Kept<'a>) -> (u64, &'a str) {
    (one.head.created, &one.head.name)
}

fn by_age_and_number<'a>(
    kept: &[Kept<'a>],
    coming: Option<&Coming<'_>>,
    limits: &Limits,
    now: Duration,
) -> HashSet<&'a str> {
    let mut counts: HashMap<&str, u32> = HashMap::new();
    if let Some(coming) = coming.filter(|coming| !coming.pinned) {
        counts.insert(coming.container, 1);
    }
    let mut youngest: Vec<_> = kept.iter().filter(|one| !one.pinned).collect();
    youngest.sort_by(|a, b| age_order(b).cmp(&age_order(a)));
    let mut going = HashSet::new();
    for one in youngest {
        let too_old = limits
            .age
            .is_some_and(|age| one.head.created.saturating_add(age) < now.as_secs());
        let count = counts.entry(&one.head.container).or_default();
        if too_old || limits.count.is_some_and(|limit| *count >= limit) {
            going.insert(one.head.name.as_str());
        } else {
            *count += 1;
        }
    }
    going
}

/// Which limit does not hold.
fn lacks(usage: &Usage, before: u64, limits: &Limits, free: u64) -> Option<String> {
    if let Some(limit) = limits.bytes
        && usage.total() > limit
    {
        return Some(format!("{} bytes where {limit} are allowed", usage.total()));
    }
    let wanted = limits.free?;
    let after = left(usage, before, free);
    let reason = || format!("{after} bytes of the disk would be free, not {wanted}");
    (after < i128::from(wanted)).then(reason)
}

/// Bytes of the disk that are free afterwards.
fn left(usage: &Usage, before: u64, free: u64) -> i128 {
    i128::from(free) + i128::from(before) - i128::from(usage.total())
}

#[cfg(test)]
mod tests {
    use super::super::record::Label;
    use super::*;

    const MIB: u64 = 1 << 20;
    const NOW: u64 = 1_000_000;

    /// Checkpoint `name` of a container, made at a time, with these chunks of a MiB.
    fn head(name: &str, container: &str, created: u64, chunks: &[u8]) -> Head {
        let label = Label {
            name: name.to_owned(),
            container: container.to_owned(),
            created,
        };
        Head::new(label, 0, false, stored(chunks))
    }

    fn stored(chunks: &[u8]) -> Vec<Stored> {
        let chunk = |&number: &u8| Stored {
            id: Word([number; 32]),
            bytes: MIB as u32,
        };
        chunks.iter().map(chunk).collect()
    }

    /// What goes when `coming` chunks of container `a` come, `free` MiB being free.
    fn going(
        heads: &[Head],
        pinned: &[&str],
        coming: Option<&[u8]>,
        limits: &Limits,
        free: u64,
    ) -> Result<Vec<String>, String> {
        let kept: Vec<_> = heads
            .iter()
            .map(|head| Kept {
                head,
                record: 0,
                pinned: pinned.contains(&head.name.as_str()),
            })
            .collect();
        let chunks = coming.map(stored);
        let coming = chunks.as_ref().map(|chunks| Coming {
            container: "a",
            pinned: false,
            chunks,
            record: 0,
        });
        let at = (Duration::from_secs(NOW), free * MIB);
        plan(&kept, coming.as_ref(), limits, at)
            .map(|names| names.into_iter().map(str::to_owned).collect())
    }

    fn three() -> [Head; 3] {
        [
            head("old", "a", NOW - 300, &[1, 2]),
            head("other", "b", NOW - 200, &[1, 3]),
            head("new", "a", NOW - 100, &[2, 4]),
        ]
    }

    #[test]
    fn without_limits_nothing_goes_and_what_cannot_fit_is_refused() {
        let none = Limits::default();
        assert_eq!(going(&three(), &[], Some(&[5]), &none, 1), Ok(vec![]));
        assert!(going(&three(), &[], Some(&[5, 6]), &none, 1).is_err());
        // Chunks that are there need no room.
        assert_eq!(going(&three(), &[], Some(&[1, 2]), &none, 0), Ok(vec![]));
    }

    #[test]
    fn the_oldest_of_a_container_goes_for_a_new_one() {
        let two = Limits {
            count: Some(2),
            ..Limits::default()
        };
        assert_eq!(
            going(&three(), &[], Some(&[]), &two, 0),
            Ok(vec!["old".to_owned()])
        );
        assert_eq!(going(&three(), &[], None, &two, 0), Ok(vec![]));
        assert_eq!(going(&three(), &["old"], Some(&[]), &two, 0), Ok(vec![]));
    }

    #[test]
    fn what_is_too_old_goes_unless_it_is_pinned() {
        let limits = Limits {
            age: Some(150),
            ..Limits::default()
        };
        assert_eq!(
            going(&three(), &[], None, &limits, 0),
            Ok(vec!["old".to_owned(), "other".to_owned()])
        );
        assert_eq!(
            going(&three(), &["old"], None, &limits, 0),
            Ok(vec!["other".to_owned()])
        );
    }

    #[test]
    fn bytes_count_once_however_many_checkpoints_share_them() {
        let limits = |mib| Limits {
            bytes: Some(mib * MIB),
            ..Limits::default()
        };
        assert_eq!(going(&three(), &[], None, &limits(4), 9), Ok(vec![]));
        // The oldest has nothing for itself: the next one has to go, too.
        let both = Ok(vec!["old".to_owned(), "other".to_owned()]);
        assert_eq!(going(&three(), &[], None, &limits(3), 9), both);
        assert_eq!(
            going(&three(), &[], Some(&[1, 3]), &limits(4), 9),
            Ok(vec![])
        );
        let refused = going(&three(), &["old", "new"], Some(&[7, 8]), &limits(4), 9);
        assert!(refused.is_err(), "{refused:?}");
    }

    #[test]
    fn the_disk_keeps_free_what_it_is_told_to() {
        let limits = |mib| Limits {
            free: Some(mib * MIB),
            ..Limits::default()
        };
        assert_eq!(going(&three(), &[], Some(&[5]), &limits(1), 2), Ok(vec![]));
        let both = Ok(vec!["old".to_owned(), "other".to_owned()]);
        assert_eq!(going(&three(), &[], Some(&[5]), &limits(2), 2), both);
        assert!(going(&three(), &[], Some(&[5]), &limits(50), 2).is_err());
    }
}
