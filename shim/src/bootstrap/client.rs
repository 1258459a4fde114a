//! Which generation of containerd has called: before 2.0 it refuses an answer of version 3, and
//! nothing that it passes tells it from later ones. Its program does: Go writes into each which
//! packages it was built from.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Section of a Go program with its build information.
const SECTION: &[u8] = b".go.buildinfo\0";
/// Every containerd has this in it; what follows is `/v2` since 2.0.
const PACKAGE: &str = "github.com/containerd/containerd";
/// More than any build information, or table of sections, of a sound program.
const MOST: u64 = 1 << 20;

/// The highest version of the protocol that the caller understands: 2 where one of its programs is
/// a containerd before 2.0. Who is not containerd at all is taken for as new as the protocol.
pub(super) fn highest_version(programs: &[&Path]) -> u32 {
    match programs.iter().find_map(|program| generation(program)) {
        Some(1) => 2,
        _ => 3,
    }
}

/// containerd's major version according to its program; `None` if it is none of containerd's.
fn generation(program: &Path) -> Option<u32> {
    let information = File::open(program).and_then(|file| build_information(&file));
    major(&String::from_utf8_lossy(&information.ok()?))
}

fn major(information: &str) -> Option<u32> {
    let mut packages = information.split(PACKAGE).skip(1);
    let is_second = |rest: &str| rest.starts_with("/v2/") || rest.starts_with("/v2\t");
    let first = packages.next()?;
    let found = is_second(first) || packages.any(is_second);
    Some(if found { 2 } else { 1 })
}

/// The section of a 64-bit little-endian ELF file.
fn build_information(file: &File) -> Result<Vec<u8>> {
    let header = read(file, 0, 64)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(ErrorKind::InvalidData.into());
    }
    let [entry, count, names] = [0x3a, 0x3c, 0x3e].map(|at| number(&header, at, 2));
    let table = read(file, number(&header, 0x28, 8), entry * count)?;
    let sections: Vec<_> = table.chunks_exact(entry.max(64) as usize).collect();
    let content = |section: &[u8]| read(file, number(section, 0x18, 8), number(section, 0x20, 8));
    let names = sections.get(names as usize).ok_or(ErrorKind::InvalidData)?;
    let names = content(names)?;
    let is_wanted = |section: &&&[u8]| {
        let name = names.get(number(section, 0, 4) as usize..);
        name.is_some_and(|name| name.starts_with(SECTION))
    };
    let wanted = sections.iter().find(is_wanted);
    content(wanted.ok_or(ErrorKind::NotFound)?)
}

fn read(file: &File, offset: u64, length: u64) -> Result<Vec<u8>> {
    if length > MOST {
        return Err(Error::from(ErrorKind::InvalidData));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// A little-endian number; the slice must have it.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let digits = bytes[at..at + width].iter().rev();
    digits.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_tells_its_generation_by_its_packages() {
        for (information, expected) in [
            (
                "path\tgithub.com/containerd/containerd/cmd/containerd\n",
                Some(1),
            ),
            (
                "path\tgithub.com/containerd/containerd/v2/cmd/containerd\n",
                Some(2),
            ),
            (
                "path\tgithub.com/acme/node\ndep\tgithub.com/containerd/containerd\tv1.7.3\n",
                Some(1),
            ),
            (
                "dep\tgithub.com/containerd/containerd/api\tv1.9.0\ndep\tgithub.com/containerd/containerd/v2\tv2.1.0\n",
                Some(2),
            ),
            ("path\tgithub.com/acme/node\n", None),
        ] {
            assert_eq!(major(information), expected, "{information}");
        }
    }

    /// An ELF file of two sections, with `size` written as that of the second.
    fn elf(information: &[u8], size: u64) -> Vec<u8> {
        let names = [b"\0".as_slice(), SECTION].concat();
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x28, &64u64.to_le_bytes());
        for (at, value) in [(0x3a, 64u16), (0x3c, 2), (0x3e, 0)] {
            put(at, &value.to_le_bytes());
        }
        let content = 64 + 2 * 64;
        for (name, offset, size) in [
            (0u32, content, names.len() as u64),
            (1, content + names.len() as u64, size),
        ] {
            let mut section = [0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[0x18..0x20].copy_from_slice(&offset.to_le_bytes());
            section[0x20..0x28].copy_from_slice(&size.to_le_bytes());
            file.extend(section);
        }
        file.extend(names);
        file.extend(information);
        file
    }

    fn version(file: &[u8]) -> u32 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("containerd");
        std::fs::write(&path, file).unwrap();
        highest_version(&[&path])
    }

    #[test]
    fn version_3_is_answered_unless_a_program_says_that_it_is_not_understood() {
        let second = b"path\tgithub.com/containerd/containerd/v2/cmd/containerd\n";
        let first = b"path\tgithub.com/containerd/containerd/cmd/containerd\n";
        assert_eq!(version(&elf(second, second.len() as u64)), 3);
        assert_eq!(version(&elf(first, first.len() as u64)), 2);
        assert_eq!(highest_version(&[Path::new("/nowhere")]), 3);
    }

    #[test]
    fn a_damaged_program_tells_nothing() {
        let first = b"github.com/containerd/containerd/cmd";
        let sound = elf(first, first.len() as u64);
        assert_eq!(version(&sound), 2);
        for length in 0..sound.len() - first.len() {
            assert_eq!(version(&sound[..length]), 3, "{length} bytes");
        }
        for size in [1 << 19, u64::MAX] {
            assert_eq!(version(&elf(first, size)), 3);
        }
        for at in 0..64 + 2 * 64 {
            let mut damaged = sound.clone();
            damaged[at] = 0xff;
            version(&damaged);
        }
    }
}
