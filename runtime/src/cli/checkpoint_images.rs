//! Checkpoints as images: `checkpoint push` and `checkpoint pull`, and where an import finds its archive.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use xebec_checkpoints::{Room, config_of, oci};
use xebec_runtime::{Error, Result};

use super::export::Target;
use super::kept::refused;
use super::snapshotter::{Said, run};

/// Where temporary files go when nothing else is said: on disk rather than in memory.
const TEMPORARY: &str = "/var/tmp";

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec checkpoint push web.tar registry.example/web-checkpoint:1\n  xebec checkpoint push oci:/srv/layout 127.0.0.1:5000/web:1 -- --plain-http"
)]
pub(super) struct Push {
    /// Archive of an engine's, or the image in the layout oci:DIR[:NAME]
    #[arg(value_name = "ARCHIVE|oci:DIR")]
    checkpoint: String,
    /// The image that it becomes: HOST/NAME:TAG
    #[arg(value_name = "REF")]
    image: String,
    /// Further options of `xebec-snapshotter image copy`
    #[arg(last = true)]
    options: Vec<OsString>,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec checkpoint pull registry.example/web-checkpoint:1 web.tar\n  xebec restore --detach --import web.tar --rootfs /srv/web-root --bundle /bundles/web web"
)]
pub(super) struct Pull {
    /// The image: HOST/NAME:TAG
    #[arg(value_name = "REF")]
    image: String,
    /// The archive that it becomes, or a new layout
    #[arg(value_name = "FILE|oci:DIR")]
    to: String,
    /// Further options of `xebec-snapshotter image copy`
    #[arg(last = true)]
    options: Vec<OsString>,
}

impl Push {
    pub(super) fn carry_out(self) -> Result<u8> {
        let source = Source::of(&self.checkpoint);
        if matches!(source, Source::Registry(_)) {
            let reason = format!("{}: no archive, and no oci:DIR[:NAME]", self.checkpoint);
            return Err(Error::InvalidArgument(reason));
        }
        let place = std::env::var_os("TMPDIR").map_or_else(|| TEMPORARY.into(), PathBuf::from);
        let mut archive = source.open(&place)?;
        let container = config_of(&archive, &self.checkpoint).map_err(|e| refused(&e))?;
        let room = Room::make_in(&place).map_err(|e| refused(&e))?;
        let layout = room.path().join("layout");
        oci::write_layout(&layout, &container.name, &mut archive, &container)
            .map_err(|e| refused(&e))?;
        let from = format!("oci:{}", layout.display());
        copy(&from, &self.image, &self.options, Said::Shown)?;
        Ok(0)
    }
}

impl Pull {
    pub(super) fn carry_out(self) -> Result<u8> {
        let target = Target::of(&self.to);
        let (Target::Archive(path) | Target::Layout(path)) = &target;
        if fs::symlink_metadata(path).is_ok() {
            let exists = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(Error::file("create", path)(exists));
        }
        let room = Room::make_in(target.parent()).map_err(|e| refused(&e))?;
        let (layout, mut archive) = fetch(&room, &self.image, &self.options)?;
        let made = match &target {
            Target::Layout(_) => layout,
            Target::Archive(_) => {
                let draft = room.path().join("archive");
                let mut file = File::create_new(&draft).map_err(Error::file("create", &draft))?;
                io::copy(&mut archive, &mut file).map_err(Error::file("write", &draft))?;
                draft
            }
        };
        // It holds what processes know.
        let mode = if made.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(&made, Permissions::from_mode(mode))
            .and_then(|()| fs::rename(&made, path))
            .map_err(Error::file("create", path))?;
        Ok(0)
    }
}

/// Where an archive is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source<'a> {
    File(&'a str),
    Layout(&'a str, Option<&'a str>),
    Registry(&'a str),
}

impl<'a> Source<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        if let Some(layout) = text.strip_prefix("oci:") {
            return match layout.rsplit_once(':') {
                Some((directory, name)) if !name.contains('/') => {
                    Self::Layout(directory, Some(name))
                }
                _ => Self::Layout(layout, None),
            };
        }
        match text.strip_prefix("docker://") {
            Some(image) => Self::Registry(image),
            None if names_a_host(text) && !Path::new(text).exists() => Self::Registry(text),
            None => Self::File(text),
        }
    }

    /// Opens the archive; that of an image in a registry is in `parent` as long as it is open, without
    /// a name.
    pub(super) fn open(&self, parent: &Path) -> Result<File> {
        match self {
            Self::File(path) => File::open(path).map_err(Error::file("open", path)),
            Self::Layout(directory, name) => {
                oci::open_archive(Path::new(directory), *name).map_err(|e| refused(&e))
            }
            Self::Registry(image) => {
                let room = Room::make_in(parent).map_err(|e| refused(&e))?;
                fetch(&room, image, &[]).map(|(_, archive)| archive)
            }
        }
    }
}

/// Whether something begins as an image's name does that says where it is: by a host with a dot or
/// a port.
fn names_a_host(text: &str) -> bool {
    let host = text.split_once('/').map_or("", |(host, _)| host);
    host == "localhost" || (host.contains(['.', ':']) && !host.starts_with('.'))
}

/// Brings an image over, into a room; its layout there, and the archive in it, which is verified.
fn fetch(room: &Room, image: &str, options: &[OsString]) -> Result<(PathBuf, File)> {
    let layout = room.path().join("layout");
    let to = format!("oci:{}:checkpoint", layout.display());
    copy(image, &to, options, Said::Dropped)?;
    let archive = oci::open_archive(&layout, None);
    let archive = archive.map_err(|e| Error::InvalidArgument(format!("{image}: {e}")))?;
    Ok((layout, archive))
}

fn copy(from: &str, to: &str, options: &[OsString], said: Said) -> Result<()> {
    run(&["image", "copy", from, to], options, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_told_from_a_file_by_its_host() {
        for (text, source) in [
            ("web.tar", Source::File("web.tar")),
            ("/h.example/web:1", Source::File("/h.example/web:1")),
            ("./h.example/web", Source::File("./h.example/web")),
            ("../web.tar", Source::File("../web.tar")),
            ("backups/web.tar", Source::File("backups/web.tar")),
            ("oci:/srv/l", Source::Layout("/srv/l", None)),
            ("oci:/srv/l:web", Source::Layout("/srv/l", Some("web"))),
            ("docker://web", Source::Registry("web")),
            ("h.example/web:1", Source::Registry("h.example/web:1")),
            ("localhost/web", Source::Registry("localhost/web")),
            ("h:5000/web", Source::Registry("h:5000/web")),
        ] {
            assert_eq!(Source::of(text), source, "{text}");
        }
    }
}
