//! Names of containers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A container's name: `[A-Za-z0-9_+.-]+`, but neither `.` nor `..`; always one path component.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for ContainerId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
        if text.is_empty() || text == "." || text == ".." || !text.bytes().all(allowed) {
            return Err(Error::InvalidId(text));
        }
        Ok(Self(text))
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_state_root_are_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\0b", "é", "a:b"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn names_that_runc_accepts_are_accepted() {
        for good in ["a", "A-1_b.c+d", "...", "0", "-x"] {
            assert_eq!(
                good.parse::<ContainerId>()
                    .map(String::from)
                    .ok()
                    .as_deref(),
                Some(good)
            );
        }
    }
}
