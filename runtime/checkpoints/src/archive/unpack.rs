//! An archive becomes files in a directory of its own.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{Mode, OFlags, fstatvfs, mkdirat, openat};
use rustix::io::Errno;

use super::compression::decompressed;
use super::members::{Kind, Limits, Member, read_members};
use crate::beneath::{Beneath, Room};
use crate::error::{Error, Result};

/// A checkpoint has a few files for each process and for each thread.
const MEMBERS_MAX: usize = 1 << 18;
/// What is left free of a file system, in bytes.
const LEFT_FREE: u64 = 64 << 20;

/// Unpacks the archive `input`, which `file` names in errors, into `room`. Only files and
/// directories are accepted; all belong to the caller, and to nobody else.
///
/// # Errors
/// The archive is damaged, or has something that a checkpoint has not: the member is named. The
/// caller drops the room then, and nothing is left.
pub fn unpack(input: impl Read, file: &str, room: &Room) -> Result<()> {
    let beneath = room.beneath();
    let mut input = decompressed(input).map_err(|e| Error::malformed(file, e))?;
    let limits = Limits {
        members: MEMBERS_MAX,
        bytes: available(beneath)?,
    };
    read_members(&mut input, file, limits, &mut |member, content| {
        if member.name.as_os_str().is_empty() && member.kind == Kind::Directory {
            return Ok(());
        }
        place(beneath, file, member, content)
    })
}

/// Bytes that may be written: an archive that unpacks to more than there is room for is refused
/// before the file system is full.
fn available(beneath: &Beneath) -> Result<u64> {
    let facts = fstatvfs(beneath.fd()).map_err(Error::io("statfs", beneath.path()))?;
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    Ok(free.saturating_sub(LEFT_FREE))
}

fn place(beneath: &Beneath, file: &str, member: &Member, content: &mut dyn Read) -> Result<()> {
    let refuse = |reason: &str| Error::refused(file, member.name.to_string_lossy(), reason);
    let failed = |errno: Errno| match errno {
        Errno::NOTDIR | Errno::EXIST | Errno::LOOP | Errno::ISDIR => {
            refuse("another member is in its way")
        }
        errno => Error::io("create", beneath.path().join(&member.name))(errno),
    };
    let place = || beneath.parent(&member.name, Mode::RWXU);
    match member.kind {
        Kind::Directory => {
            let (parent, name) = place().map_err(failed)?;
            match mkdirat(&parent, name, Mode::RWXU) {
                // Made for a member inside of it.
                Err(Errno::EXIST) => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY;
                    let there = beneath.open_at(&member.name, flags, Mode::empty());
                    there.map(drop).map_err(failed)
                }
                made => made.map_err(failed),
            }
        }
        Kind::File => {
            let (parent, name) = place().map_err(failed)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let made = openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
            copy(content, &mut File::from(made), file, member, beneath)
        }
        kind => Err(refuse(&format!(
            "a {} has no place in a checkpoint",
            kind.word()
        ))),
    }
}

/// Copies a content; a failure to read is the archive's, one to write ours.
fn copy(
    content: &mut dyn Read,
    output: &mut File,
    file: &str,
    member: &Member,
    beneath: &Beneath,
) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let read = match content.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                let name = member.name.to_string_lossy();
                let reason = match e.kind() {
                    io::ErrorKind::UnexpectedEof => "the archive ends in it".to_owned(),
                    _ => e.to_string(),
                };
                return Err(Error::refused(file, name, reason));
            }
        };
        io::Write::write_all(output, &buffer[..read])
            .map_err(Error::io("write", beneath.path().join(&member.name)))?;
    }
}
