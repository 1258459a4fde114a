//! Names: of archives, and of what is in them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Longest name of a member, and of one component of it, in bytes.
const NAME_MAX: usize = 4095;
const COMPONENT_MAX: usize = 255;

/// The name that kubelet gives an archive; `time` is RFC 3339.
pub fn archive_name(pod: &str, namespace: &str, container: &str, time: &str) -> String {
    format!("checkpoint-{pod}_{namespace}-{container}-{time}.tar")
}

/// A member's name as a path below some directory; empty for that directory itself. The reason, if
/// it leads anywhere else.
pub(crate) fn relative(name: &[u8]) -> Result<PathBuf, &'static str> {
    if name.starts_with(b"/") {
        return Err("its name is absolute");
    }
    if name.contains(&0) {
        return Err("its name has a zero byte");
    }
    if name.len() > NAME_MAX {
        return Err("its name is too long");
    }
    let mut path = PathBuf::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("its name leads upwards"),
            _ if component.len() > COMPONENT_MAX => return Err("its name is too long"),
            _ => path.push(Path::new(OsStr::from_bytes(component))),
        }
    }
    Ok(path)
}
