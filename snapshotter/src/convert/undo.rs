//! What a conversion has made so far, so that nothing is left of one that does not end well.
//!
//! Steps are noted under the lock that runs them: a signal finds either nothing or something noted.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

enum Step {
    RemoveFile(PathBuf),
    RemoveDir(PathBuf),
    RemoveTree(PathBuf),
    Call(Box<dyn FnOnce() + Send>),
}

/// Files, directories and leases that go again unless [`Undo::keep_all`] is called.
#[derive(Default)]
pub struct Undo {
    steps: Mutex<Vec<Step>>,
}

impl Undo {
    /// Nothing to undo yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A temporary file with a name in `dir`.
    pub(super) fn temp_file(&self, dir: &Path) -> Result<NamedTempFile> {
        let mut steps = self.steps();
        let file = NamedTempFile::new_in(dir).map_err(Error::io("create file in", dir))?;
        steps.push(Step::RemoveFile(file.path().to_owned()));
        Ok(file)
    }

    /// Gives a temporary file, complete now, the name `path`. A file that was there before is
    /// replaced, and then stays when all else is undone.
    pub(super) fn persist(&self, file: NamedTempFile, path: &Path) -> Result<()> {
        // A temporary file is its owner's alone; an image is for everyone.
        let mode = PermissionsExt::from_mode(0o644);
        let io_error = Error::io("set mode of", path);
        file.as_file().set_permissions(mode).map_err(io_error)?;
        let mut steps = self.steps();
        let temporary = file.path().to_owned();
        let is_new = !path.exists();
        file.persist(path)
            .map_err(|error| Error::io("write", path)(error.error))?;
        steps.retain(|step| !matches!(step, Step::RemoveFile(path) if *path == temporary));
        if is_new {
            steps.push(Step::RemoveFile(path.to_owned()));
        }
        Ok(())
    }

    /// Creates `dir` and what is missing above it.
    pub(super) fn create_dirs(&self, dir: &Path) -> Result<()> {
        let mut steps = self.steps();
        let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
        let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Ok(()) => steps.push(Step::RemoveDir(dir.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", dir)(error)),
            }
        }
        Ok(())
    }

    /// A directory of our own in `dir`, which goes with all that is in it even if all is well.
    pub(super) fn temp_dir(&self, dir: &Path) -> Result<PathBuf> {
        let mut steps = self.steps();
        let made = tempfile::Builder::new().prefix("xebec-").tempdir_in(dir);
        let path = made.map_err(Error::io("create directory in", dir))?.keep();
        steps.push(Step::RemoveTree(path.clone()));
        Ok(path)
    }

    /// Makes something that `undo` takes back; both happen, or neither.
    pub(super) fn make<T>(
        &self,
        make: impl FnOnce() -> Result<T>,
        undo: impl FnOnce() + Send + 'static,
    ) -> Result<T> {
        let mut steps = self.steps();
        let made = make()?;
        steps.push(Step::Call(Box::new(undo)));
        Ok(made)
    }

    /// All is well: files stay. What was made for the time of the conversion only goes now.
    pub(super) fn keep_all(&self) {
        let mut steps = self.steps();
        steps.retain(|step| matches!(step, Step::Call(_) | Step::RemoveTree(_)));
        take_back(&mut steps);
    }

    /// Takes everything back, the newest first. Errors are told, not returned: whoever calls this
    /// has one already.
    pub fn run(&self) {
        take_back(&mut self.steps());
    }

    /// The same, and nothing more can be made from now on: the process is about to end.
    pub fn run_for_good(&self) {
        let mut steps = self.steps();
        take_back(&mut steps);
        std::mem::forget(steps);
    }

    fn steps(&self) -> MutexGuard<'_, Vec<Step>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_back(steps: &mut Vec<Step>) {
    for step in std::mem::take(steps).into_iter().rev() {
        let (outcome, path) = match step {
            Step::RemoveFile(path) => (fs::remove_file(&path), path),
            Step::RemoveDir(path) => (fs::remove_dir(&path), path),
            Step::RemoveTree(path) => (fs::remove_dir_all(&path), path),
            Step::Call(call) => {
                call();
                continue;
            }
        };
        if let Err(error) = outcome {
            // Its owner was quicker, or others have put their own files there.
            let is_fine = matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            );
            if !is_fine {
                tracing::warn!(path = %path.display(), %error, "is left over");
            }
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(undo: &Undo, path: &Path) {
        undo.create_dirs(path.parent().unwrap()).unwrap();
        let file = undo.temp_file(path.parent().unwrap()).unwrap();
        undo.persist(file, path).unwrap();
    }

    #[test]
    fn what_was_made_goes_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("old");
        fs::write(&old, "x").unwrap();
        let undo = Undo::new();
        write(&undo, &dir.path().join("new/deep/file"));
        write(&undo, &old);
        std::mem::forget(undo.temp_file(dir.path()).unwrap());
        assert!(dir.path().join("new/deep/file").exists());
        drop(undo);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(old.exists());
    }

    #[test]
    fn what_is_kept_stays_but_what_is_only_borrowed_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let undo = Undo::new();
        write(&undo, &dir.path().join("new/file"));
        let (sender, receiver) = std::sync::mpsc::channel();
        undo.make(|| Ok(()), move || sender.send(()).unwrap())
            .unwrap();
        undo.keep_all();
        drop(undo);
        assert!(dir.path().join("new/file").exists());
        receiver.try_recv().unwrap();
        assert!(receiver.try_recv().is_err(), "once only");
    }
}
