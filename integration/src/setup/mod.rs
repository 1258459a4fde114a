//! What a host needs and how it gets it: packages of this machine, the root file system, the
//! machine's disk, the corpus, the product's binaries. Each is made once and kept.

pub mod binaries;
pub mod disk;
pub mod mirror;
pub mod packages;
pub mod rootfs;

use crate::corpus;
use crate::error::Result;
use crate::paths::Paths;

/// What `integration setup` is to make.
#[derive(Debug, Clone, Default)]
pub struct SetupOptions {
    /// The disk of the VM host too.
    pub vm: bool,
    /// Images of the corpus; none named means all that tests and the demo use.
    pub images: Vec<String>,
    /// Leave the product's binaries as they are.
    pub skip_build: bool,
}

/// Makes whatever is missing. Two runs at once do not make anything twice.
pub fn run(options: &SetupOptions) -> Result<()> {
    let paths = Paths::find()?;
    packages::install(options.vm)?;
    rootfs::build(&paths)?;
    if options.vm {
        disk::build(&paths)?;
    }
    let images = if options.images.is_empty() {
        corpus::DEFAULT.map(str::to_owned).to_vec()
    } else {
        options.images.clone()
    };
    corpus::build(&paths, &images)?;
    if !options.skip_build {
        binaries::build(&paths)?;
    }
    Ok(())
}
