//! The least that a FUSE file system can be: one file, answered from memory by as many threads as
//! serve a mount of ours, and nothing asked that need not be. What a read costs here is what the
//! kernel takes to ask another process, below which no daemon gets on this machine.

use std::ffi::OsStr;
use std::io::{self, Error};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    Request, SessionACL,
};

/// For as long as it is mounted.
const TTL: Duration = Duration::from_secs(1 << 30);
const ROOT: INodeNo = INodeNo(1);
const FILE: INodeNo = INodeNo(2);
const NAME: &str = "file";
const THREADS: usize = 4;

struct OneFile(Vec<u8>);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [size, point] = &arguments[..] else {
        eprintln!("bench-fuse BYTES DIR");
        return ExitCode::from(2);
    };
    match serve(size, point) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-fuse: {}: {error}", point.to_string_lossy());
            ExitCode::FAILURE
        }
    }
}

/// Serves until it is unmounted.
fn serve(size: &OsStr, point: &OsStr) -> io::Result<()> {
    let size = size.to_str().and_then(|size| size.parse().ok());
    let size: usize = size.ok_or_else(|| Error::other("no number of bytes"))?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO];
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    fuser::mount(OneFile(vec![1; size]), point, &config)
}

impl OneFile {
    fn attributes(&self, number: INodeNo) -> FileAttr {
        let (kind, size, perm) = match number {
            ROOT => (FileType::Directory, 4096, 0o755),
            _ => (FileType::RegularFile, self.0.len() as u64, 0o644),
        };
        FileAttr {
            ino: number,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |_| Error::other("the kernel asks before each open");
        config
            .add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT)
            .map_err(refused)
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        reply.attr(&TTL, &self.attributes(number));
    }

    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let begin = usize::try_from(offset).map_or(self.0.len(), |at| at.min(self.0.len()));
        let end = begin.saturating_add(size as usize).min(self.0.len());
        reply.data(&self.0[begin..end]);
    }
}
