//! Image references, read as containerd and docker read them.
//!
//! `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`. The first component is a host only when it holds a dot or a
//! colon, is `localhost`, or has an upper-case letter; otherwise the image is on docker.io, where a
//! name of one component belongs to `library/`. Without tag and digest the tag is `latest`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Longest repository name (host and path) that docker's grammar allows.
const MAX_NAME: usize = 255;
/// Longest tag of the OCI distribution specification.
const MAX_TAG: usize = 128;

/// A parsed, fully qualified image reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Parses `text`, filling in docker's defaults.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse =
            |reason| Error::InvalidArgument(format!("image reference {text:?} has a {reason}"));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(|_| refuse("bad digest"))?),
            ),
            None => (text, None),
        };
        let (host, path) = split_host(rest);
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse("bad tag"));
        }
        if !is_host(host) {
            return Err(refuse("bad registry host"));
        }
        if !path.split('/').all(is_component) {
            return Err(refuse(
                "bad repository name (lower-case letters, digits and . _ - only)",
            ));
        }
        let host = if host == "index.docker.io" {
            "docker.io"
        } else {
            host
        };
        let repository = match host {
            "docker.io" if !path.contains('/') => format!("library/{path}"),
            _ => path.to_owned(),
        };
        if host.len() + 1 + repository.len() > MAX_NAME {
            return Err(refuse("name longer than 255 characters"));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            host: host.to_owned(),
            repository,
            tag,
            digest,
        })
    }

    /// The registry's name with its port, as in the reference (`docker.io`, not its API's host).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository below the host.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was given or is implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Host and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// What the manifest is asked for by: the digest when there is one, else the tag.
    pub fn manifest_key(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository at `tag`, which must be a valid one, without a digest.
    #[must_use]
    pub(crate) fn at_tag(&self, tag: &str) -> Self {
        debug_assert!(is_tag(tag), "{tag:?} is no tag");
        Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        }
    }

    /// Where clients keep a list of what refers to `subject` in the same repository, when its
    /// registry keeps none.
    pub(super) fn referrers_tag(&self, subject: &Digest) -> Self {
        self.at_tag(&format!("sha256-{}", subject.hex()))
    }

    /// The image whose tag is this one's and then `suffix`, in the same repository; none without a
    /// tag, or when the tag would be too long.
    pub fn with_suffix(&self, suffix: &str) -> Option<Self> {
        let tag = format!("{}{suffix}", self.tag.as_ref()?);
        is_tag(&tag).then(|| self.at_tag(&tag))
    }

    /// The same repository at `digest`, without a tag.
    #[must_use]
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// Host (docker.io when the first component is not one) and the rest.
fn split_host(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("docker.io", text),
    }
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    tag.len() <= MAX_TAG
        && bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Runs of lower-case letters and digits, joined by one dot, one or two underscores, or dashes.
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes
            .split(alphanumeric)
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<std::net::Ipv6Addr>().is_ok()
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    port.is_none_or(is_port) && name.split('.').all(is_host_label)
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let pinned = format!("host.example/app@{D}");
        let both = format!("10.0.0.1:5000/a/b:v1@{D}");
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("user/app:Tag_1.0-x", "docker.io/user/app:Tag_1.0-x"),
            ("test.com:5000", "docker.io/library/test.com:5000"),
            ("test.com:5000/app", "test.com:5000/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("LOCAL/app", "LOCAL/app:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("a.b/c__d/e--f/g.h_i:x", "a.b/c__d/e--f/g.h_i:x"),
            (&pinned, &pinned),
            (&both, &both),
        ];
        for (text, whole) in cases {
            let parsed = ImageRef::parse(text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(parsed.to_string(), whole, "{text}");
            assert_eq!(ImageRef::parse(whole).unwrap(), parsed, "{whole}");
        }
    }

    #[test]
    fn bad_references_are_refused_by_name() {
        let long = format!("h.example/{}", "a".repeat(256));
        let tag = format!("busybox:{}", "t".repeat(129));
        let cases = [
            "",
            "/",
            "Upper",
            "a//b",
            "a/",
            "app:",
            "app:-x",
            "app:a b",
            "app@sha256:12",
            "h.example:port/app",
            "h.example:70000/app",
            "h..example/app",
            "-h.example/app",
            "h.example/a___b",
            "h.example/.hidden",
            "h.example/../x",
            "h.example/a?b",
            "[::g]/app",
            "https://h.example/app",
            &long,
            &tag,
        ];
        for text in cases {
            match ImageRef::parse(text) {
                Err(Error::InvalidArgument(what)) => assert!(what.contains(&format!("{text:?}"))),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_suffix_goes_to_the_tag_and_not_to_a_digest() {
        let suffixed = |text: &str| {
            let image = ImageRef::parse(text).unwrap().with_suffix("-esgztoc");
            image.map(|image| image.to_string())
        };
        let expected = Some("h.example/app:v1-esgztoc".to_owned());
        assert_eq!(suffixed("h.example/app:v1"), expected);
        assert_eq!(suffixed(&format!("h.example/app:v1@{D}")), expected);
        assert_eq!(suffixed(&format!("h.example/app@{D}")), None);
        assert_eq!(
            suffixed(&format!("h.example/app:{}", "t".repeat(125))),
            None
        );
    }

    #[test]
    fn a_digest_wins_over_a_tag_as_manifest_key() {
        assert_eq!(ImageRef::parse("app:v1").unwrap().manifest_key(), "v1");
        assert_eq!(
            ImageRef::parse(&format!("app:v1@{D}"))
                .unwrap()
                .manifest_key(),
            D
        );
        let tagged = ImageRef::parse("app:v1").unwrap();
        assert_eq!(
            tagged.at_digest(D.parse().unwrap()).to_string(),
            format!("docker.io/library/app@{D}")
        );
    }
}
