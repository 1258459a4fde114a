//! `mount(2)` in place of the mount API, where something around this runtime refuses that: a
//! profile of AppArmor that allows no detached mounts (LXC), a seccomp filter that is older.
//!
//! A place is named by its descriptor, `/proc/self/fd/N`, so that nothing can take its place after
//! it was found below the root; what is mounted then is looked up again and compared. All of this
//! is the child's, which still sees the host's proc.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags, fstat, open, statx};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount,
};

use super::host::attributes_of;
use super::mounts::octal;
use super::refusals::{is_whole_proc, refuses_mount_api};
use super::resolve::open_inside;
use crate::plan::{
    BindPlan, FilesystemPlan, FsParam, SourceSymlink, mount_flags, super_flag, takes_label,
};
use crate::sys::{MountAttr, mount_set_attr};

/// Where something is to be mounted, and the way to find it again.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    /// Where the path starts, which it does not leave.
    pub(super) base: BorrowedFd<'a>,
    pub(super) path: &'a CStr,
    /// What is mounted over.
    pub(super) place: BorrowedFd<'a>,
    /// A symlink at the end of the path is itself the place.
    pub(super) nofollow: bool,
}

impl Spot<'_> {
    /// Binds what is open there; the new mount.
    pub(super) fn bind(self, source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
        let (from, to) = (FdPath::new(source), FdPath::new(self.place));
        if recursive {
            mount_bind_recursive(from.as_c_str(), to.as_c_str())?;
        } else {
            mount_bind(from.as_c_str(), to.as_c_str())?;
        }
        let top = self.top()?;
        if is_same(source, top.as_fd())? {
            Ok(top)
        } else {
            Err(Errno::STALE)
        }
    }

    /// Binds a source of the host's, by its path, or one inside the root; it has to be what `known`
    /// is, which the parent has opened.
    pub(super) fn bind_source(
        self,
        bind: &BindPlan,
        root: BorrowedFd<'_>,
        known: BorrowedFd<'_>,
    ) -> Result<OwnedFd, Errno> {
        let flags = match bind.symlink {
            SourceSymlink::Bind => OFlags::PATH | OFlags::NOFOLLOW,
            SourceSymlink::Follow | SourceSymlink::Copy => OFlags::PATH,
        };
        let source = match &bind.inside {
            Some(path) => open_inside(root, path, flags, false)?,
            None => open(&*bind.source, flags | OFlags::CLOEXEC, Mode::empty())?,
        };
        // The ids of an attached mount cannot be mapped.
        let fits = bind.idmap.is_none()
            && is_same(source.as_fd(), known)?
            && (!bind.must_be_proc || is_whole_proc(source.as_fd())?);
        if fits {
            self.bind(source.as_fd(), bind.recursive)
        } else {
            Err(Errno::PERM)
        }
    }

    /// Mounts a new file system, with the mode of its root directory if it is to have one; the new
    /// mount.
    pub(super) fn filesystem(
        self,
        plan: &FilesystemPlan,
        mode: Option<Mode>,
    ) -> Result<OwnedFd, Errno> {
        if plan.idmap.is_some() {
            return Err(Errno::PERM);
        }
        let to = FdPath::new(self.place);
        if let Some(old) = &plan.old_call {
            let flags = MountFlags::from_bits_retain(old.flags);
            mount(&*old.source, to.as_c_str(), &*plan.kind, flags, &*old.data)?;
        } else {
            let mut data = Data::default();
            let (source, flags) = data.take(&plan.params)?;
            if let Some(mode) = mode {
                data.push(&[b"mode=", &octal(mode)[..4]])?;
            }
            // This call would make the file system itself read-only, and others may share it.
            let flags = flags_of(plan.attrs & !libc::MOUNT_ATTR_RDONLY) | flags;
            mount(source, to.as_c_str(), &*plan.kind, flags, data.as_c_str()?)?;
        }
        let top = self.top()?;
        let readonly = MountAttr {
            set: plan.attrs & libc::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        if !readonly.is_noop() {
            set_attributes(top.as_fd(), c"", false, &readonly)?;
        }
        Ok(top)
    }

    /// Mounts an empty read-only tmpfs.
    pub(super) fn empty_directory(self) -> Result<OwnedFd, Errno> {
        let to = FdPath::new(self.place);
        let data = c"nr_inodes=1";
        mount(c"tmpfs", to.as_c_str(), c"tmpfs", MountFlags::RDONLY, data)?;
        self.top()
    }

    /// The mount that lies over the place now: another one than that which the place is on.
    fn top(self) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH;
        if self.nofollow {
            flags |= OFlags::NOFOLLOW;
        }
        let top = open_inside(self.base, self.path, flags, false)?;
        let look = |fd: BorrowedFd<'_>| statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
        let (now, before) = (look(top.as_fd())?, look(self.place)?);
        let is_new = now.stx_mnt_id != before.stx_mnt_id
            && now.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        if is_new { Ok(top) } else { Err(Errno::STALE) }
    }
}

