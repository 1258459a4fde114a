//! The images of one process's memory.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::space::Space;
use crate::error::{Error, Result};
use crate::sys::userfault::Mapping;
use crate::template::{HotRun, Memory, PAGE, list_name, pages_name, parse_list};

/// No image of areas or of a page map is larger, in bytes.
const IMAGE_MAX: u64 = 256 << 20;

/// A directory of images, by descriptor: it may be anywhere, and be gone by its name.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) directory: OwnedFd,
    /// The hot pages beside it are of use.
    pub(super) hot: bool,
}

impl Images {
    /// The pages of a process, by its pid in its namespace, and where they go.
    pub(super) fn memory(&self, pid: i32) -> Result<(Mapping, Space)> {
        self.chosen(pid, |memory| Space::new(memory.runs()))
    }

    /// Those that CRIU leaves to a server; none if some of them are not here, or the images are
    /// damaged.
    ///
    /// # Errors
    /// The image of pages ends before all of them have come, at which CRIU would wait for ever.
    pub(super) fn left_out(&self, pid: i32) -> Result<Option<(Mapping, Space)>> {
        let choose = |memory: &Memory<'_>| {
            let ends = memory
                .runs()
                .filter_map(|run| Some(run.stored? + run.pages * PAGE));
            (memory.left_out(), ends.max().unwrap_or(0), memory.pages_id)
        };
        let Ok((pages, (left_out, end, number))) = self.chosen(pid, choose) else {
            return Ok(None);
        };
        if !pages.has(0, end) {
            let reason = format!("pages-{number}.img is shorter than pagemap-{pid}.img says");
            return Err(Error::InvalidArgument(reason));
        }
        Ok(left_out.map(|runs| (pages, Space::new(runs.into_iter()))))
    }

    fn chosen<T>(&self, pid: i32, choose: impl FnOnce(&Memory<'_>) -> T) -> Result<(Mapping, T)> {
        let areas = self.read(&format!("mm-{pid}.img"))?;
        let map = format!("pagemap-{pid}.img");
        let entries = self.read(&map)?;
        let unusable = |reason: String| {
            Error::InvalidArgument(format!("{}: {reason}", self.path(&map).display()))
        };
        let memory = Memory::parse(&areas, &entries).map_err(|e| unusable(e.to_string()))?;
        let path = self.path(&format!("pages-{}.img", memory.pages_id));
        Ok((map_file(&path)?, choose(&memory)))
    }

    /// The pages of a process that come unasked, and where they go.
    pub(super) fn hot(&self, pid: i32) -> Result<Option<(Mapping, Vec<HotRun>)>> {
        if !self.hot {
            return Ok(None);
        }
        let beside = |name: PathBuf| self.path("../hot").join(name);
        let list = beside(list_name(pid));
        let bytes = match std::fs::read(&list) {
            // The template has been removed meanwhile.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(Error::file("read", &list))?,
        };
        let unusable = || Error::InvalidArgument(format!("{} is no list", list.display()));
        let runs = parse_list(&bytes).ok_or_else(unusable)?;
        let path = beside(pages_name(pid));
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        // Where it has to come from afar, it comes as a whole; that is no more than a wish.
        let _ = fadvise(&file, 0, None, Advice::WillNeed);
        Ok(Some((map_file(&path)?, runs)))
    }

    fn path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()).into()
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        let mut bytes = Vec::new();
        file.take(IMAGE_MAX)
            .read_to_end(&mut bytes)
            .map_err(Error::file("read", &path))?;
        Ok(bytes)
    }
}

fn map_file(path: &Path) -> Result<Mapping> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let length = file.metadata().map_err(Error::file("stat", path))?.len();
    Mapping::new(&file, length.max(1)).map_err(Error::file("map", path))
}
