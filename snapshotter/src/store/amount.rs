//! Amounts of disk space as a configuration gives them.

use std::str::FromStr;

use serde::Deserialize;

/// `20GiB`, `500MB`, `10%` of the file system, or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Given")]
pub enum Amount {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of a whole, at most 100.
    Percent(u64),
}

impl Amount {
    /// The amount in bytes; a share is one of `whole`.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (u128::from(whole) * u128::from(percent) / 100) as u64,
        }
    }
}

/// How an amount stands in a file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Number(u64),
    Text(String),
}

impl TryFrom<Given> for Amount {
    type Error = String;

    fn try_from(given: Given) -> Result<Self, String> {
        match given {
            Given::Number(bytes) => Ok(Self::Bytes(bytes)),
            Given::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is no amount such as \"20GiB\", \"500MB\" or \"10%\"");
        let end = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let number: u64 = number.parse().map_err(|_| refused())?;
        let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "%" if number <= 100 => return Ok(Self::Percent(number)),
            "" | "b" => 1,
            "k" | "kb" => 1000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "t" | "tb" => 1_000_000_000_000,
            "ki" | "kib" => 1 << 10,
            "mi" | "mib" => 1 << 20,
            "gi" | "gib" => 1 << 30,
            "ti" | "tib" => 1 << 40,
            _ => return Err(refused()),
        };
        let bytes = number.checked_mul(factor).ok_or_else(refused)?;
        Ok(Self::Bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_a_unit_or_is_a_share() {
        let bytes = [
            ("0", 0),
            ("4096", 4096),
            ("20GiB", 20 << 30),
            ("20 gib", 20 << 30),
            ("500MB", 500_000_000),
            ("3Ti", 3 << 40),
            ("10%", 20),
            ("100%", 200),
        ];
        for (text, expected) in bytes {
            assert_eq!(text.parse::<Amount>().unwrap().of(200), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_named() {
        for text in [
            "",
            "GiB",
            "-1",
            "1.5GiB",
            "101%",
            "20 parsecs",
            "99999999TiB",
        ] {
            let error = text.parse::<Amount>().unwrap_err();
            assert!(error.starts_with(&format!("{text:?}")), "{error}");
        }
    }
}
