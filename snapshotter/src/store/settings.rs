//! The `[store]` table of the configuration.

use serde::Deserialize;

use super::{Amount, Limits};

/// What is kept of lazy layers; amounts are `"20GiB"`, `"500MB"`, or a share such as `"10%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Most bytes that lazy layers may take on disk; a share is one of the file system. Without
    /// it they may take all.
    pub quota: Option<Amount>,
    /// How far is evicted when the quota is exceeded; a share is one of the quota.
    pub low_water: Amount,
    /// Evict when less than this is free on the file system; a share is one of the file system.
    pub keep_free: Amount,
    /// Whether complete files are sealed.
    pub fs_verity: FsVerity,
}

/// The `store.fs_verity` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsVerity {
    /// Where the file system can.
    Auto,
    /// No more; what is sealed stays so.
    Off,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            quota: None,
            low_water: Amount::Percent(80),
            keep_free: Amount::Percent(2),
            fs_verity: FsVerity::Auto,
        }
    }
}

impl From<&StoreSection> for Limits {
    fn from(section: &StoreSection) -> Self {
        Self {
            quota: section.quota,
            low_water: section.low_water,
            keep_free: section.keep_free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_sizes_or_shares() {
        let parse = toml::from_str::<StoreSection>;
        let section = parse("quota = \"20GiB\"\nkeep_free = \"5%\"").unwrap();
        assert_eq!(section.quota, Some(Amount::Bytes(20 << 30)));
        assert_eq!(section.keep_free, Amount::Percent(5));
        assert_eq!(section.low_water, Amount::Percent(80));
        assert_eq!(section.fs_verity, FsVerity::Auto);
        let off = parse("fs_verity = \"off\"").unwrap();
        assert_eq!(off.fs_verity, FsVerity::Off);
        let error = parse("quota = \"a lot\"").unwrap_err().to_string();
        assert!(
            error.contains("a lot") && error.contains("quota"),
            "{error}"
        );
    }
}
