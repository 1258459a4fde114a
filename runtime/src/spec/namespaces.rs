//! The namespaces of a container: made new, or joined by path.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

/// A namespace that exists already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    /// Its `CLONE_NEW*` bit.
    pub(crate) flag: u64,
    /// File that refers to it, such as `/proc/7/ns/net`.
    pub(crate) path: PathBuf,
    /// Its place in `linux.namespaces`, for errors.
    pub(crate) index: usize,
}

/// `linux.namespaces`, sorted out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` bits of those to be made.
    pub(crate) create: u64,
    /// Those to be joined.
    pub(crate) join: Vec<Join>,
}

impl Namespaces {
    /// Sorts the list; the error is the index and text of what cannot be.
    pub(crate) fn from_spec(list: &[LinuxNamespace]) -> Result<Self, (usize, String)> {
        let mut sorted = Self::default();
        for (index, namespace) in list.iter().enumerate() {
            let flag = flag_of(namespace.typ());
            if sorted.has(flag) {
                return Err((index, format!("duplicated namespace {}", namespace.typ())));
            }
            match namespace.path() {
                Some(path) if !path.as_os_str().is_empty() => {
                    if !path.is_absolute() {
                        let path = path.display();
                        return Err((index, format!("path {path} is not absolute")));
                    }
                    sorted.join.push(Join {
                        flag,
                        path: path.clone(),
                        index,
                    });
                }
                _ => sorted.create |= flag,
            }
        }
        Ok(sorted)
    }

    /// Whether the container has a namespace of this kind apart from the caller's, new or joined.
    pub(crate) fn has(&self, flag: u64) -> bool {
        self.all() & flag != 0
    }

    /// Bits of all of them: what a process has to enter to be inside.
    pub(crate) fn all(&self) -> u64 {
        self.join
            .iter()
            .fold(self.create, |bits, join| bits | join.flag)
    }
}

fn flag_of(kind: LinuxNamespaceType) -> u64 {
    // The spec crate's discriminants are the kernel's CLONE_NEW* bits.
    kind as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(kind: LinuxNamespaceType, path: Option<&str>) -> LinuxNamespace {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path.map(PathBuf::from));
        namespace
    }

    #[test]
    fn the_spec_crates_numbers_are_the_kernels() {
        for (kind, flag) in [
            (LinuxNamespaceType::Mount, libc::CLONE_NEWNS),
            (LinuxNamespaceType::Cgroup, libc::CLONE_NEWCGROUP),
            (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS),
            (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC),
            (LinuxNamespaceType::User, libc::CLONE_NEWUSER),
            (LinuxNamespaceType::Pid, libc::CLONE_NEWPID),
            (LinuxNamespaceType::Network, libc::CLONE_NEWNET),
            (LinuxNamespaceType::Time, 0x80),
        ] {
            assert_eq!(flag_of(kind), flag as u64);
        }
    }

    #[test]
    fn new_and_joined_namespaces_are_kept_apart() {
        let sorted = Namespaces::from_spec(&[
            namespace(LinuxNamespaceType::Pid, None),
            namespace(LinuxNamespaceType::Network, Some("/proc/1/ns/net")),
            namespace(LinuxNamespaceType::Uts, Some("")),
        ])
        .expect("valid");
        assert_eq!(
            sorted.create,
            (libc::CLONE_NEWPID | libc::CLONE_NEWUTS) as u64
        );
        assert_eq!(sorted.join[0].flag, libc::CLONE_NEWNET as u64);
        assert_eq!(sorted.join[0].index, 1);
        assert!(sorted.has(libc::CLONE_NEWNET as u64) && !sorted.has(libc::CLONE_NEWNS as u64));
    }

    #[test]
    fn duplicates_and_relative_paths_are_refused() {
        let twice = [
            namespace(LinuxNamespaceType::Pid, None),
            namespace(LinuxNamespaceType::Pid, Some("/x")),
        ];
        assert_eq!(Namespaces::from_spec(&twice).map_err(|e| e.0), Err(1));
        let relative = [namespace(LinuxNamespaceType::Ipc, Some("ns/ipc"))];
        assert_eq!(Namespaces::from_spec(&relative).map_err(|e| e.0), Err(0));
    }
}
