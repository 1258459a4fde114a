//! What is read of a mounted image that is local: by both of our back ends, by overlayfs on an
//! unpacked image, and by the kernel's EROFS on an image of `mkfs.erofs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::super::measure::{in_path, output};
use super::super::suite::{Absent, Feed, OURS, Sampler, Task, Unit};
use super::bare::{self, Bare};
use super::daemon::Process;
use super::node::{self, Node};
use super::reads::{self, Files};
use super::second;
use super::{Image, OVERLAYFS};
use crate::ctr::Stack;
use crate::error::{Error, Result};

/// Where images are mounted.
const MOUNTS: &str = "/mnt/bench";
/// The image of `mkfs.erofs`, on the same disk as everything else.
const EROFS_IMAGE: &str = "/var/lib/bench.erofs";

const DROPPED: &str = "random 4k, dropped";
/// The rows of each back end, in the order of [`sample`]'s figures.
const ROWS: [(&str, Unit); 7] = [
    ("walk + lstat, cold", Unit::Milliseconds),
    ("small files, warm", Unit::Microseconds),
    ("random 4k, warm", Unit::Microseconds),
    ("one thread, warm", Unit::Milliseconds),
    ("64 threads, warm", Unit::Milliseconds),
    ("large file, warm", Unit::Milliseconds),
    (DROPPED, Unit::Microseconds),
];

/// Who has the image mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Kernel,
    Fuse,
    Overlayfs,
    Erofs,
}

impl Side {
    const ALL: [Self; 4] = [Self::Kernel, Self::Fuse, Self::Overlayfs, Self::Erofs];

    /// The rows that it is in: of which back end, and as whom.
    fn cells(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Kernel => &[("kernel", OURS)],
            Self::Fuse => &[("fuse", OURS)],
            Self::Overlayfs => &[("kernel", OVERLAYFS), ("fuse", OVERLAYFS)],
            Self::Erofs => &[("kernel", "plain erofs"), ("fuse", "plain erofs")],
        }
    }

    fn snapshotter(self) -> Option<&'static str> {
        match self {
            Self::Kernel => Some(Stack::XEBEC.snapshotter),
            Self::Fuse => Some(second::NAME),
            Self::Overlayfs => Some(OVERLAYFS),
            Self::Erofs => None,
        }
    }

    fn point(self) -> PathBuf {
        Path::new(MOUNTS).join(format!("{self:?}").to_lowercase())
    }
}

/// An image that every side has whole and mounted.
pub(super) struct Mounted<'a> {
    image: &'a Image,
    files: Files,
    /// Serves the mounts by FUSE.
    _second: Process,
}

impl<'a> Mounted<'a> {
    /// Pulls the image for each side, makes all of it local and mounts it.
    pub(super) fn prepare(node: &Node, image: &'a Image) -> Result<Self> {
        node.forget(None)?;
        let second = second::start()?;
        let stack = |snapshotter| Stack {
            snapshotter,
            ..Stack::XEBEC
        };
        node::pull(&image.ordinary, stack(OVERLAYFS))?;
        for (snapshotter, address) in [
            (Stack::XEBEC.snapshotter, node::ADDRESS),
            (second::NAME, second::ADDRESS),
        ] {
            node::pull(&image.estargz, stack(snapshotter))?;
            let prefetch = ["xebec-snapshotter", "prefetch", "--address", address];
            output(&[&prefetch[..], &[&image.estargz]].concat())?;
        }
        let overlayfs = Side::Overlayfs.point();
        let mounted = Self {
            image,
            files: Files::default(),
            _second: second,
        };
        mounted.mount(Side::Overlayfs)?;
        let files = Files::list(&overlayfs)?;
        if in_path("mkfs.erofs").is_some() {
            output(&["mkfs.erofs", "--quiet", EROFS_IMAGE, &text(&overlayfs)])?;
        }
        for side in [Side::Erofs, Side::Kernel, Side::Fuse] {
            if side.is_there().is_ok() {
                mounted.mount(side)?;
            }
        }
        Ok(Self { files, ..mounted })
    }

