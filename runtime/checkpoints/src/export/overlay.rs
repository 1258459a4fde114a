//! The layers of an overlay, as the kernel tells them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where the files of an overlay are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layers {
    /// What has been changed.
    pub(super) upper: PathBuf,
    /// What is below, topmost first.
    pub(super) lower: Vec<PathBuf>,
}

/// The layers of the overlay that is mounted at `rootfs`; none if it is no overlay, or one that cannot
/// be written to.
pub(super) fn layers_of(rootfs: &Path) -> Result<Option<Layers>> {
    let rootfs = fs::canonicalize(rootfs).map_err(Error::io("resolve", rootfs))?;
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(Error::io("read", path))?;
    Ok(parse(&text, &rootfs))
}

fn parse(mountinfo: &[u8], rootfs: &Path) -> Option<Layers> {
    // The last one covers those before.
    let lines = mountinfo.split(|byte| *byte == b'\n').rev();
    let mut fields = lines.filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let mountpoint = unescape(fields.get(4)?);
        (Path::new(&OsString::from_vec(mountpoint)) == rootfs).then_some(fields)
    });
    let fields = fields.next()?;
    let dash = fields.iter().position(|field| *field == b"-")?;
    if fields.get(dash + 1) != Some(&b"overlay".as_slice()) {
        return None;
    }
    let mut upper = None;
    let mut lower = Vec::new();
    for option in split(&unescape(fields.get(dash + 3)?), b',') {
        let mut halves = option.splitn(2, |byte| *byte == b'=');
        let (name, value) = (halves.next()?, halves.next().unwrap_or_default());
        match name {
            b"upperdir" => upper = Some(path(value)),
            b"lowerdir" => lower.extend(split(value, b':').iter().map(|one| path(one))),
            b"lowerdir+" => lower.push(path(value)),
            _ => {}
        }
    }
    upper.map(|upper| Layers { upper, lower })
}

/// Splits where no backslash precedes.
fn split(text: &[u8], at: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        let escaped = if byte == b'\\' { bytes.next() } else { None };
        let Some(part) = parts.last_mut() else { break };
        match escaped {
            Some(next) if next == at => part.push(next),
            Some(next) => part.extend([byte, next]),
            None if byte == at => parts.push(Vec::new()),
            None => part.push(byte),
        }
    }
    parts
}

fn path(value: &[u8]) -> PathBuf {
    let plain = split(value, b':').join(&b':');
    PathBuf::from(OsString::from_vec(plain))
}

/// The kernel writes white space and backslashes as octal numbers.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let number = (*byte == b'\\').then(|| after.first_chunk::<3>()).flatten();
        let number = number.and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        if let Some(number) = number {
            plain.push(number);
            rest = &after[3..];
        } else {
            plain.push(*byte);
            rest = after;
        }
    }
    plain
}

/// Whether a path is below another one, and what is left of it.
pub(super) fn inside(path: &Path, root: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_owned()
}

/// A path as text, as far as it is any.
pub(super) fn shown(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_from_what_the_kernel_shows() {
        let text = b"1 0 0:1 / / rw - ext4 /dev/vda rw\n\
            2 1 0:70 / /b\\040c/rootfs rw - overlay overlay rw,lowerdir=/l1:/l\\134:2,upperdir=/u,workdir=/w\n\
            3 1 0:71 / /new rw shared:1 - overlay none rw,lowerdir+=/a,lowerdir+=/b,upperdir=/u2\n\
            4 1 0:72 / /ro ro - overlay none ro,lowerdir=/a:/b\n";
        let layers = parse(text, Path::new("/b c/rootfs")).expect("an overlay");
        assert_eq!(layers.upper, Path::new("/u"));
        assert_eq!(layers.lower, [Path::new("/l1"), Path::new("/l:2")]);
        let layers = parse(text, Path::new("/new")).expect("an overlay");
        assert_eq!(layers.lower, [Path::new("/a"), Path::new("/b")]);
        for other in ["/", "/ro", "/none"] {
            assert_eq!(parse(text, Path::new(other)), None);
        }
    }
}
