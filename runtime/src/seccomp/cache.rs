//! Compiled filters on disk, by the content of their profile.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::error::Result;
use super::{Architecture, Filter, compile, policy};
use crate::hex::hex;
use crate::publish::publish;
use crate::publish::read_regular;

/// Changes whenever the same profile compiles to another program.
const COMPILER: &[u8] = b"xebec seccomp compiler 1";

/// A directory of compiled filters, each under the SHA-256 of what it was compiled from.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache in `dir`, which is made (mode 0700) when the first filter is put there.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The filter of a profile, from the cache or compiled and put there.
    ///
    /// A damaged entry is compiled again and replaced. A cache that cannot be read or written
    /// costs time, never correctness, so that is no error.
    pub fn get_or_compile(&self, profile: &LinuxSeccomp) -> Result<Filter> {
        let path = self.dir.join(key(profile));
        if let Some(filter) = File::open(&path)
            .and_then(read_regular)
            .ok()
            .and_then(|bytes| Filter::from_bytes(&bytes))
        {
            policy::check_notify(profile)?;
            return Ok(filter);
        }
        let filter = compile(profile)?;
        let _ = self.store(&path, &filter.to_bytes());
        Ok(filter)
    }

    /// Writes an entry so that no reader sees half of it.
    fn store(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match publish(path, 0o600, bytes) {
            Err(Errno::NOENT) => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&self.dir)?;
                Ok(publish(path, 0o600, bytes)?)
            }
            stored => Ok(stored?),
        }
    }
}

/// The digest of everything the program depends on; the listener's address is not part of it.
fn key(profile: &LinuxSeccomp) -> String {
    let parts = (
        Architecture::NATIVE.audit(),
        profile.default_action(),
        profile.default_errno_ret(),
        profile.architectures(),
        profile.flags(),
        profile.syscalls(),
    );
    let json = serde_json::to_vec(&parts).expect("a parsed profile serializes");
    let digest = Sha256::new()
        .chain_update(COMPILER)
        .chain_update(&json)
        .finalize();
    hex(&digest)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn profile() -> LinuxSeccomp {
        serde_json::from_str(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],
                "syscalls":[{"names":["read","write","exit_group"],"action":"SCMP_ACT_ALLOW"}]}"#,
        )
        .expect("the test's JSON is valid")
    }

    fn entries(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    #[test]
    fn the_second_time_a_filter_comes_from_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("a/seccomp"));
        let first = cache.get_or_compile(&profile()).unwrap();
        let [entry] = entries(&cache.dir)
            .try_into()
            .expect("one entry and no temporary file");
        // A marked entry shows where the answer comes from.
        let mut marked = first.clone();
        marked.flags |= 1 << 30;
        fs::write(&entry, marked.to_bytes()).unwrap();
        assert_eq!(
            cache.get_or_compile(&profile()).unwrap().flags,
            marked.flags
        );
    }

    #[test]
    fn a_damaged_entry_is_compiled_again_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path());
        let good = cache.get_or_compile(&profile()).unwrap().to_bytes();
        let [entry] = entries(dir.path()).try_into().unwrap();
        let mut flipped = good.clone();
        flipped[25] ^= 1;
        let damages = [
            Vec::new(),
            good[..good.len() - 1].to_vec(),
            flipped,
            b"junk".to_vec(),
        ];
        for damage in damages {
            fs::write(&entry, &damage).unwrap();
            assert_eq!(cache.get_or_compile(&profile()).unwrap().to_bytes(), good);
            assert_eq!(fs::read(&entry).unwrap(), good);
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_still_answers() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let cache = Cache::open(dir.path().join("file/below"));
        assert!(!cache.get_or_compile(&profile()).unwrap().insns.is_empty());
    }

    #[test]
    fn profiles_differ_by_content_but_not_by_listener() {
        let mut other = profile();
        other.set_listener_path(Some("/run/agent.sock".into()));
        assert_eq!(key(&profile()), key(&other));
        other.set_default_errno_ret(Some(38));
        assert_ne!(key(&profile()), key(&other));
    }
}
