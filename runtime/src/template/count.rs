//! The number of each clone among those of its template.
//!
//! It is counted in the template itself. One that cannot be written to, such as an image that is
//! mounted, is counted on the node, by what it is: two mounts of one image are one template.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::store::check_owner;
use crate::error::{Error, Result};

/// The counter in a template.
const OWN: &str = "generation";
/// Counters of templates that cannot be written to. They go when the node starts again, as all
/// clones do, and not before: there may be clones when there is no template any more.
const OF_NODE: &str = "/run/xebec-templates";
/// No number is longer, in bytes.
const NUMBER_MAX: u64 = 32;

/// Counts the clones of one template.
#[derive(Debug)]
pub(super) struct Counter<'a> {
    template: &'a Path,
    node: PathBuf,
}

impl<'a> Counter<'a> {
    pub(super) fn of(template: &'a Path) -> Self {
        let node = PathBuf::from(OF_NODE);
        Self { template, node }
    }

    /// The next number; no two are the same. `identity` tells the template from all others of the
    /// node, and is asked for where it cannot be written to.
    pub(super) fn next(&self, identity: impl FnOnce() -> Result<String>) -> Result<u64> {
        let own = self.template.join(OWN);
        match count(&own, 0) {
            Err(error) if is_refused(&error) => {}
            counted => return counted.map_err(Error::file("count clones in", own)),
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let made = builder.create(&self.node);
        made.map_err(Error::file("mkdir", &self.node))?;
        check_owner(&self.node)?;
        // It may have been written to before.
        let counted = File::open(&own).ok().and_then(|file| last(&file).ok());
        let place = self.node.join(identity()?);
        count(&place, counted.unwrap_or(0)).map_err(Error::file("count clones in", place))
    }
}

/// Whether the file could never be written.
fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied
    )
}

/// Adds one to the number in a file, or to `least` if that is more. Whoever is killed meanwhile has
/// taken a number or not; the next one waits for nobody.
fn count(path: &Path, least: u64) -> io::Result<u64> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.mode(0o600).open(path)?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
    let next = last(&file)?.max(least) + 1;
    // Numbers only grow, so that nothing of the last one is left behind it.
    file.write_all_at(format!("{next}\n").as_bytes(), 0)?;
    Ok(next)
}

fn last(mut file: &File) -> io::Result<u64> {
    let mut text = String::new();
    file.by_ref().take(NUMBER_MAX).read_to_string(&mut text)?;
    match text.trim() {
        "" => Ok(0),
        text => text.parse().map_err(io::Error::other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nobody can make a file, not even root.
    const READ_ONLY: &str = "/sys/kernel";

    fn next(counter: &Counter<'_>, identity: &str) -> Result<u64> {
        counter.next(|| Ok(identity.to_owned()))
    }

    #[test]
    fn a_template_counts_its_clones_itself() {
        let root = tempfile::tempdir().expect("a directory");
        let counter = Counter {
            template: root.path(),
            node: root.path().join("node"),
        };
        for number in 1..=11 {
            assert_eq!(next(&counter, "a").expect("counted"), number);
        }
        assert!(!counter.node.exists());
        std::fs::write(root.path().join(OWN), "many").expect("written");
        let error = next(&counter, "a").expect_err("damaged").to_string();
        assert!(error.contains("generation"), "{error}");
    }

    #[test]
    fn clones_of_a_template_that_is_read_only_are_counted_by_what_it_is() {
        let root = tempfile::tempdir().expect("a directory");
        let counter = Counter {
            template: Path::new(READ_ONLY),
            node: root.path().join("node"),
        };
        let mut numbers = std::thread::scope(|scope| {
            let threads = [(); 8].map(|()| scope.spawn(|| next(&counter, "a").expect("counted")));
            threads.map(|thread| thread.join().expect("it ends"))
        });
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(next(&counter, "b").expect("counted"), 1);
    }

    #[test]
    fn numbers_go_on_where_a_template_has_become_read_only() {
        let root = tempfile::tempdir().expect("a directory");
        let place = root.path().join("a");
        std::fs::write(&place, "4\n").expect("written");
        assert_eq!(count(&place, 7).expect("counted"), 8);
        assert_eq!(count(&place, 7).expect("counted"), 9);
    }
}
