//! What POSIX and Linux promise of a read-only tree, tried on one that is read lazily:
//! `posix-reads read TREE TWIN` where TWIN is an ordinary unpack of the crafted image `odd`, and
//! `posix-reads write TREE TWIN` for a writable overlay on top of it.
//!
//! Each check prints its name, `ok` or what is wrong, and a note where the kernel does not offer
//! something; the exit status says whether all are `ok`.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, Read, Result, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;

use bench_programs::sys;
use rustix::fs::{Access, Advice, AtFlags, FlockOperation, Mode, OFlags, SeekFrom, inotify};
use rustix::io::{Errno, ReadWriteFlags};

const PAGE: usize = 4096;
const READERS: u64 = 64;

/// The tree under test and its twin.
struct Trees {
    tree: PathBuf,
    twin: PathBuf,
}

/// What a check has found; a note is no fault.
type Found = Result<Option<String>>;
type Check = (&'static str, fn(&Trees) -> Found);

const READ: [Check; 18] = [
    ("maps", maps),
    ("beyond the end of a map", beyond_the_end),
    ("direct reads", direct),
    ("sendfile", sendfile),
    ("splice", splice),
    ("readahead and fadvise", advice),
    ("preadv2 without waiting", without_waiting),
    ("copy_file_range", copy_range),
    ("64 readers of one file", readers_of_one),
    ("64 readers of many files", readers_of_many),
    ("data and holes", data_and_holes),
    ("statx", statx),
    ("getdents with seek", directory),
    ("readlink, access, O_PATH", names),
    ("ends of files", ends),
    ("flock", flock),
    ("inotify", notify),
    ("handles", handles),
];
const READ_ONLY: Check = ("writing is refused", read_only);
const WRITE: [Check; 3] = [
    ("content is copied up", content_up),
    ("metadata is copied up", metadata_up),
    ("names are changed", names_changed),
];

fn main() -> ExitCode {
    let argv: Vec<_> = std::env::args_os().collect();
    let [_, mode, tree, twin] = &argv[..] else {
        eprintln!("posix-reads read|write TREE TWIN");
        return ExitCode::from(2);
    };
    let trees = Trees {
        tree: tree.into(),
        twin: twin.into(),
    };
    let checks = match mode.to_str() {
        Some("read") => [&READ[..], &[READ_ONLY]].concat(),
        Some("write") => [&READ[..], &WRITE].concat(),
        // The child of `beyond_the_end`: the path of a file, and a length to map.
        Some("touch") => return touch(tree.as_ref(), twin.to_str().unwrap_or("")),
        _ => return ExitCode::from(2),
    };
    let mut status = ExitCode::SUCCESS;
    for (name, check) in checks {
        match check(&trees) {
            Ok(None) => println!("{name}: ok"),
            Ok(Some(note)) => println!("{name}: ok ({note})"),
            Err(error) => {
                println!("{name}: {error}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

impl Trees {
    fn open(&self, name: &str) -> Result<File> {
        File::open(self.tree.join(name))
    }

    fn right(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.twin.join(name))
    }
}

fn same(what: &str, ours: &[u8], theirs: &[u8]) -> Result<()> {
    if ours == theirs {
        return Ok(());
    }
    let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
    Err(Error::other(format!(
        "{what}: {} bytes of {}, different from {at:?} on",
        ours.len(),
        theirs.len()
    )))
}

fn ensure(is_so: bool, what: impl Into<String>) -> Result<()> {
    if is_so {
        return Ok(());
    }
    Err(Error::other(what.into()))
}

fn maps(trees: &Trees) -> Found {
    let right = trees.right("sizes/1048577")?;
    for shared in [true, false] {
        let file = trees.open("sizes/1048577")?;
        let mapped = sys::read_mapped(file.as_fd(), right.len(), shared)?;
        same("a map", &mapped, &right)?;
    }
    same(
        "after a private write",
        &fs::read(trees.tree.join("sizes/1048577"))?,
        &right,
    )?;
    Ok(None)
}

fn beyond_the_end(trees: &Trees) -> Found {
    let right = trees.right("sizes/65537")?;
    let length = right.len().next_multiple_of(PAGE);
    let mapped = sys::read_mapped(trees.open("sizes/65537")?.as_fd(), length, true)?;
    same("the file's part", &mapped[..right.len()], &right)?;
    ensure(
        mapped[right.len()..].iter().all(|byte| *byte == 0),
        "the last page's rest is not zero",
    )?;
    let status = Command::new(std::env::current_exe()?)
        .arg("touch")
        .arg(trees.tree.join("sizes/65537"))
        .arg((length + PAGE).to_string())
        .status()?;
    ensure(
        status.signal() == Some(libc::SIGBUS),
        format!("a page after the end gave {status}, not SIGBUS"),
    )?;
    Ok(None)
}

fn touch(path: &Path, length: &str) -> ExitCode {
    let read = || {
        let length = length.parse().map_err(Error::other)?;
        sys::read_mapped(File::open(path)?.as_fd(), length, true)
    };
    match read() {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn direct(trees: &Trees) -> Found {
    let right = trees.right("sizes/1048576")?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(trees.tree.join("sizes/1048576"));
    let file = match file {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Ok(Some("not offered".into()));
        }
        file => file?,
    };
    // Room to begin at a page's beginning.
    let mut room = vec![0; right.len() + PAGE];
    let start = room.as_ptr().align_offset(PAGE);
    let buffer = &mut room[start..start + right.len()];
    let mut at = 0;
    while at < buffer.len() {
        let count = file.read_at(&mut buffer[at..], at as u64)?;
        ensure(count > 0, format!("nothing at {at}"))?;
        at += count;
    }
    same("direct reads", buffer, &right)?;
    Ok(None)
}

fn sendfile(trees: &Trees) -> Found {
    let right = trees.right("sizes/1048575")?;
    let file = trees.open("sizes/1048575")?;
    let (reader, writer) = io::pipe()?;
    let sender = thread::spawn(move || -> Result<()> {
        while rustix::fs::sendfile(&writer, &file, None, 1 << 20)? > 0 {}
        Ok(())
    });
    receive(reader, sender, &right)
}

fn splice(trees: &Trees) -> Found {
    let right = trees.right("links/large")?;
    let file = trees.open("links/large")?;
    let (reader, writer) = io::pipe()?;
    let flags = rustix::pipe::SpliceFlags::empty();
    let sender = thread::spawn(move || -> Result<()> {
        while rustix::pipe::splice(&file, None, &writer, None, 1 << 20, flags)? > 0 {}
        Ok(())
    });
    receive(reader, sender, &right)
}

fn receive(
    mut reader: io::PipeReader,
    sender: thread::JoinHandle<Result<()>>,
    right: &[u8],
) -> Found {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    sender
        .join()
        .map_err(|_| Error::other("the sender panicked"))??;
    same("what came through", &bytes, right)?;
    Ok(None)
}

fn advice(trees: &Trees) -> Found {
    let right = trees.right("sizes/131073")?;
    let file = trees.open("sizes/131073")?;
    for advice in [
        Advice::Sequential,
        Advice::WillNeed,
        Advice::Random,
        Advice::DontNeed,
    ] {
        rustix::fs::fadvise(&file, 0, None, advice)?;
        let mut bytes = vec![0; right.len()];
        file.read_exact_at(&mut bytes, 0)?;
        same(&format!("after {advice:?}"), &bytes, &right)?;
    }
    Ok(None)
}

fn without_waiting(trees: &Trees) -> Found {
    let right = trees.right("sizes/131072")?;
    let file = trees.open("sizes/131072")?;
    let mut outcome = Vec::new();
    for _ in 0..2 {
        let mut bytes = vec![0; 8192];
        let buffers = &mut [io::IoSliceMut::new(&mut bytes)];
        match rustix::io::preadv2(&file, buffers, 4096, ReadWriteFlags::NOWAIT) {
            Ok(count) => {
                same("read at once", &bytes[..count], &right[4096..4096 + count])?;
                outcome.push("read");
            }
            Err(Errno::AGAIN) => outcome.push("would wait"),
            Err(Errno::OPNOTSUPP) => outcome.push("not offered"),
            Err(errno) => return Err(errno.into()),
        }
        let mut whole = vec![0; right.len()];
        file.read_exact_at(&mut whole, 0)?;
        same("read in peace", &whole, &right)?;
    }
    Ok(Some(outcome.join(", then ")))
}

fn copy_range(trees: &Trees) -> Found {
    let right = trees.right("sizes/65536")?;
    let mut file = trees.open("sizes/65536")?;
    let mut copy = tempfile()?;
    let note = match rustix::fs::copy_file_range(&file, None, &copy, None, right.len()) {
        Ok(count) => {
            let mut bytes = vec![0; count];
            copy.read_exact_at(&mut bytes, 0)?;
            same("copied by the kernel", &bytes, &right[..count])?;
            None
        }
        Err(Errno::XDEV) => Some("not across file systems".to_owned()),
        Err(errno) => return Err(errno.into()),
    };
    file.rewind()?;
    copy.rewind()?;
    io::copy(&mut file, &mut copy)?;
    let mut bytes = vec![0; right.len()];
    copy.read_exact_at(&mut bytes, 0)?;
    same("copied", &bytes, &right)?;
    Ok(note)
}

fn tempfile() -> Result<File> {
    let flags = libc::O_TMPFILE;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open("/var/tmp")
}

fn readers_of_one(trees: &Trees) -> Found {
    let right = trees.right("sizes/chunks")?;
    let step = right.len() as u64 / READERS;
    in_parallel(|number| {
        let file = trees.open("sizes/chunks")?;
        for turn in 0..8 {
            let at = (number * step + turn * 7 * step) % (right.len() as u64 - 1);
            let mut bytes = vec![0; 10_000.min(right.len() - at as usize)];
            file.read_exact_at(&mut bytes, at)?;
            let at = at as usize;
            same(&format!("at {at}"), &bytes, &right[at..at + bytes.len()])?;
        }
        Ok(())
    })
}

fn readers_of_many(trees: &Trees) -> Found {
    let mut files: Vec<PathBuf> = Vec::new();
    for directory in ["names/many", "sizes"] {
        for entry in fs::read_dir(trees.twin.join(directory))? {
            files.push(Path::new(directory).join(entry?.file_name()));
        }
    }
    in_parallel(|number| {
        for turn in 0..files.len() / 8 {
            let name = &files[(turn * 8 + number as usize * 37) % files.len()];
            let ours = fs::read(trees.tree.join(name))?;
            same(
                &name.display().to_string(),
                &ours,
                &fs::read(trees.twin.join(name))?,
            )?;
        }
        Ok(())
    })
}

fn in_parallel(read: impl Fn(u64) -> Result<()> + Sync) -> Found {
    let read = &read;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| scope.spawn(move || read(number)))
            .collect();
        for reader in readers {
            reader
                .join()
                .map_err(|_| Error::other("a reader panicked"))??;
        }
        Ok(None)
    })
}

/// What is no data has to be zero; how much of the zeros is a hole is the file system's affair.
fn data_and_holes(trees: &Trees) -> Found {
    for name in ["sizes/holes", "sizes/zeros", "sizes/1"] {
        let right = trees.right(name)?;
        let file = trees.open(name)?;
        let (mut at, size) = (0, right.len() as u64);
        while at < size {
            let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => size,
                data => data?,
            };
            ensure(
                data >= at && data <= size,
                format!("{name}: data at {data} after {at}"),
            )?;
            let gap = &right[at as usize..data as usize];
            ensure(
                gap.iter().all(|byte| *byte == 0),
                format!("{name}: no hole at {at}"),
            )?;
            if data == size {
                break;
            }
            at = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
            ensure(
                at > data && at <= size,
                format!("{name}: hole at {at} after {data}"),
            )?;
        }
        let after = rustix::fs::seek(&file, SeekFrom::Data(size));
        ensure(
            after == Err(Errno::NXIO),
            format!("{name}: data after the end: {after:?}"),
        )?;
    }
    Ok(None)
}

fn statx(trees: &Trees) -> Found {
    use rustix::fs::{StatxFlags, statx};
    for name in [
        "sizes/4097",
        "types/pipe",
        "types/relative",
        "modes/sticky",
        "links/z-first",
    ] {
        let look = |root: &Path| {
            let path = root.join(name);
            let file = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
            let flags = AtFlags::EMPTY_PATH;
            statx(&file, "", flags, StatxFlags::BASIC_STATS)
        };
        let (ours, theirs) = (look(&trees.tree)?, look(&trees.twin)?);
        let shown = |stat: &rustix::fs::Statx| {
            let time = (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec);
            let size = if stat.stx_mode & 0o170_000 == 0o040_000 {
                0
            } else {
                stat.stx_size
            };
            (stat.stx_mode, stat.stx_uid, stat.stx_gid, size, time)
        };
        ensure(
            shown(&ours) == shown(&theirs),
            format!("{name}: {:?} instead of {:?}", shown(&ours), shown(&theirs)),
        )?;
        // A read-only mount keeps no access times.
        let wanted = (StatxFlags::BASIC_STATS - StatxFlags::ATIME).bits();
        ensure(
            ours.stx_mask & wanted == wanted,
            format!("{name}: mask {:#x}", ours.stx_mask),
        )?;
        ensure(
            ours.stx_blksize >= 512,
            format!("{name}: blocks of {}", ours.stx_blksize),
        )?;
        let ordinary = fs::symlink_metadata(trees.tree.join(name))?;
        ensure(
            ordinary.ino() == ours.stx_ino,
            format!("{name}: two inode numbers"),
        )?;
    }
    Ok(None)
}

/// Names from where a descriptor stands, each with the position after it.
fn entries(directory: &File) -> Result<Vec<(Vec<u8>, u64)>> {
    let mut buffer = Vec::with_capacity(8192);
    let mut list = rustix::fs::RawDir::new(directory, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    while let Some(entry) = list.next() {
        let entry = entry?;
        found.push((
            entry.file_name().to_bytes().to_vec(),
            entry.next_entry_cookie(),
        ));
    }
    Ok(found)
}

fn directory(trees: &Trees) -> Found {
    let open = || trees.open("names/many");
    let all = entries(&open()?)?;
    let names: BTreeSet<_> = all.iter().map(|(name, _)| &**name).collect();
    ensure(names.len() == all.len(), "a name comes twice")?;
    let right = entries(&File::open(trees.twin.join("names/many"))?)?;
    let right: BTreeSet<_> = right.iter().map(|(name, _)| &**name).collect();
    ensure(
        names == right,
        format!("{} names of {}", names.len(), right.len()),
    )?;
    let again = open()?;
    for position in [0, 1, all.len() / 3, all.len() - 2, all.len() - 1] {
        rustix::fs::seek(&again, SeekFrom::Start(all[position].1))?;
        let rest = entries(&again)?;
        let is_right = rest
            .iter()
            .map(|(name, _)| name)
            .eq(all[position + 1..].iter().map(|(name, _)| name));
        ensure(
            is_right,
            format!("{} entries after entry {position}", rest.len()),
        )?;
    }
    rustix::fs::seek(&again, SeekFrom::Start(0))?;
    ensure(
        entries(&again)?.len() == all.len(),
        "not all again from the beginning",
    )?;
    Ok(None)
}

fn names(trees: &Trees) -> Found {
    for name in ["types/long", "types/dangling", "types/absolute"] {
        let [ours, theirs] = [&trees.tree, &trees.twin].map(|root| fs::read_link(root.join(name)));
        same(
            name,
            ours?.as_os_str().as_bytes(),
            theirs?.as_os_str().as_bytes(),
        )?;
    }
    let looped = File::open(trees.tree.join("types/loop-a")).map(drop);
    ensure(
        looped.is_err_and(|error| error.raw_os_error() == Some(libc::ELOOP)),
        "a loop of links was followed",
    )?;
    let may = |name, access| rustix::fs::access(trees.tree.join(name), access);
    may("modes/setuid", Access::READ_OK | Access::EXEC_OK)?;
    ensure(
        may("sizes/1", Access::EXEC_OK) == Err(Errno::ACCESS),
        "0644 may be executed",
    )?;
    ensure(
        may("sizes/none", Access::EXISTS) == Err(Errno::NOENT),
        "what is not there is",
    )?;
    let path = rustix::fs::open(trees.tree.join("sizes/8191"), OFlags::PATH, Mode::empty())?;
    let mut byte = [0];
    ensure(
        rustix::io::read(&path, &mut byte) == Err(Errno::BADF),
        "O_PATH can be read",
    )?;
    let through = fs::read(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&path)
    ))?;
    same("by /proc/self/fd", &through, &trees.right("sizes/8191")?)?;
    Ok(None)
}

fn ends(trees: &Trees) -> Found {
    for size in [0_u64, 1, 2, 4095, 4096, 4097, 131_071] {
        let name = format!("sizes/{size}");
        let (file, right) = (trees.open(&name)?, trees.right(&name)?);
        let mut bytes = vec![0; 8192];
        let from = size.saturating_sub(3);
        let count = file.read_at(&mut bytes, from)?;
        same(&name, &bytes[..count], &right[from as usize..])?;
        for beyond in [size, size + 1, size + (1 << 20), 1 << 40] {
            ensure(
                file.read_at(&mut bytes, beyond)? == 0,
                format!("{name}: bytes at {beyond}"),
            )?;
        }
        ensure(
            file.read_at(&mut [], 0)? == 0,
            format!("{name}: a read of nothing"),
        )?;
    }
    Ok(None)
}

fn flock(trees: &Trees) -> Found {
    let (one, other) = (trees.open("sizes/2")?, trees.open("sizes/2")?);
    rustix::fs::flock(&one, FlockOperation::NonBlockingLockShared)?;
    rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared)?;
    rustix::fs::flock(&other, FlockOperation::Unlock)?;
    rustix::fs::flock(&one, FlockOperation::NonBlockingLockExclusive)?;
    let second = rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared);
    ensure(
        second == Err(Errno::WOULDBLOCK),
        format!("a second lock: {second:?}"),
    )?;
    Ok(None)
}

