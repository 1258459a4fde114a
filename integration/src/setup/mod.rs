//! What a host needs and how it gets it: packages of this machine, the root file system, the
//! machine's disk, older and other programs, the corpus, the product's binaries. Each is made once and kept.

pub mod binaries;
pub mod disk;
pub mod mirror;
pub mod packages;
pub mod rootfs;
pub mod suites;
pub mod tools;

use crate::corpus;
use crate::error::Result;
use crate::paths::{Paths, require_root};

/// What `integration setup` is to make.
#[derive(Debug, Clone, Default)]
pub struct SetupOptions {
    /// What all tests need: the VM host, old containerds and other clients, every image but the large one, cargo-nextest.
    pub vm: bool,
    /// containerd's own suites of tests.
    pub suites: bool,
    /// The programs that benchmarks start beside the product's binaries.
    pub benchmarks: bool,
    /// Only these images of the corpus; none named means the first few, or with `vm` all.
    pub images: Vec<String>,
    /// Leave the product's binaries as they are.
    pub skip_build: bool,
}

/// Makes whatever is missing. Two runs at once do not make anything twice.
pub fn run(options: &SetupOptions) -> Result<()> {
    require_root()?;
    let paths = Paths::find()?;
    packages::install(options.vm)?;
    rootfs::build(&paths)?;
    if options.vm {
        disk::build(&paths)?;
        tools::build(&paths, &tools::ALL)?;
    }
    if options.suites {
        suites::build(&paths)?;
    }
    let images = match (options.images.as_slice(), options.vm) {
        ([], true) => corpus::DEFAULT.map(str::to_owned).to_vec(),
        ([], false) => corpus::FIRST.map(str::to_owned).to_vec(),
        (named, _) => named.to_vec(),
    };
    corpus::build(&paths, &images)?;
    if !options.skip_build {
        binaries::build(&paths, options.benchmarks)?;
    }
    Ok(())
}
