//! How much room the store may take, and what follows from how much it takes.

use super::{Allowance, Amount, Stored};

/// Room that is made when a disk is full: the next write will want some, too.
const AT_LEAST: u64 = 32 << 20;
/// What is enough for a write to be tried again.
const ENOUGH: u64 = 8 << 20;
/// Most bytes that are written before free space is looked at again.
const MOST_UNSEEN: u64 = 256 << 20;
/// Fewest of them: measuring has its cost.
const LEAST_UNSEEN: u64 = 4 << 20;

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of the store; a share is one of the file system.
    pub quota: Option<Amount>,
    /// Down to where is evicted when it is exceeded; a share is one of the quota.
    pub low_water: Amount,
    /// What is left free for others; a share is one of the file system.
    pub keep_free: Amount,
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// Bytes that the store takes on disk.
    pub used: u64,
    /// Bytes of the file system that unprivileged users may still take; 0 if it has no inodes left.
    pub free: u64,
    /// Bytes of the file system.
    pub whole: u64,
}

impl Levels {
    /// Whether a write may be tried again that has found the disk full.
    pub fn has_room(self) -> bool {
        self.free >= ENOUGH
    }
}

impl Limits {
    /// The quota in bytes.
    pub fn quota_of(&self, whole: u64) -> Option<u64> {
        self.quota.map(|quota| quota.of(whole))
    }

    /// Bytes that are to be evicted now.
    pub fn excess(&self, levels: Levels) -> u64 {
        let over_quota = match self.quota_of(levels.whole) {
            Some(quota) if levels.used > quota => levels.used - self.low_water.of(quota).min(quota),
            _ => 0,
        };
        let keep = self.keep_free.of(levels.whole);
        let too_full = match keep.saturating_sub(levels.free) {
            0 => 0,
            // A quarter more, so as not to be here again at once.
            missing => missing + keep / 4,
        };
        over_quota.max(too_full)
    }

    /// Bytes that are to be evicted since a write has found the disk full; 0 if there is room by
    /// now.
    pub fn when_full(&self, levels: Levels) -> u64 {
        if levels.has_room() {
            return 0;
        }
        let missing = AT_LEAST.saturating_sub(levels.free);
        self.excess(levels).max(missing)
    }

    /// Bytes that may be stored of what nobody has asked for: up to where is evicted to. What is
    /// read goes further, up to where is evicted from, before anything has to go.
    fn spare(&self, levels: Levels) -> u64 {
        let until_low_water = self.quota_of(levels.whole).map_or(u64::MAX, |quota| {
            let low_water = self.low_water.of(quota).min(quota);
            low_water.saturating_sub(levels.used)
        });
        let keep = self.keep_free.of(levels.whole);
        until_low_water.min(levels.free.saturating_sub(keep + keep / 4))
    }

    /// What may be written until the levels are looked at again.
    pub fn allowance(&self, levels: Levels) -> Allowance {
        Allowance {
            leeway: self.leeway(levels),
            spare: self.spare(levels),
            is_short: self.excess(levels) > 0,
        }
    }

    /// Bytes that may be written before the levels are looked at again.
    fn leeway(&self, levels: Levels) -> u64 {
        let quota = self.quota_of(levels.whole).unwrap_or(u64::MAX);
        let until_quota = quota.saturating_sub(levels.used);
        let until_full = levels.free.saturating_sub(self.keep_free.of(levels.whole));
        until_quota.min(until_full).clamp(LEAST_UNSEEN, MOST_UNSEEN)
    }
}

