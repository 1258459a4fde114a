//! `restore --import`: a bundle is made of an archive or image first.

use std::ffi::OsStr;
use std::path::{Path, PathBuf, absolute};

use clap::Args;
use xebec_checkpoints::import::{Bind, Bundle, Wishes, make_bundle};
use xebec_runtime::{CgroupsMode, Error, Result};

use super::checkpoint_images::Source;
use super::criu::Criu;
use super::kept::refused;

#[derive(Args, Debug)]
pub(super) struct Import {
    /// Make the bundle of an engine's archive, of the image in the layout oci:DIR[:NAME], or of one
    /// in a registry, HOST/NAME:TAG or docker://NAME
    #[arg(
        id = "import",
        long,
        value_name = "ARCHIVE|oci:DIR|REF",
        requires = "rootfs"
    )]
    source: Option<String>,
    /// Root file system of the image, for this container alone: its changes are made in it
    #[arg(long, value_name = "DIR", requires = "import")]
    rootfs: Option<PathBuf>,
    /// Network namespace in the place of the one that the container had joined
    #[arg(long, value_name = "FILE", requires = "import")]
    network: Option<PathBuf>,
    /// Agree with a bind mount of the archive, or give it another source
    #[arg(
        long = "bind",
        value_name = "DESTINATION[=SOURCE]",
        requires = "import"
    )]
    binds: Vec<Bind>,
    /// Do all that the archive says: its devices, capabilities, bind mounts and namespaces
    #[arg(long, requires = "import")]
    trusted: bool,
}

impl Import {
    /// Makes the bundle that is asked for, if one is, and has CRIU restore its images.
    pub(super) fn make_bundle(&self, criu: &mut Criu, bundle: &OsStr) -> Result<Option<Bundle>> {
        let (Some(source), Some(rootfs)) = (&self.source, &self.rootfs) else {
            return Ok(None);
        };
        if bundle == "." || criu.image_path.is_some() {
            let reason = "--import makes a bundle with the images: name its directory by --bundle";
            return Err(Error::InvalidArgument(reason.to_owned()));
        }
        if criu.lazy_pages {
            let reason = "--lazy-pages needs images that stay, which those of --import do not";
            return Err(Error::InvalidArgument(reason.to_owned()));
        }
        let wishes = Wishes {
            rootfs: real(rootfs)?,
            bundle: real(Path::new(bundle))?,
            network: self.network.clone(),
            binds: self.binds.clone(),
            trusted: self.trusted,
        };
        let parent = wishes.bundle.parent().unwrap_or(Path::new("/"));
        let archive = Source::of(source).open(parent)?;
        let made = make_bundle(archive, source, &wishes).map_err(|e| refused(&e))?;
        criu.image_path = Some(made.images());
        if !self.trusted && criu.manage_cgroups_mode == CgroupsMode::Auto {
            // Images say where cgroups are made, and what is written into their files.
            criu.manage_cgroups_mode = CgroupsMode::Ignore;
        }
        Ok(Some(made))
    }
}

fn real(path: &Path) -> Result<PathBuf> {
    absolute(path).map_err(Error::file("resolve", path))
}
