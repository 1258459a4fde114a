//! Tar entries as TOC entries.

use crate::digest::Digest;
use crate::formats::estargz::toc::{EntryType, TocEntry, XattrValue};

use super::tar::{TarEntry, Time};

/// What a TOC says of `entry`, without the place of its content.
pub(super) fn toc_entry(entry: &TarEntry) -> TocEntry {
    let is_dir = entry.kind == EntryType::Dir;
    let is_device = matches!(entry.kind, EntryType::Char | EntryType::Block);
    let is_link = matches!(entry.kind, EntryType::Symlink | EntryType::Hardlink);
    let is_empty_file = entry.kind == EntryType::Reg && entry.size == 0;
    let xattrs = entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.clone(), XattrValue(value.clone())));
    TocEntry {
        name: if is_dir {
            format!("{}/", entry.name)
        } else {
            entry.name.clone()
        },
        kind: entry.kind,
        size: entry.size,
        mod_time: rfc3339(entry.mtime),
        link_name: if is_link {
            entry.link.clone()
        } else {
            String::new()
        },
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        user_name: entry.user_name.clone(),
        group_name: entry.group_name.clone(),
        dev_major: if is_device { entry.dev_major } else { 0 },
        dev_minor: if is_device { entry.dev_minor } else { 0 },
        xattrs: xattrs.collect(),
        digest: if is_empty_file {
            Digest::of(b"").to_string()
        } else {
            String::new()
        },
        ..TocEntry::default()
    }
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction]Z`, in the Gregorian calendar extended backwards.
fn rfc3339(time: Time) -> String {
    let days = time.seconds.div_euclid(86_400);
    let second = time.seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match time.nanos {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Year, month and day of a number of days since 1970-01-01. Years are counted from March, so that
/// the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    /// From 0000-03-01 to 1970-01-01.
    const EPOCH: i64 = 719_468;
    let days = days + EPOCH;
    let era = days.div_euclid(DAYS_OF_400_YEARS);
    let day_of_era = days.rem_euclid(DAYS_OF_400_YEARS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_399, 0, "2000-02-28T23:59:59Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00Z"),
            (1_700_000_000, 500_000_000, "2023-11-14T22:13:20.5Z"),
            (-1, 999_999_999, "1969-12-31T23:59:59.999999999Z"),
            (-62_135_596_800, 0, "0001-01-01T00:00:00Z"),
        ];
        for (seconds, nanos, text) in cases {
            assert_eq!(rfc3339(Time { seconds, nanos }), text);
        }
    }
}