/// What is to go, and in which order, until `wanted` bytes are free: what was used least lately
/// first. More is listed than is needed, since some of it may turn out to be in use.
pub fn oldest_first(mut candidates: Vec<Stored>) -> Vec<Stored> {
    candidates.retain(|stored| stored.data > 0);
    candidates.sort_by(|one, other| {
        let by_use = one.used.cmp(&other.used);
        by_use.then_with(|| one.layer.cmp(&other.layer))
    });
    candidates
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::digest::Digest;
    use crate::store::Footprint;

    const WHOLE: u64 = 1000 << 30;

    fn limits(quota: Option<&str>, low_water: &str, keep_free: &str) -> Limits {
        Limits {
            quota: quota.map(|text| text.parse().unwrap()),
            low_water: low_water.parse().unwrap(),
            keep_free: keep_free.parse().unwrap(),
        }
    }

    fn levels(used: u64, free: u64) -> Levels {
        Levels {
            used: used << 30,
            free: free << 30,
            whole: WHOLE,
        }
    }

    #[test]
    fn a_quota_that_is_exceeded_is_undercut() {
        let limits = limits(Some("100GiB"), "80%", "0");
        assert_eq!(limits.excess(levels(100, 0)), 0, "it is not exceeded");
        assert_eq!(limits.excess(levels(101, 500)), 21 << 30);
        let share = self::limits(Some("10%"), "90GiB", "0");
        assert_eq!(share.excess(levels(101, 500)), 11 << 30);
        let above = self::limits(Some("100GiB"), "200GiB", "0");
        assert_eq!(
            above.excess(levels(101, 500)),
            1 << 30,
            "never up to more than the quota"
        );
    }

    #[test]
    fn what_is_to_stay_free_is_freed_and_a_little_more() {
        let limits = limits(None, "80%", "2%");
        assert_eq!(limits.excess(levels(500, 20)), 0);
        assert_eq!(limits.excess(levels(500, 10)), 15 << 30);
        assert_eq!(self::limits(None, "80%", "0").excess(levels(999, 0)), 0);
    }

    #[test]
    fn a_full_disk_is_worth_some_room_without_any_limit() {
        let limits = limits(None, "80%", "0");
        assert_eq!(limits.when_full(levels(1, 0)), AT_LEAST);
        assert_eq!(
            limits.when_full(levels(1, 1)),
            0,
            "somebody else has made room"
        );
    }

    #[test]
    fn what_nobody_has_asked_for_stays_below_where_is_evicted_to() {
        let quota = limits(Some("100GiB"), "80%", "2%");
        assert_eq!(quota.spare(levels(30, 500)), 50 << 30);
        assert_eq!(quota.spare(levels(80, 500)), 0, "it would be evicted for");
        assert_eq!(quota.spare(levels(30, 35)), 10 << 30, "25 GiB stay free");
        assert_eq!(quota.spare(levels(30, 21)), 0);
        let none = limits(None, "80%", "0");
        assert_eq!(none.spare(levels(900, 100)), 100 << 30);
        // Stored up to there, nothing is in excess, whatever was measured.
        for before in [levels(30, 500), levels(10, 40), levels(79, 26)] {
            let spare = quota.spare(before);
            let after = Levels {
                used: before.used + spare,
                free: before.free - spare,
                ..before
            };
            assert_eq!(quota.excess(after), 0, "{before:?}");
        }
    }

    #[test]
    fn the_nearer_the_limit_the_sooner_is_the_next_look() {
        let limits = limits(Some("100GiB"), "80%", "2%");
        assert_eq!(limits.leeway(levels(10, 500)), MOST_UNSEEN);
        let near = Levels {
            used: (100 << 30) - (10 << 20),
            ..levels(0, 500)
        };
        assert_eq!(limits.leeway(near), 10 << 20);
        assert_eq!(limits.leeway(levels(200, 500)), LEAST_UNSEEN);
    }

    #[test]
    fn the_least_lately_used_goes_first_and_what_holds_nothing_stays() {
        let stored = |name: &[u8], used: u64, data: u64| Stored {
            layer: Digest::of(name),
            footprint: Footprint::default(),
            data,
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(used),
        };
        let all = vec![
            stored(b"new", 30, 1),
            stored(b"empty", 1, 0),
            stored(b"old", 10, 1),
            stored(b"middle", 20, 1),
        ];
        let order: Vec<_> = oldest_first(all).iter().map(|one| one.layer).collect();
        let expected: [&[u8]; 3] = [b"old", b"middle", b"new"];
        assert_eq!(order, expected.map(Digest::of));
    }
}