fn notify(trees: &Trees) -> Found {
    use inotify::{CreateFlags, ReadFlags, WatchFlags};
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let wanted = WatchFlags::OPEN | WatchFlags::ACCESS | WatchFlags::CLOSE_NOWRITE;
    inotify::add_watch(&queue, trees.tree.join("sizes/8193"), wanted)?;
    fs::read(trees.tree.join("sizes/8193"))?;
    let mut room = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&queue, &mut room);
    let mut seen = ReadFlags::empty();
    loop {
        match events.next() {
            Ok(event) => seen |= event.events(),
            Err(Errno::AGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let all = ReadFlags::OPEN | ReadFlags::ACCESS | ReadFlags::CLOSE_NOWRITE;
    ensure(seen.contains(all), format!("only {seen:?}"))?;
    Ok(None)
}

fn handles(trees: &Trees) -> Found {
    let path = trees.tree.join("sizes/8192");
    let name = CString::new(path.as_os_str().as_bytes()).map_err(Error::other)?;
    match sys::open_by_handle(File::open(&trees.tree)?.as_fd(), &name) {
        Ok(file) => {
            let mut bytes = Vec::new();
            File::from(file).read_to_end(&mut bytes)?;
            same("by handle", &bytes, &trees.right("sizes/8192")?)?;
            Ok(None)
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EPERM) => Ok(Some(format!("not offered: {error}"))),
            _ => Err(error),
        },
    }
}

fn read_only(trees: &Trees) -> Found {
    let file = trees.tree.join("types/file");
    let new = trees.tree.join("types/new");
    let time = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        },
    };
    let empty = AtFlags::empty();
    let attempts: [(&str, rustix::io::Result<()>); 12] = [
        (
            "open for writing",
            rustix::fs::open(&file, OFlags::RDWR, Mode::empty()).map(drop),
        ),
        (
            "create",
            rustix::fs::open(&new, OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).map(drop),
        ),
        ("mkdir", rustix::fs::mkdir(&new, Mode::RWXU)),
        ("unlink", rustix::fs::unlink(&file)),
        ("rmdir", rustix::fs::rmdir(trees.tree.join("modes/sticky"))),
        ("rename", rustix::fs::rename(&file, &new)),
        ("link", rustix::fs::link(&file, &new)),
        ("symlink", rustix::fs::symlink("x", &new)),
        ("chmod", rustix::fs::chmod(&file, Mode::RWXU)),
        (
            "chown",
            rustix::fs::chown(&file, Some(rustix::fs::Uid::from_raw(1)), None),
        ),
        (
            "utimens",
            rustix::fs::utimensat(rustix::fs::CWD, &file, &time, empty),
        ),
        (
            "setxattr",
            rustix::fs::setxattr(&file, "user.x", b"1", rustix::fs::XattrFlags::empty()),
        ),
    ];
    for (name, result) in attempts {
        ensure(result == Err(Errno::ROFS), format!("{name}: {result:?}"))?;
    }
    Ok(None)
}

