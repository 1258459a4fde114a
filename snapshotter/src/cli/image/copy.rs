//! `image copy`.

use std::path::PathBuf;

use super::AccessArgs;
use crate::cli::interrupt::undo_on_signal;
use crate::convert::{self, Place};
use crate::error::Result;
use crate::fetch::Registry;

/// What is copied where.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  xebec-snapshotter image copy oci:/srv/layout registry.example/app:v1\n  xebec-snapshotter image copy registry.example/app:v1 oci-archive:app.tar:v1"
)]
pub(super) struct Args {
    /// Image to copy: HOST/NAME:TAG, oci:DIR[:NAME] for an OCI layout, oci-archive:FILE[:NAME] for
    /// one in a tar archive, docker-archive:FILE[:NAME] for what `docker save` writes,
    /// containerd:NAME for one in containerd
    #[arg(value_name = "SRC")]
    source: Place,
    /// Where it goes, in the same forms
    #[arg(value_name = "DST")]
    destination: Place,
    /// Directory for temporary files [default: $TMPDIR, else /var/tmp]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArgs,
}

pub(super) fn run(mut args: Args) -> Result<()> {
    let mut places = [&mut args.source, &mut args.destination];
    let registry = Registry::new(args.access.apply(&mut places)?)?;
    let dir = args.temp_dir.unwrap_or_else(convert::default_temp_dir);
    let undo = undo_on_signal()?;
    let digest = convert::copy(&registry, &args.source, &args.destination, &dir, &undo)?;
    println!("{}@{digest}", args.destination);
    Ok(())
}