    fn mount(&self, side: Side) -> Result<()> {
        let point = side.point();
        fs::create_dir_all(&point).map_err(Error::file("create", &point))?;
        let Some(snapshotter) = side.snapshotter() else {
            // util-linux would want a loop device for a file; the kernel wants none.
            return mount(
                EROFS_IMAGE,
                &point,
                "erofs",
                MountFlags::RDONLY,
                None::<&std::ffi::CStr>,
            )
            .map_err(Error::errno("mount EROFS at", &point));
        };
        let image = match side {
            Side::Overlayfs => &self.image.ordinary,
            _ => &self.image.estargz,
        };
        let argv = ["ctr", "images", "mount", "--snapshotter", snapshotter];
        output(&[&argv[..], &[image, &text(&point)]].concat()).map(drop)
    }

    fn unmount(side: Side) -> Result<()> {
        let point = side.point();
        let Some(snapshotter) = side.snapshotter() else {
            return unmount(&point, UnmountFlags::empty()).map_err(Error::errno("unmount", &point));
        };
        let argv = ["ctr", "images", "unmount", "--snapshotter", snapshotter];
        output(&[&argv[..], &["--rm", &text(&point)]].concat()).map(drop)
    }

    /// What a file as large as the largest one takes without a file system behind it.
    fn ask_for_blocks(&self) -> Result<Vec<f64>> {
        let point = Path::new(MOUNTS).join("bare");
        let bare = Bare::mount(&point, self.files.largest_size()?)?;
        bare.read_random_dropped().map(|figure| vec![figure])
    }

    /// Mounts the image again, so that the kernel knows nothing of its tree, and reads it in each
    /// way; all but the walk is done once before the clock runs.
    fn sample(&self, side: Side) -> Result<Vec<f64>> {
        Self::unmount(side)?;
        self.mount(side)?;
        let root = side.point();
        let began = Instant::now();
        let seen = reads::walk(&root)?;
        let walked = began.elapsed();
        if seen < self.files.len() {
            let reason = format!("{seen} entries, {} files", self.files.len());
            return Err(Error::invalid(text(&root), reason));
        }
        let files = self.files.below(&root);
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        files.read_all(reads::THREADS)?;
        Ok(vec![
            ms(walked),
            files.read_small()?,
            files.read_random()?,
            ms(files.read_all(1)?),
            ms(files.read_all(reads::THREADS)?),
            ms(files.read_largest()?),
            files.read_random_dropped()?,
        ])
    }
}

impl Side {
    fn is_there(self) -> std::result::Result<(), Absent> {
        let missing = self == Self::Erofs && in_path("mkfs.erofs").is_none();
        if missing {
            Err(Absent("mkfs.erofs was not found in PATH".into()))
        } else {
            Ok(())
        }
    }
}

/// All reads by all sides.
pub(super) fn tasks<'a>(mounted: &'a Mounted<'a>) -> Vec<Task<'a>> {
    let task = |side: Side| Task {
        feeds: ROWS
            .iter()
            .enumerate()
            .map(|(number, &(row, unit))| (number, row, unit))
            .flat_map(|(_, row, unit)| {
                side.cells()
                    .iter()
                    .map(move |&(back_end, contestant)| Feed {
                        row: format!("{back_end}: {row}").into(),
                        unit,
                        contestant,
                    })
            })
            .collect(),
        every: 1,
        warms_up: true,
        sampler: side.is_there().map(|()| -> Sampler<'a> {
            Box::new(move |_| {
                let figures = mounted.sample(side)?;
                let copies = side.cells().len();
                let each = figures.into_iter();
                Ok(each.flat_map(|figure| vec![figure; copies]).collect())
            })
        }),
    };
    let bare = Task {
        feeds: vec![Feed {
            row: format!("fuse: {DROPPED}").into(),
            unit: Unit::Microseconds,
            contestant: bare::NAME,
        }],
        every: 1,
        warms_up: true,
        sampler: Ok(Box::new(|_| mounted.ask_for_blocks())),
    };
    Side::ALL.map(task).into_iter().chain([bare]).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