fn content_up(trees: &Trees) -> Found {
    let path = trees.tree.join("sizes/1048577");
    OpenOptions::new()
        .append(true)
        .open(&path)?
        .write_all(b"appended")?;
    let right = [trees.right("sizes/1048577")?, b"appended".to_vec()].concat();
    same("appended", &fs::read(&path)?, &right)?;
    let path = trees.tree.join("upper/large");
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    file.write_all_at(b"middle", 300_000)?;
    let mut right = trees.right("upper/large")?;
    right[300_000..300_006].copy_from_slice(b"middle");
    same("written into", &fs::read(&path)?, &right)?;
    file.set_len(1000)?;
    same("cut off", &fs::read(&path)?, &right[..1000])?;
    Ok(None)
}

fn metadata_up(trees: &Trees) -> Found {
    let path = trees.tree.join("sizes/131073");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    rustix::fs::setxattr(&path, "user.x", b"1", rustix::fs::XattrFlags::empty())?;
    ensure(
        fs::metadata(&path)?.mode() & 0o7777 == 0o600,
        "the mode did not change",
    )?;
    same(
        "after chmod",
        &fs::read(&path)?,
        &trees.right("sizes/131073")?,
    )?;
    Ok(None)
}

fn names_changed(trees: &Trees) -> Found {
    let at = |name: &str| trees.tree.join(name);
    fs::remove_file(at("links/a-second"))?;
    ensure(!at("links/a-second").exists(), "it is still there")?;
    same(
        "its other name",
        &fs::read(at("links/z-first"))?,
        &trees.right("links/z-first")?,
    )?;
    fs::rename(at("sizes/65537"), at("links/moved"))?;
    same(
        "renamed",
        &fs::read(at("links/moved"))?,
        &trees.right("sizes/65537")?,
    )?;
    fs::remove_dir_all(at("names"))?;
    fs::create_dir(at("names"))?;
    ensure(
        fs::read_dir(at("names"))?.next().is_none(),
        "a new directory is not empty",
    )?;
    Ok(None)
}
