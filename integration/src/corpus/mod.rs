//! Real images from Debian's packages, each an OCI layout of its own below one directory.
//!
//! Deterministic for one state of the archive: times are clamped, volatile files left out, tars
//! sorted, gzip without name and time. Every image of [`recipes`] has two layers, of which the
//! base is shared, so that de-duplication has something to find.

mod build;
mod layout;
mod many;
mod odd;
pub mod recipes;
mod tree;

use std::path::PathBuf;

pub use build::build;
pub use odd::{BYTES, HUGE, ODD, SPARSE, TIMES, TWICE, build as build_odd};
pub use recipes::{ALL, DEFAULT, FIRST, Recipe};

use crate::error::{Error, Result};
use crate::paths::{Paths, existing};

/// The directory of all finished images; it changes when a recipe does.
pub fn directory(paths: &Paths) -> PathBuf {
    paths.cache.join(format!("corpus-{}", recipes::key()))
}

/// The OCI layout of one image, or an error that says how to get it.
pub fn find(paths: &Paths, image: &str) -> Result<PathBuf> {
    recipes::find(image).ok_or_else(|| Error::invalid(image, "no such image in the corpus"))?;
    existing(directory(paths).join(image), "setup --image NAME")
}
