//! Where the process runs and what it executes, in the child.

use std::ffi::CStr;

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, accessat, fstat, openat2, statat,
};
use rustix::io::Errno;
use rustix::process::chdir;

use crate::error::{At as _, Failure, Step};
use crate::plan::{ProcessPlan, Program};

/// How many reads of a passwd file are enough for 16 MiB.
const PASSWD_BLOCKS: usize = 4096;

/// Changes to the working directory; the root is where everybody is already.
pub(super) fn enter_cwd(cwd: &CStr) -> Result<(), Errno> {
    if cwd == c"/" { Ok(()) } else { chdir(cwd) }
}

/// A working directory that was reached through a leaked descriptor lies outside the root, and
/// the kernel says so (CVE-2024-21626).
pub(super) fn check_cwd() -> Result<(), Failure<'static>> {
    let mut path = [0; 4096];
    match crate::sys::working_directory(&mut path) {
        Ok(b'/') => Ok(()),
        Ok(_) => Err(Errno::NOENT).at(Step::CwdOutside, b""),
        Err(errno) => Err(errno).at(Step::CwdOutside, b""),
    }
}

/// Finds the program as the user who will execute it.
pub(super) fn find(plan: &ProcessPlan) -> Result<&CStr, Failure<'_>> {
    match &plan.program {
        Program::Path(path) => {
            executable(path).at(Step::FindProgram, path.to_bytes())?;
            Ok(path)
        }
        Program::Search(candidates) => {
            let name = plan
                .argv
                .strings()
                .first()
                .map_or(&b""[..], |name| CStr::to_bytes(name));
            // As in Go's LookPath, what cannot be executed does not count as found.
            let found = candidates
                .iter()
                .find(|candidate| executable(candidate).is_ok());
            found
                .map(AsRef::as_ref)
                .ok_or(Errno::NOENT)
                .at(Step::SearchProgram, name)
        }
    }
}

fn executable(path: &CStr) -> Result<(), Errno> {
    let stat = statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    if stat.st_mode & 0o111 == 0 {
        return Err(Errno::ACCESS);
    }
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // faccessat2 came with kernel 5.8.
        Err(Errno::NOSYS) => Ok(()),
        result => result,
    }
}

/// Looks the user's home up in the container's `/etc/passwd`; `/` when it is not there.
pub(super) fn set_home(plan: &ProcessPlan) {
    let mut home = [0; 512];
    let length = find_home(plan.uid, &mut home).unwrap_or(0);
    let home = if length == 0 {
        &b"/"[..]
    } else {
        &home[..length]
    };
    // Room for it was laid out, and it was cut to size above.
    let _ = plan.env.append_late(b"HOME=", home);
}

fn find_home(uid: u32, home: &mut [u8; 512]) -> Option<usize> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let file = openat2(CWD, c"/etc/passwd", flags, Mode::empty(), resolve).ok()?;
    let kind = FileType::from_raw_mode(fstat(&file).ok()?.st_mode);
    if kind != FileType::RegularFile {
        return None;
    }
    let mut buffer = [0; 4096];
    let mut kept = 0;
    // An image may hold a file of any size; init does not read for ever.
    for _ in 0..PASSWD_BLOCKS {
        let read = rustix::io::read(&file, &mut buffer[kept..]).ok()?;
        let end = kept + read;
        let mut rest = &buffer[..end];
        while let Some(at) = rest.iter().position(|&b| b == b'\n') {
            if let Some(length) = home_in_line(&rest[..at], uid, home) {
                return Some(length);
            }
            rest = &rest[at + 1..];
        }
        if read == 0 {
            return home_in_line(rest, uid, home);
        }
        // A line that fills the whole buffer is no line of a passwd file: give it up.
        let left = if rest.len() == buffer.len() {
            0
        } else {
            rest.len()
        };
        buffer.copy_within(end - left..end, 0);
        kept = left;
    }
    None
}

/// `name:password:uid:gid:gecos:home:shell`.
fn home_in_line(line: &[u8], uid: u32, home: &mut [u8; 512]) -> Option<usize> {
    let mut fields = line.split(|&b| b == b':');
    let number = std::str::from_utf8(fields.nth(2)?).ok()?;
    if number.parse() != Ok(uid) {
        return None;
    }
    let found = fields.nth(2)?;
    home.get_mut(..found.len())?.copy_from_slice(found);
    Some(found.len())
}

/// Tells a failure on standard error, the only place left once `create` has returned.
pub(super) fn complain(failure: &Failure<'_>) {
    let reason: &[u8] = match failure.errno {
        Errno::NOEXEC => b"exec format error",
        Errno::NOENT => b"no such file or directory",
        Errno::ACCESS => b"permission denied",
        _ => b"failed to start",
    };
    let (what, reason) = match failure.step {
        Step::StartContainerHook => (
            &b"error running startContainer hook "[..],
            &b"it failed"[..],
        ),
        _ => (&b"exec "[..], reason),
    };
    for part in [what, failure.detail, b": ", reason, b"\n"] {
        if rustix::io::write(rustix::stdio::stderr(), part).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_is_that_of_the_uid_asked_for() {
        let mut home = [0; 512];
        let line = b"app:x:1000:1000:An App,,:/srv/app:/bin/sh";
        assert_eq!(home_in_line(line, 1000, &mut home), Some(8));
        assert_eq!(&home[..8], b"/srv/app");
        for bad in [&b"app:x:1000"[..], b"", b"::::::", b"app:x:-1:0:::"] {
            assert_eq!(home_in_line(bad, 1000, &mut home), None);
        }
    }

    #[test]
    fn what_cannot_be_executed_is_told_apart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| {
            let path = dir.path().join(name);
            std::ffi::CString::new(path.to_str().expect("UTF-8")).expect("no zero")
        };
        std::fs::write(dir.path().join("plain"), "x").expect("write");
        assert_eq!(executable(&path("missing")), Err(Errno::NOENT));
        assert_eq!(executable(&path("plain")), Err(Errno::ACCESS));
        assert_eq!(executable(&path(".")), Err(Errno::ISDIR));
        assert_eq!(executable(c"/bin/sh"), Ok(()));
    }
}
