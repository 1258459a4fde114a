//! Opening the namespaces that a container joins, with every check that can be made in advance.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat, open, stat};
use rustix::io::Errno;

use crate::error::errno_words;
use crate::plan::{FieldError, IdMaps};
use crate::spec::{Join, Namespaces};
use crate::sys::namespace_kind;

const NEWNS: u64 = libc::CLONE_NEWNS as u64;
const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
const NEWNET: u64 = libc::CLONE_NEWNET as u64;

/// A namespace by path, open and known to be of the kind that was asked for.
#[derive(Debug)]
pub(crate) struct OpenNamespace {
    /// Its `CLONE_NEW*` bit.
    pub(crate) flag: u64,
    pub(crate) fd: OwnedFd,
}

/// Opens every namespace that is given by path.
///
/// The caller's own user namespace cannot be joined and need not be: it is taken off the list.
pub(crate) fn open_joins(namespaces: &mut Namespaces) -> Result<Vec<OpenNamespace>, FieldError> {
    let mut opened = Vec::with_capacity(namespaces.join.len());
    let mut own_user = false;
    for join in &namespaces.join {
        let namespace = open_one(join)?;
        if join.flag == NEWUSER && is_own(&namespace.fd, "/proc/self/ns/user") {
            own_user = true;
        } else if join.flag == NEWNS && is_own(&namespace.fd, "/proc/self/ns/mnt") {
            return Err(FieldError {
                field: format!("linux.namespaces[{}].path", join.index),
                reason: "is the mount namespace of the runtime, whose root must stay".to_owned(),
            });
        } else {
            opened.push(namespace);
        }
    }
    if own_user {
        namespaces.join.retain(|join| join.flag != NEWUSER);
    }
    Ok(opened)
}

/// Whether the container would use the caller's network namespace, by whatever name.
pub(crate) fn shares_network(namespaces: &Namespaces, opened: &[OpenNamespace]) -> bool {
    let joined = opened.iter().find(|namespace| namespace.flag == NEWNET);
    joined.map_or(!namespaces.has(NEWNET), |namespace| {
        is_own(&namespace.fd, "/proc/self/ns/net")
    })
}

/// Id maps beside a user namespace by path must be the ones that it has.
pub(crate) fn check_maps(opened: &[OpenNamespace], maps: &IdMaps) -> Result<(), FieldError> {
    let Some(user) = opened.iter().find(|namespace| namespace.flag == NEWUSER) else {
        return Ok(());
    };
    let has = super::userns::maps_of(user.fd.as_fd()).map_err(|error| FieldError {
        field: "linux.uidMappings".to_owned(),
        reason: format!("cannot be compared with those of the user namespace: {error}"),
    })?;
    let same = |a: &str, b: &str| extents(a) == extents(b);
    for (field, wanted, found) in [
        ("linux.uidMappings", &maps.uid, &has.uid),
        ("linux.gidMappings", &maps.gid, &has.gid),
    ] {
        if !same(wanted, found) {
            let reason = "user namespaces enabled, but both namespace path and non-matching \
                          mapping specified -- you may only provide one";
            return Err(FieldError {
                field: field.to_owned(),
                reason: reason.to_owned(),
            });
        }
    }
    Ok(())
}

/// The lines of a map in an order of their own: the kernel sorts long ones.
fn extents(map: &str) -> Vec<Vec<&str>> {
    let mut extents: Vec<Vec<&str>> = map
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    extents.sort_unstable();
    extents
}

fn open_one(join: &Join) -> Result<OpenNamespace, FieldError> {
    let path = join.path.display();
    let refuse = |reason: String| FieldError {
        field: format!("linux.namespaces[{}].path", join.index),
        reason,
    };
    // Opening must not hang when the path is that of a fifo.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = open(&join.path, flags, Mode::empty()).map_err(|errno| {
        let words = errno_words(errno.raw_os_error());
        refuse(match errno {
            Errno::NOENT => format!("namespace path: lstat {path}: {words}"),
            _ => format!("namespace path: open {path}: {words}"),
        })
    })?;
    let wanted = name_of(join.flag);
    match namespace_kind(fd.as_fd()) {
        Ok(kind) if kind == join.flag => Ok(OpenNamespace {
            flag: join.flag,
            fd,
        }),
        Ok(kind) => {
            let found = name_of(kind);
            Err(refuse(format!(
                "{path} is a namespace of kind {found}, not {wanted}"
            )))
        }
        Err(_) => Err(refuse(format!("{path} is no namespace"))),
    }
}

/// The specification's name of a kind of namespace.
fn name_of(flag: u64) -> &'static str {
    match flag as i32 {
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWCGROUP => "cgroup",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWNET => "network",
        _ => "time",
    }
}

fn is_own(fd: &OwnedFd, own: impl AsRef<Path>) -> bool {
    match (fstat(fd), stat(own.as_ref())) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UTS: u64 = libc::CLONE_NEWUTS as u64;

    fn refusal(flag: u64, path: &str) -> FieldError {
        open_one(&Join {
            flag,
            path: path.into(),
            index: 3,
        })
        .expect_err("must be refused")
    }

    #[test]
    fn a_path_of_the_wrong_kind_is_refused_with_both_kinds() {
        let error = refusal(UTS, "/proc/self/ns/ipc");
        assert_eq!(error.field, "linux.namespaces[3].path");
        assert_eq!(
            error.reason,
            "/proc/self/ns/ipc is a namespace of kind ipc, not uts"
        );
        assert_eq!(
            refusal(UTS, "/proc/self/stat").reason,
            "/proc/self/stat is no namespace"
        );
        assert_eq!(
            refusal(UTS, "/no/such").reason,
            "namespace path: lstat /no/such: no such file or directory"
        );
    }

    #[test]
    fn ones_own_user_namespace_is_not_joined() {
        let join = |flag, path: &str| Join {
            flag,
            path: path.into(),
            index: 0,
        };
        let mut namespaces = Namespaces {
            create: 0,
            join: vec![
                join(NEWUSER, "/proc/self/ns/user"),
                join(NEWNET, "/proc/self/ns/net"),
            ],
        };
        let opened = open_joins(&mut namespaces).expect("valid");
        assert_eq!(opened.len(), 1);
        assert!(!namespaces.has(NEWUSER));
        assert!(shares_network(&namespaces, &opened));
    }

    #[test]
    fn the_order_and_spacing_of_extents_do_not_matter() {
        assert_eq!(
            extents("0 1000 1\n1 100000 65536\n"),
            extents("         1     100000      65536\n         0       1000          1\n")
        );
        assert_ne!(extents("0 1000 1\n"), extents("0 1001 1\n"));
    }
}
