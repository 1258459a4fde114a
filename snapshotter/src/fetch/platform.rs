//! Platforms of images: `OS/ARCH[/VARIANT]`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// What an image runs on, as in the descriptors of an image index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Go's name of the architecture (`amd64`).
    pub architecture: String,
    /// Go's name of the operating system (`linux`).
    pub os: String,
    /// Variant of the architecture (`v7`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Further fields, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self::new("linux", architecture, None)
    }

    fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (os, architecture) = (os.to_owned(), architecture.to_owned());
        Self {
            architecture,
            os,
            variant: variant.map(str::to_owned),
            other: BTreeMap::new(),
        }
    }

    /// Whether an image for `offered` is one for this platform. No variant means the variant that
    /// the architecture has by convention.
    pub fn accepts(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && self.variant_or_default() == offered.variant_or_default()
    }

    fn variant_or_default(&self) -> Option<&str> {
        match (self.variant.as_deref(), self.architecture.as_str()) {
            (Some("") | None, "arm64") => Some("v8"),
            (Some("") | None, "arm") => Some("v7"),
            (Some("") | None, "amd64") => Some("v1"),
            (variant, _) => variant,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.split('/').collect();
        let valid = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        match parts.as_slice() {
            [os, architecture] if parts.iter().all(valid) => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] if parts.iter().all(valid) => {
                Ok(Self::new(os, architecture, Some(variant)))
            }
            _ => Err(Error::InvalidArgument(format!(
                "platform {text:?} is not OS/ARCH[/VARIANT]"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_match_with_their_conventional_variants() {
        let cases = [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v1", true),
            ("linux/amd64", "linux/amd64/v3", false),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/arm/v6", "linux/arm", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/amd64", "unknown/unknown", false),
        ];
        for (wanted, offered, matches) in cases {
            let parse = |text: &str| text.parse::<Platform>().unwrap();
            assert_eq!(
                parse(wanted).accepts(&parse(offered)),
                matches,
                "{wanted} {offered}"
            );
            assert_eq!(parse(offered).to_string(), offered);
        }
    }

    #[test]
    fn a_platform_that_is_none_is_refused() {
        for text in ["", "linux", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