/// Changes a mount as `mount_setattr` does (`path` is empty, or absolute), by whichever call is
/// allowed. The older one changes no attributes of a whole tree.
pub(super) fn set_attributes(
    dir: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attr: &MountAttr,
) -> Result<(), Errno> {
    match mount_set_attr(dir, path, recursive, attr) {
        Err(errno) if refuses_mount_api(errno) => {
            change_by_mount(dir, path, recursive, attr).map_err(|_| errno)
        }
        done => done,
    }
}

fn change_by_mount(
    dir: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attr: &MountAttr,
) -> Result<(), Errno> {
    let own = FdPath::new(dir);
    let target = if path.is_empty() {
        own.as_c_str()
    } else {
        path
    };
    if attr.set | attr.clear != 0 {
        if recursive || !path.is_empty() || attr.set & libc::MOUNT_ATTR_IDMAP != 0 {
            return Err(Errno::NOSYS);
        }
        let wanted = attributes_of(dir)? & !attr.clear | attr.set;
        mount_remount(target, MountFlags::BIND | flags_of(wanted), c"")?;
    }
    if attr.propagation != 0 {
        // All of them are below 2^32.
        let mut kind = MountPropagationFlags::from_bits_retain(attr.propagation as u32);
        if recursive {
            kind |= MountPropagationFlags::REC;
        }
        mount_change(target, kind)?;
    }
    Ok(())
}

/// Changes a mount and the parameters of its file system, as `mount -o remount` does.
pub(super) fn reconfigure(
    place: BorrowedFd<'_>,
    params: &[FsParam],
    attr: &MountAttr,
) -> Result<(), Errno> {
    let mut data = Data::default();
    let (_, flags) = data.take(params)?;
    let wanted = attributes_of(place)? & !attr.clear | attr.set;
    let target = FdPath::new(place);
    let flags = flags_of(wanted) | flags;
    mount_remount(target.as_c_str(), flags, data.as_c_str()?)
}

/// `MS_*` of `MOUNT_ATTR_*`.
fn flags_of(attributes: u64) -> MountFlags {
    // All of them are below 2^32.
    MountFlags::from_bits_retain(mount_flags(attributes) as u32)
}

/// Whether both are the same file, in whichever mount.
pub(super) fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// The path of a descriptor of this process.
struct FdPath {
    bytes: [u8; Self::ROOM],
}

impl FdPath {
    const PREFIX: &[u8] = b"/proc/self/fd/";
    /// Of the prefix, ten digits and a zero byte.
    const ROOM: usize = Self::PREFIX.len() + 11;

    fn new(fd: BorrowedFd<'_>) -> Self {
        Self::numbered(fd.as_raw_fd().unsigned_abs())
    }

