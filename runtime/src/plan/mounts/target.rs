//! Where a mount goes: paths relative to the root, and those that `/proc` allows.

use std::ffi::{CStr, CString};
use std::path::{Component, Path};

use super::super::{FieldError, c_string};

/// `/a/./b/../c` → `a/c`: what is left can only name something below the root.
pub(crate) fn relative_target(path: &Path) -> Result<CString, FieldError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.as_encoded_bytes()),
            Component::ParentDir => drop(parts.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    c_string("destination", &parts.join(&b'/'))
}

/// What a target has to do with `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcTarget {
    /// Nothing; should a symlink of the image lead there, the mount is refused.
    Outside,
    /// It is `/proc` itself.
    Itself,
    /// One of the files that such tools as lxcfs provide.
    AllowedFile,
}

/// A mount over `/proc` or into it could fake what the runtime writes to (CVE-2019-16884), so only
/// a proc file system and a few single files are allowed there.
pub(super) fn proc_target(target: &CStr, bind: bool, kind: &str) -> Result<ProcTarget, FieldError> {
    const ALLOWED: [&[u8]; 12] = [
        b"cpuinfo",
        b"diskstats",
        b"meminfo",
        b"stat",
        b"swaps",
        b"uptime",
        b"loadavg",
        b"slabinfo",
        b"net/dev",
        b"sys/kernel/ns_last_pid",
        b"sys/crypto/fips_enabled",
        b"sys/kernel/random/boot_id",
    ];
    let refuse = |reason: &str| {
        let target = target.to_string_lossy();
        let reason = format!("\"/{target}\" cannot be mounted because it is {reason}");
        Err(FieldError::new("destination", &reason))
    };
    match target.to_bytes().strip_prefix(b"proc") {
        // Whether a bound tree is a proc is seen when it is opened.
        Some(b"") if bind || kind == "proc" => Ok(ProcTarget::Itself),
        Some(b"") => refuse("not of type proc"),
        Some([b'/', inside @ ..]) if ALLOWED.contains(&inside) => Ok(ProcTarget::AllowedFile),
        Some([b'/', ..]) => refuse("inside /proc"),
        _ => Ok(ProcTarget::Outside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_cannot_leave_the_root() {
        for (from, to) in [
            ("/../../etc", c"etc"),
            ("a//b/./c/..", c"a/b"),
            ("/", c""),
            ("..", c""),
        ] {
            assert_eq!(
                relative_target(Path::new(from)).expect("valid").as_c_str(),
                to
            );
        }
    }

    #[test]
    fn proc_is_covered_by_a_proc_and_single_files_only() {
        for (target, bind, kind, expected) in [
            (c"proc", false, "proc", Some(ProcTarget::Itself)),
            (c"proc", true, "bind", Some(ProcTarget::Itself)),
            (c"proc", false, "tmpfs", None),
            (c"proc/sys", false, "tmpfs", None),
            (c"proc/self", true, "bind", None),
            (c"proc/meminfo", true, "bind", Some(ProcTarget::AllowedFile)),
            (c"procs", false, "tmpfs", Some(ProcTarget::Outside)),
            (c"x/proc/sys", false, "tmpfs", Some(ProcTarget::Outside)),
        ] {
            let planned = proc_target(target, bind, kind);
            assert_eq!(planned.as_ref().ok(), expected.as_ref(), "{target:?}");
            if let Err(refused) = planned {
                assert_eq!(refused.field, "destination");
            }
        }
    }
}
