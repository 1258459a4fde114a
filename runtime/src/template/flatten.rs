//! A directory of images, made flat into another one: those that stay the same are links.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::copy_file_range;

use super::files::Files;
use super::memory::{Copy, Flat, Layout, Memory, Unusable};
use crate::error::{Error, Result};

/// An image of this size is not one of a list of areas, pages or files.
const LIST_MAX: u64 = 256 << 20;
const FILES: &str = "files.img";

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flattened {
    /// Bytes of pages that clones share.
    pub(crate) shared: u64,
    /// Bytes of pages that they do not.
    pub(crate) own: u64,
}

/// A process of a checkpoint.
pub(super) struct Process {
    pub(super) pid: i32,
    mm: Vec<u8>,
    pagemap: Vec<u8>,
}

/// Reads the images in `from`, and writes those of the same processes with flat memory to `to`, and
/// their pages to `page_file`. `to` is a directory that exists, and is empty.
///
/// # Errors
/// An image is damaged, or the disk is full.
pub(crate) fn flatten(from: &Path, to: &Path, page_file: &Path) -> Result<Flattened> {
    let processes = processes(from)?;
    let memories = memories(from, &processes)?;
    let list = read_list(&from.join(FILES))?;
    let files = Files::parse(&list).map_err(unusable(&from.join(FILES)))?;
    let mut layout = Layout::for_areas(memories.iter().map(Memory::movable).sum());
    let mut done = Flattened { shared: 0, own: 0 };
    let pages = create(page_file)?;
    for ((process, memory), file) in processes.iter().zip(&memories).zip(files.next_id..) {
        let path = from.join(mm_name(process.pid));
        let flat = memory.flatten(file, &mut layout).map_err(unusable(&path))?;
        let name = format!("pages-{}.img", memory.pages_id);
        write_process(process.pid, &flat, to)?;
        copy(&from.join(&name), &flat.moved, page_file, &pages)?;
        let kept = to.join(&name);
        copy(&from.join(&name), &flat.kept, &kept, &create(&kept)?)?;
        done.shared += length(&flat.moved);
        done.own += length(&flat.kept);
    }
    pages
        .set_len(layout.size())
        .map_err(Error::file("truncate", page_file))?;
    let list = files.with_page_file(layout.size(), processes.len() as u64);
    write(&to.join(FILES), &list)?;
    link_rest(from, to)?;
    Ok(done)
}

pub(super) fn processes(from: &Path) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for name in names(from)? {
        let pid = name
            .strip_prefix("mm-")
            .and_then(|rest| rest.strip_suffix(".img"));
        if let Some(pid) = pid.and_then(|pid| pid.parse().ok()) {
            found.push(Process {
                pid,
                mm: read_list(&from.join(&name))?,
                pagemap: read_list(&from.join(pagemap_name(pid)))?,
            });
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

pub(super) fn memories<'a>(from: &Path, processes: &'a [Process]) -> Result<Vec<Memory<'a>>> {
    let parse = |process: &'a Process| {
        let path = from.join(mm_name(process.pid));
        Memory::parse(&process.mm, &process.pagemap).map_err(unusable(&path))
    };
    processes.iter().map(parse).collect()
}

fn mm_name(pid: i32) -> String {
    format!("mm-{pid}.img")
}

fn pagemap_name(pid: i32) -> String {
    format!("pagemap-{pid}.img")
}

fn write_process(pid: i32, flat: &Flat, to: &Path) -> Result<()> {
    write(&to.join(mm_name(pid)), &flat.mm)?;
    write(&to.join(pagemap_name(pid)), &flat.pagemap)
}

fn length(copies: &[Copy]) -> u64 {
    copies.iter().map(|copy| copy.length).sum()
}

/// Copies without a detour through this process, by shared extents where the file system has them.
pub(super) fn copy(from: &Path, copies: &[Copy], to_path: &Path, to: &File) -> Result<()> {
    let source = File::open(from).map_err(Error::file("open", from))?;
    for copy in copies {
        let (mut read_at, mut write_at) = (copy.from, copy.to);
        while read_at < copy.from + copy.length {
            let rest = (copy.from + copy.length - read_at) as usize;
            let copied =
                copy_file_range(&source, Some(&mut read_at), to, Some(&mut write_at), rest)
                    .map_err(Error::file("write", to_path))?;
            if copied == 0 {
                return Err(Error::file("read", from)(io::Error::from(
                    io::ErrorKind::UnexpectedEof,
                )));
            }
        }
    }
    Ok(())
}

/// Everything that was not written is the same.
fn link_rest(from: &Path, to: &Path) -> Result<()> {
    for name in names(from)? {
        let (old, new) = (from.join(&name), to.join(&name));
        match fs::hard_link(&old, &new) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            linked => linked.map_err(Error::file("link", new))?,
        }
    }
    Ok(())
}

/// The names of the files of a directory.
pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::file("read", directory)(e);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(|e| Error::file("read", directory)(e))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn read_list(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_err(Error::file("open", path))?.len();
    if size > LIST_MAX {
        return Err(Error::file("read", path)(io::Error::from(
            io::ErrorKind::FileTooLarge,
        )));
    }
    fs::read(path).map_err(Error::file("read", path))
}

fn unusable(path: &Path) -> impl FnOnce(Unusable) -> Error + use<> {
    let path: PathBuf = path.to_owned();
    move |reason| Error::InvalidArgument(format!("{}: {reason}", path.display()))
}

pub(super) fn create(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("create", path))
}

pub(super) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = create(path)?;
    io::Write::write_all(&mut file, content).map_err(Error::file("write", path))
}
