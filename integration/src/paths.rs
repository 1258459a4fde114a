//! Where things are on this machine: the cache, the repository, the binaries.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The product's binaries, in the order `make install` names them.
pub const PRODUCT: [&str; 3] = ["xebec", "containerd-shim-xebec-v2", "xebec-snapshotter"];

/// Directories that everything else is found below.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Root file systems, disk images and the corpus; `$XEBEC_CACHE` or /var/cache/xebec.
    pub cache: PathBuf,
    /// The workspace of the running binary's sources.
    pub repository: PathBuf,
    /// Binaries of the product under test; `$XEBEC_BIN_DIR` or the release directory.
    pub binaries: PathBuf,
    /// Programs of peers that benchmarks are to use, too; `$XEBEC_PEERS_DIR`.
    pub peers: Option<PathBuf>,
    /// This crate's own program, which hosts are started with.
    pub program: PathBuf,
}

impl Paths {
    /// Finds them from the environment and the running executable.
    pub fn find() -> Result<Self> {
        let executable = env::current_exe().map_err(Error::system("find the running program"))?;
        let profile = profile_directory(&executable);
        let binaries = match env::var_os("XEBEC_BIN_DIR") {
            Some(directory) => directory.into(),
            None => profile.parent().unwrap_or(Path::new("/")).join("release"),
        };
        let cache = env::var_os("XEBEC_CACHE").map_or("/var/cache/xebec".into(), PathBuf::from);
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap_or(Path::new("/"));
        let program = if executable
            .file_name()
            .is_some_and(|name| name == "integration")
        {
            executable.clone()
        } else {
            profile.join("integration")
        };
        Ok(Self {
            cache,
            repository: repository.to_owned(),
            binaries,
            peers: env::var_os("XEBEC_PEERS_DIR").map(PathBuf::from),
            program,
        })
    }

    /// A product binary; an error that says what to do if it was never built.
    pub fn binary(&self, name: &str) -> Result<PathBuf> {
        existing(self.binaries.join(name), "setup")
    }

    /// Directory of running hosts' scratch files.
    pub fn hosts(&self) -> PathBuf {
        self.cache.join("hosts")
    }
}

/// An error unless this process is root's.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(Error::NotRoot)
    }
}

/// The path itself if it exists.
pub fn existing(path: PathBuf, remedy: &'static str) -> Result<PathBuf> {
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::Missing { path, remedy })
    }
}

/// target/TRIPLE/PROFILE for a binary of cargo's, be it a program or a test in `deps`.
fn profile_directory(executable: &Path) -> &Path {
    let directory = executable.parent().unwrap_or(Path::new("/"));
    match directory.file_name() {
        Some(name) if name == "deps" => directory.parent().unwrap_or(directory),
        _ => directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_tests_share_a_profile_directory() {
        for executable in ["/t/x/debug/integration", "/t/x/debug/deps/native-0123"] {
            assert_eq!(
                profile_directory(Path::new(executable)),
                Path::new("/t/x/debug")
            );
        }
    }
}
