//! Where images come from and go to, as named on the command line: skopeo's words for it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::fetch::ImageRef;

use super::archive::{Archive, ArchiveKind};
use super::containerd::ContainerdImage;
use super::layout::Layout;

/// An image's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `[docker://]HOST/NAME:TAG`.
    Registry(ImageRef),
    /// `oci:DIR[:NAME]`.
    Layout(Layout),
    /// `oci-archive:FILE[:NAME]`, `docker-archive:FILE[:NAME]`.
    Archive(Archive),
    /// `containerd:NAME`.
    Containerd(ContainerdImage),
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Without a host in front these words would be names of images on docker.io.
        if let Some((transport, rest)) = text.split_once(':') {
            match transport {
                "oci" => return Layout::parse(rest).map(Self::Layout),
                "oci-archive" => {
                    return Archive::parse(ArchiveKind::Oci, rest).map(Self::Archive);
                }
                "docker-archive" => {
                    return Archive::parse(ArchiveKind::Docker, rest).map(Self::Archive);
                }
                "containerd" => return ContainerdImage::parse(rest).map(Self::Containerd),
                _ => {}
            }
        }
        let reference = text.strip_prefix("docker://").unwrap_or(text);
        ImageRef::parse(reference).map(Self::Registry)
    }
}

impl Place {
    /// What docker will load.
    pub(super) fn is_docker_archive(&self) -> bool {
        matches!(self, Self::Archive(archive) if archive.kind == ArchiveKind::Docker)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(image) => image.fmt(f),
            Self::Layout(layout) => layout.fmt(f),
            Self::Archive(archive) => archive.fmt(f),
            Self::Containerd(image) => image.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_skopeos_names_and_show_them() {
        for (text, shown) in [
            ("h:5000/a/b:v1", "h:5000/a/b:v1"),
            ("docker://busybox", "docker.io/library/busybox:latest"),
            ("oci:/a/b:v1", "oci:/a/b:v1"),
            ("oci-archive:x.tar", "oci-archive:x.tar"),
            ("oci-archive:x.tar:a/b:v1", "oci-archive:x.tar:a/b:v1"),
            ("docker-archive:/x.tar:b:v1", "docker-archive:/x.tar:b:v1"),
            ("containerd:h.test/a:v1", "containerd:h.test/a:v1"),
        ] {
            let place: Place = text.parse().unwrap();
            assert_eq!(place.to_string(), shown);
            assert_eq!(shown.parse::<Place>().unwrap(), place);
        }
        for text in [
            "oci:",
            "oci-archive:",
            "docker-archive::x",
            "docker-archive:x:",
            "containerd:",
            "A b",
        ] {
            let error = text.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
