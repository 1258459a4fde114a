//! `descriptors.json`: what the standard streams of a dumped init were, as runc writes it beside
//! CRIU's images. A pipe of that name is given its successor at the restore.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::publish::publish;

const FILE: &str = "descriptors.json";
/// Three names of files at most.
const MAX_SIZE: u64 = 64 << 10;

/// What the standard streams of a process are, in the words of `/proc/PID/fd`; empty for one that
/// is closed.
pub(crate) fn streams_of(pid: i32) -> Result<[String; 3]> {
    let name = |number: u8| {
        let path = format!("/proc/{pid}/fd/{number}");
        match fs::read_link(&path) {
            Ok(target) => Ok(target.to_string_lossy().into_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => Err(Error::file("readlink", path)(e)),
        }
    };
    Ok([name(0)?, name(1)?, name(2)?])
}

/// Writes the file into a directory of images.
pub(crate) fn write_descriptors(directory: &Path, streams: &[String; 3]) -> Result<()> {
    let path = directory.join(FILE);
    let text = serde_json::to_vec(streams).map_err(|e| Error::os("encode descriptors")(e))?;
    publish(&path, 0o600, &text).map_err(Error::file("write", path))
}

/// Reads the file from a directory of images.
pub(crate) fn read_descriptors(directory: &Path) -> Result<Vec<String>> {
    let path = directory.join(FILE);
    let size = fs::metadata(&path).map_err(Error::file("open", &path))?;
    let text = if size.len() > MAX_SIZE {
        Err(io::Error::from(io::ErrorKind::FileTooLarge))
    } else {
        fs::read(&path)
    }
    .map_err(Error::file("read", &path))?;
    let names: Vec<String> = serde_json::from_slice(&text)
        .map_err(|e| Error::InvalidArgument(format!("{}: {e}", path.display())))?;
    if names.len() > 3 {
        let count = names.len();
        let reason = format!("{}: {count} streams, not three", path.display());
        return Err(Error::InvalidArgument(reason));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_read_as_they_were_written() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let streams = ["/dev/null", "pipe:[7]", "pipe:[8]"].map(str::to_owned);
        write_descriptors(directory.path(), &streams).expect("written");
        assert_eq!(
            read_descriptors(directory.path()).expect("read"),
            streams.to_vec()
        );
    }

    #[test]
    fn a_damaged_file_is_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for bad in ["", "{}", "[1]", r#"["a","b","c","d"]"#] {
            fs::write(directory.path().join(FILE), bad).expect("written");
            let error = read_descriptors(directory.path())
                .expect_err(bad)
                .to_string();
            assert!(error.contains(FILE), "{error}");
        }
    }
}
