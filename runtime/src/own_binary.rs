//! The runtime's own program file, out of reach of what runs in containers.
//!
//! A program that begins with `#!/proc/self/exe`, or a process of the container that watches
//! `/proc`, gets hold of the file that the launching process was started from; a container's root
//! that is the host's root could then write to it (CVE-2019-5736). So a launching process runs from
//! a file that nobody can write to.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

use rustix::fs::{
    Access, AtFlags, CWD, MemfdFlags, SealFlags, accessat, fcntl_add_seals, fcntl_get_seals,
    memfd_create,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Error, Result};
use crate::sys::{CStrArray, MountAttr, execve_file, mount_set_attr};

const OWN: &str = "/proc/self/exe";

/// Comes back when this process runs from a file that it cannot write to; until then executes
/// itself once more, from a read-only view of its file (or a sealed copy, without the privilege to
/// make one). To be called before anything else: the new image starts from the beginning.
///
/// An installation on a read-only mount, or one that the user cannot write to, costs one system
/// call.
pub fn protect_own_binary() -> Result<()> {
    let failed = |errno| Error::os("protect the runtime's own binary")(errno);
    if accessat(CWD, OWN, Access::WRITE_OK, AtFlags::EACCESS).is_err() {
        return Ok(());
    }
    let own = File::open(OWN).map_err(Error::file("open", OWN))?;
    if is_sealed(own.as_fd()) {
        return Ok(());
    }
    let file = match read_only_view() {
        Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS) => sealed_copy(&own)?,
        view => view.map_err(failed)?,
    };
    Err(failed(execute(file.as_fd())?))
}

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

fn is_sealed(own: BorrowedFd<'_>) -> bool {
    // An ordinary file has no seals to ask for.
    fcntl_get_seals(own).is_ok_and(|seals| seals.contains(SEALS))
}

/// A mount of this file alone, read-only and attached nowhere.
fn read_only_view() -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = open_tree(CWD, OWN, flags)?;
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    mount_set_attr(view.as_fd(), c"", false, &attr)?;
    Ok(view)
}

fn sealed_copy(own: &File) -> Result<OwnedFd> {
    let failed = |e: std::io::Error| Error::os("copy the runtime's own binary")(e);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since kernel 6.3 a host may want to be told that the file shall be executed.
    let made = match memfd_create("xebec", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create("xebec", flags),
        made => made,
    };
    let mut copy = File::from(made.map_err(|e| failed(e.into()))?);
    let mut own = own;
    std::io::copy(&mut own, &mut copy).map_err(failed)?;
    fcntl_add_seals(&copy, SEALS).map_err(|e| failed(e.into()))?;
    // A descriptor that is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(File::open(path).map_err(failed)?.into())
}

/// Executes `file` with this process's arguments and environment; comes back only with the errno.
fn execute(file: BorrowedFd<'_>) -> Result<Errno> {
    let c_string = |text: OsString| {
        CString::new(text.into_vec()).map_err(|_| Error::InvalidArgument("zero byte".into()))
    };
    let args = std::env::args_os()
        .map(c_string)
        .collect::<Result<Vec<_>>>()?;
    let variables = std::env::vars_os().map(|(name, value)| {
        let mut text = name;
        text.push("=");
        text.push(value);
        c_string(text)
    });
    let env = CStrArray::new(variables.collect::<Result<Vec<_>>>()?, false);
    Ok(execve_file(file, &CStrArray::new(args, false), &env))
}
