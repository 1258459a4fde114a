//! The profiles of a node: one JSON file for each chain of layers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::{MAX_LEN, Profile, chain_name};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Most profiles kept; those that were written longest ago go first.
const MAX_PROFILES: usize = 1000;

/// A directory of profiles. They outlive their layers: an image that was removed and is pulled
/// again starts as fast as it can.
#[derive(Debug)]
pub struct Profiles {
    directory: PathBuf,
    /// Held while a file is merged.
    merging: Mutex<()>,
}

impl Profiles {
    /// The profiles below the root of lazy layers; the directory is made when something is kept.
    pub fn below(root: &Path) -> Self {
        Self {
            directory: root.join("profiles"),
            merging: Mutex::new(()),
        }
    }

    /// The profile of a chain, if there is one.
    pub fn get(&self, layers: &[Digest]) -> Result<Option<Profile>> {
        let path = self.path(layers);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("stat", &path)(error)),
            Ok(metadata) if metadata.len() > MAX_LEN as u64 => {
                return Err(Error::Malformed {
                    what: path.display().to_string(),
                    reason: format!("longer than {MAX_LEN} bytes"),
                });
            }
            Ok(_) => {}
        }
        let json = fs::read(&path).map_err(Error::io("read", &path))?;
        let profile = Profile::parse(&json, &path.display().to_string())?;
        Ok(Some(profile).filter(|profile| profile.layers() == layers))
    }

    /// Merges `profile` with what is known of its chain. A file that cannot be used is replaced.
    pub fn merge(&self, profile: Profile) -> Result<()> {
        let _turn = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.get(profile.layers()).unwrap_or_else(|error| {
            tracing::warn!(%error, "a profile is replaced");
            None
        });
        let merged = match known {
            Some(mut known) => {
                known.merge(&profile);
                known
            }
            None => profile,
        };
        self.write(&merged)?;
        self.prune()
    }

    fn write(&self, profile: &Profile) -> Result<()> {
        fs::create_dir_all(&self.directory).map_err(Error::io("create", &self.directory))?;
        let path = self.path(profile.layers());
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)
            .map_err(Error::io("create a file in", &self.directory))?;
        io::Write::write_all(&mut file, &profile.to_json()?).map_err(Error::io("write", &path))?;
        // A profile that a power failure takes is made again by the next run: no fsync.
        file.persist(&path)
            .map_err(|error| Error::io("rename", &path)(error.error))?;
        Ok(())
    }

    fn prune(&self) -> Result<()> {
        let mut known = self.list()?;
        if known.len() > MAX_PROFILES {
            known.sort_by_key(|(written, _)| *written);
            for (_, path) in &known[..known.len() - MAX_PROFILES] {
                fs::remove_file(path).map_err(Error::io("delete", path))?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<(SystemTime, PathBuf)>> {
        let failed = || Error::io::<io::Error>("list", &self.directory);
        let entries = fs::read_dir(&self.directory).map_err(failed())?;
        let one = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok((entry.metadata()?.modified()?, entry.path()))
        };
        entries
            .map(one)
            .collect::<io::Result<_>>()
            .map_err(failed())
    }

    fn path(&self, layers: &[Digest]) -> PathBuf {
        self.directory.join(format!("{}.json", chain_name(layers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_merged_in_one_file_for_each_chain() {
        let root = tempfile::tempdir().unwrap();
        let profiles = Profiles::below(root.path());
        let chain = |name: &str| vec![Digest::of(name.as_bytes())];
        assert!(profiles.get(&chain("a")).unwrap().is_none());
        for (name, offset) in [("a", 1), ("a", 2), ("b", 3)] {
            let profile = Profile::new(chain(name), vec![(0, offset, 1, 0).into()]);
            profiles.merge(profile).unwrap();
        }
        let reads = |name| profiles.get(&chain(name)).unwrap().unwrap().reads().len();
        assert_eq!((reads("a"), reads("b")), (2, 1));
        assert_eq!(profiles.list().unwrap().len(), 2, "nothing else is left");

        fs::write(profiles.path(&chain("a")), "{").unwrap();
        assert!(profiles.get(&chain("a")).is_err());
        profiles
            .merge(Profile::new(chain("a"), vec![(0, 7, 1, 0).into()]))
            .unwrap();
        assert_eq!(reads("a"), 1);
    }
}