    fn numbered(fd: u32) -> Self {
        let mut bytes = [0; Self::ROOM];
        bytes[..Self::PREFIX.len()].copy_from_slice(Self::PREFIX);
        let mut rest = fd;
        let digits = rest.checked_ilog10().unwrap_or(0) as usize + 1;
        for place in (Self::PREFIX.len()..Self::PREFIX.len() + digits).rev() {
            bytes[place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        Self { bytes }
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

/// Options in one line, as `mount(2)` takes them: at most one page.
struct Data {
    bytes: [u8; 4096],
    len: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            bytes: [0; 4096],
            len: 0,
        }
    }
}

impl Data {
    /// Takes parameters of `fsconfig` in; the source among them, and what is a flag here.
    fn take<'p>(&mut self, params: &'p [FsParam]) -> Result<(&'p CStr, MountFlags), Errno> {
        let (mut source, mut flags) = (c"none", 0);
        for FsParam { key, value, .. } in params {
            match (key.to_bytes(), value) {
                (b"source", Some(value)) => source = value,
                (b"ro", None) => flags |= libc::MS_RDONLY,
                (b"rw", None) => {}
                (word, None) if super_flag(word) != 0 => flags |= super_flag(word),
                (word, None) => self.push(&[word])?,
                // A label with several categories has commas, which would end the option.
                (word, Some(value)) if takes_label(word) => {
                    self.push(&[word, b"=\"", value.to_bytes(), b"\""])?;
                }
                (word, Some(value)) => self.push(&[word, b"=", value.to_bytes()])?,
            }
        }
        // All of them are below 2^32.
        Ok((source, MountFlags::from_bits_retain(flags as u32)))
    }

    fn push(&mut self, parts: &[&[u8]]) -> Result<(), Errno> {
        let comma: &[u8] = if self.len == 0 { b"" } else { b"," };
        for part in std::iter::once(&comma).chain(parts) {
            let end = self.len + part.len();
            // The last byte stays zero.
            if end >= self.bytes.len() {
                return Err(Errno::NAMETOOLONG);
            }
            self.bytes[self.len..end].copy_from_slice(part);
            self.len = end;
        }
        Ok(())
    }

    fn as_c_str(&self) -> Result<&CStr, Errno> {
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_| Errno::NAMETOOLONG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    fn param(key: &CStr, value: Option<&CStr>) -> FsParam {
        FsParam {
            key: key.to_owned(),
            value: value.map(CStr::to_owned),
            words: Vec::new(),
        }
    }

    #[test]
    fn a_descriptor_has_a_path() {
        for fd in [0, 7, 10, 1_048_576, u32::MAX] {
            let path = FdPath::numbered(fd);
            let expected = CString::new(format!("/proc/self/fd/{fd}")).expect("no zero");
            assert_eq!(path.as_c_str(), &*expected);
        }
    }

    #[test]
    fn parameters_become_one_line_and_flags() {
        let params = [
            param(c"source", Some(c"shm")),
            param(c"sync", None),
            param(c"ro", None),
            param(c"mode", Some(c"1777")),
            param(c"newinstance", None),
            param(c"context", Some(c"u:r:t:s0:c1,c2")),
        ];
        let mut data = Data::default();
        let (source, flags) = data.take(&params).expect("fits");
        assert_eq!(source, c"shm");
        assert_eq!(flags, MountFlags::SYNCHRONOUS | MountFlags::RDONLY);
        let line = c"mode=1777,newinstance,context=\"u:r:t:s0:c1,c2\"";
        assert_eq!(data.as_c_str(), Ok(line));
    }

    #[test]
    fn a_line_longer_than_a_page_is_refused() {
        let long = CString::new(vec![b'a'; 4090]).expect("no zero");
        let fits = Data::default().take(&[param(c"data", Some(&long))]).is_ok();
        let both = [param(c"data", Some(&long)), param(c"x", None)];
        assert!(fits && Data::default().take(&both).is_err());
    }
}
