//! What is there on a host (mounts, processes, cgroups, sockets, files in /run and /tmp), so that
//! a test can say that nothing stayed behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::hosts::NativeHost;

/// How long the ends of processes and the unmounting after them may take.
const SETTLE: Duration = Duration::from_mins(1);

/// Everything that could be left over, one line each, such as `mount /run/x overlay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Takes stock of a host.
    pub fn of(host: &NativeHost) -> Result<Self> {
        let mut lines = BTreeSet::new();
        let mountinfo = host.read_file("/proc/1/mountinfo")?;
        lines.extend(mountinfo.lines().filter_map(mount_line));
        let sockets = host.read_file("/proc/1/net/unix")?;
        lines.extend(sockets.lines().skip(1).filter_map(socket_line));
        processes(&host.path("/proc"), &mut lines)?;
        let cgroups = host.path("/sys/fs/cgroup");
        walk(&cgroups, &cgroups, &mut |path, is_directory| {
            if is_directory {
                lines.insert(format!("cgroup {path}"));
            }
        })?;
        for directory in ["/run", "/tmp"] {
            let root = host.path(directory);
            walk(&root, &root, &mut |path, is_directory| {
                if !is_directory {
                    lines.insert(format!("file {directory}{path}"));
                }
            })?;
        }
        Ok(Self(lines))
    }

    /// What is there now and was not there then.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// Waits until the host has nothing that it did not have when this was taken; what it still
    /// has when a minute has passed.
    pub fn wait_until_restored(&self, host: &NativeHost) -> Result<Vec<String>> {
        self.wait_until_restored_but(host, |_| false)
    }

    /// The same without the lines that `is_excepted`.
    pub fn wait_until_restored_but(
        &self,
        host: &NativeHost,
        is_excepted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let end = Instant::now() + SETTLE;
        loop {
            let mut added = Self::of(host)?.added_since(self);
            added.retain(|line| !is_excepted(line));
            if added.is_empty() || Instant::now() > end {
                return Ok(added);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// What the open descriptors of all processes of one name are of, and how many are of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptors(BTreeMap<String, usize>);

impl Descriptors {
    /// Counts those of the processes with that name (`comm`).
    pub fn of(host: &NativeHost, name: &str) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for pid in host.processes(name)? {
            let directory = host.path(format!("/proc/{pid}/fd"));
            // A process that has ended meanwhile holds none.
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if let Ok(target) = fs::read_link(entry.path()) {
                    *counts
                        .entry(descriptor_kind(&target.to_string_lossy()))
                        .or_default() += 1;
                }
            }
        }
        Ok(Self(counts))
    }

    /// What there are more of now than there were then.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        let then = |kind: &str| before.0.get(kind).copied().unwrap_or(0);
        self.0
            .iter()
            .filter(|(kind, count)| **count > then(kind))
            .map(|(kind, count)| format!("{kind}: {count} instead of {}", then(kind)))
            .collect()
    }
}

/// A link of /proc/PID/fd without the number of the inode: `socket:[1234]` is a socket.
fn descriptor_kind(target: &str) -> String {
    let numbered = target
        .strip_suffix(']')
        .and_then(|rest| rest.rsplit_once(":["))
        .filter(|(_, inode)| inode.bytes().all(|byte| byte.is_ascii_digit()));
    numbered.map_or(target, |(kind, _)| kind).to_owned()
}

/// Mount point and type of a line of mountinfo.
fn mount_line(line: &str) -> Option<String> {
    let (fields, rest) = line.split_once(" - ")?;
    let target = fields.split(' ').nth(4)?;
    let kind = rest.split(' ').next()?;
    Some(format!("mount {target} {kind}"))
}

/// The name of a bound socket.
fn socket_line(line: &str) -> Option<String> {
    line.split_whitespace()
        .nth(7)
        .map(|name| format!("socket {name}"))
}

/// Command lines, counted, as a service that was restarted is the same with another pid; a process
/// that ends meanwhile is no leftover.
fn processes(proc: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    let entries = fs::read_dir(proc).map_err(Error::file("list", proc))?;
    let mut counts = BTreeMap::<_, usize>::new();
    for entry in entries.flatten() {
        let is_process = entry
            .file_name()
            .to_str()
            .is_some_and(|n| n.parse::<u32>().is_ok());
        if let Ok(arguments) = fs::read(entry.path().join("cmdline"))
            && is_process
        {
            *counts.entry(arguments).or_default() += 1;
        }
    }
    for (arguments, count) in counts {
        let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let numbered = (1..=count).map(|number| format!("process {} ({number})", text.trim_end()));
        lines.extend(numbered);
    }
    Ok(())
}

/// Visits everything below `directory` on its file system tree, with the path as seen from `root`.
fn walk(root: &Path, directory: &Path, visit: &mut impl FnMut(&str, bool)) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if directory != root && is_gone(&error) => return Ok(()),
        Err(error) => return Err(Error::file("list", directory)(error)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let Ok(inside) = path.strip_prefix(root) {
            visit(&format!("/{}", inside.display()), is_directory);
        }
        // Trees of containers are mounts of their own, and are told as mounts.
        if is_directory && path.file_name().is_none_or(|name| name != "rootfs") {
            walk(root, &path, visit)?;
        }
    }
    Ok(())
}

/// A directory that vanished (or a cgroup that was removed) while the tree was walked.
fn is_gone(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOENT, Errno::NODEV, Errno::NOTDIR]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_by_its_target_and_type() {
        let line =
            "36 35 98:0 /mnt1 /run/a rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount_line(line).as_deref(), Some("mount /run/a ext3"));
        assert_eq!(mount_line("nonsense"), None);
    }

    #[test]
    fn descriptors_are_told_by_kind_and_number() {
        assert_eq!(descriptor_kind("socket:[1234]"), "socket");
        assert_eq!(
            descriptor_kind("anon_inode:[eventpoll]"),
            "anon_inode:[eventpoll]"
        );
        let of = |count| Descriptors(BTreeMap::from([("pipe".to_owned(), count)]));
        assert_eq!(of(3).added_since(&of(2)), ["pipe: 3 instead of 2"]);
        assert_eq!(of(2).added_since(&of(3)), [""; 0]);
    }

    #[test]
    fn only_bound_sockets_count() {
        let bound = "0000: 00000002 00000000 00010000 0001 01 4242 /run/x.sock";
        assert_eq!(socket_line(bound).as_deref(), Some("socket /run/x.sock"));
        assert_eq!(
            socket_line("0000: 00000003 00000000 00000000 0001 03 4243"),
            None
        );
    }

    #[test]
    fn only_what_came_since_is_told() {
        let of = |lines: &[&str]| Inventory(lines.iter().map(|&l| l.to_owned()).collect());
        let (before, after) = (
            of(&["cgroup /a", "mount /m fuse"]),
            of(&["cgroup /a", "cgroup /b"]),
        );
        assert_eq!(after.added_since(&before), ["cgroup /b"]);
    }
}
