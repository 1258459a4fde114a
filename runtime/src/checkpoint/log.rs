//! CRIU's own log: the cause of a failure is in there, its answer has only a number.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

/// How much of a log is looked through.
const LOOKED_AT: u64 = 64 << 20;

/// The last error that is not merely the consequence of another one, without its time stamp; none
/// when the log has no such line or cannot be read.
pub(crate) fn cause(log: &Path) -> Option<String> {
    let lines = BufReader::new(File::open(log).ok()?.take(LOOKED_AT)).split(b'\n');
    lines
        .map_while(std::result::Result::ok)
        .filter_map(|line| error_in(&String::from_utf8_lossy(&line)))
        .filter(|reason| !is_consequence(reason))
        .last()
}

/// Whether a line only passes the failure of an inner step on. What CRIU can do without it calls
/// an error, too; but that comes first.
fn is_consequence(reason: &str) -> bool {
    [
        "FAILED.",
        "failed with -",
        "exited, status",
        "killed by signal",
        "Can't fixup VMA's fd",
        "Can't open vma",
        "cgroupd: recv req error",
        "Can't open root",
    ]
    .iter()
    .any(|words| reason.contains(words))
}

/// What follows `Error (FILE:LINE): ` in a line, of which CRIU writes one for each level that a
/// failure passes.
fn error_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("Error (")?;
    let (_, reason) = rest.split_once("): ")?;
    Some(reason.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_neither_a_consequence_nor_what_criu_can_do_without() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let text = b"(00.01) Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self\n\
            (00.02) pie: 1: Error (criu/files.c:12): Can't lookup mount=7 for fd=1 path=/x: y\n\
            (00.02) Error (criu/cr-dump.c:8): Dump files (pid: 1) failed with -1\n\
            (00.03) Error (criu/cr-dump.c:9): Dumping FAILED.\n";
        std::fs::write(file.path(), text).expect("written");
        assert_eq!(
            cause(file.path()).expect("there is one"),
            "Can't lookup mount=7 for fd=1 path=/x: y"
        );
        assert_eq!(cause(Path::new("/no/such/log")), None);
    }
}
