//! Where a container's cgroup is: the cgroup2 mount and the rules for `linux.cgroupsPath`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use rustix::fs::statfs;

use super::error::{CgroupError, Result};
use crate::publish::read_generated;

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// An absolute path of a cgroup below the cgroup2 mount, free of `.` and `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    mount: PathBuf,
    inner: PathBuf,
}

impl CgroupPath {
    /// Applies runc's rules to `linux.cgroupsPath`: an absolute path counts from the cgroup2
    /// mount, a relative one from the parent of the caller's own cgroup (which has no processes
    /// of its own, so controllers can be enabled), and without a path the container ID is it.
    pub fn resolve(cgroups_path: Option<&str>, id: &str) -> Result<Self> {
        let wanted = cgroups_path.filter(|path| !path.is_empty()).unwrap_or(id);
        let mount = find_mount()?;
        let inner = if wanted.starts_with('/') {
            clean(wanted)?
        } else {
            let own = cgroup_of("/proc/self/cgroup")?;
            let parent = Path::new(&own).parent().unwrap_or(Path::new("/"));
            clean(&parent.join(clean(wanted)?).to_string_lossy())?
        };
        if inner.as_os_str().is_empty() {
            return Err(refuse(wanted, "the root cgroup cannot be a container's"));
        }
        Ok(Self { mount, inner })
    }

    /// The cgroup at an absolute path below the cgroup2 mount, as [`Self::full`] gave it when
    /// the container was created.
    pub fn from_full(full: &Path) -> Result<Self> {
        let mount = find_mount()?;
        let inner = full
            .strip_prefix(&mount)
            .map_err(|_| refuse(&full.to_string_lossy(), "not below the cgroup2 mount"))?;
        let inner = clean(&inner.to_string_lossy())?;
        if inner.as_os_str().is_empty() {
            return Err(refuse(
                &full.to_string_lossy(),
                "the root cgroup cannot be a container's",
            ));
        }
        Ok(Self { mount, inner })
    }

    /// The cgroup a process is in.
    pub fn of_process(pid: i32) -> Result<Self> {
        let own = cgroup_of(&format!("/proc/{pid}/cgroup"))?;
        if own.starts_with("/..") {
            return Err(refuse(
                &own,
                "it is outside of the runtime's cgroup namespace",
            ));
        }
        let inner = clean(&own)?;
        if inner.as_os_str().is_empty() {
            return Err(refuse(&own, "the root cgroup cannot be a container's"));
        }
        Ok(Self {
            mount: find_mount()?,
            inner,
        })
    }

    /// A cgroup below this one, by a relative path (a leading slash counts from here, too).
    pub fn below(&self, path: &str) -> Result<Self> {
        if Path::new(path)
            .components()
            .any(|part| part == Component::ParentDir)
        {
            return Err(refuse(path, "bad sub cgroup path"));
        }
        Ok(Self {
            mount: self.mount.clone(),
            inner: self.inner.join(clean(path)?),
        })
    }

    /// The cgroup2 mount point.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The path below the mount, without a leading slash.
    pub fn inner(&self) -> &Path {
        &self.inner
    }

    /// The path in the file system.
    pub fn full(&self) -> PathBuf {
        self.mount.join(&self.inner)
    }
}

fn refuse(path: &str, reason: &'static str) -> CgroupError {
    CgroupError::Path {
        path: path.to_owned(),
        reason,
    }
}

/// Removes `.` and empty components and resolves `..` within the path, never above it.
fn clean(path: &str) -> Result<PathBuf> {
    if path.bytes().any(|b| b == 0 || b == b'\n') {
        return Err(refuse(path, "it contains a NUL or a newline"));
    }
    let mut out = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(out)
}

/// Finds the cgroup2 mount: unified, hybrid, or wherever the mount table has one.
pub(super) fn find_mount() -> Result<PathBuf> {
    for candidate in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        if statfs(candidate).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC) {
            return Ok(PathBuf::from(candidate));
        }
    }
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|source| CgroupError::Io {
        action: "read".into(),
        path: "/proc/self/mountinfo".into(),
        source,
    })?;
    mount_in_table(&table).ok_or(CgroupError::NoHierarchy)
}

/// The first cgroup2 mount point of a mountinfo table (proc_pid_mountinfo(5)).
fn mount_in_table(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        (kind == "cgroup2").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The version 2 path in a `/proc/PID/cgroup`.
fn cgroup_of(file: &str) -> Result<String> {
    let text = fs::File::open(file).and_then(read_generated);
    let text = text.map_err(|source| CgroupError::Io {
        action: "read".into(),
        path: file.into(),
        source,
    })?;
    parse_cgroup(&String::from_utf8_lossy(&text))
        .map(str::to_owned)
        .ok_or_else(|| CgroupError::Parse {
            path: file.into(),
            reason: "no line starts with \"0::\"".into(),
        })
}

fn parse_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_the_hierarchy() {
        let cases = [
            ("/a/b", "a/b"),
            ("a//b/", "a/b"),
            ("/a/./b", "a/b"),
            ("/a/../../b", "b"),
            ("../../etc", "etc"),
            ("/", ""),
        ];
        for (path, cleaned) in cases {
            assert_eq!(clean(path).unwrap(), Path::new(cleaned), "{path}");
        }
        assert!(matches!(clean("a\nb"), Err(CgroupError::Path { .. })));
    }

    #[test]
    fn a_sub_cgroup_stays_below_its_parent() {
        let path = CgroupPath {
            mount: "/cg".into(),
            inner: "pod/web".into(),
        };
        for (sub, full) in [
            ("a/b", "/cg/pod/web/a/b"),
            ("/a", "/cg/pod/web/a"),
            (".", "/cg/pod/web"),
        ] {
            assert_eq!(path.below(sub).unwrap().full(), Path::new(full), "{sub}");
        }
        assert!(matches!(
            path.below("a/../../x"),
            Err(CgroupError::Path { .. })
        ));
    }

    #[test]
    fn the_v2_line_is_found_among_v1_lines() {
        assert_eq!(
            parse_cgroup("12:memory:/x\n0::/user.slice/s.scope\n"),
            Some("/user.slice/s.scope")
        );
        assert_eq!(parse_cgroup("12:memory:/x\n"), None);
    }

    #[test]
    fn the_mount_table_names_the_cgroup2_mount() {
        let table = "30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro\n\
                     31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     32 30 0:28 / /mnt/cg rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in_table(table), Some(PathBuf::from("/mnt/cg")));
        assert_eq!(mount_in_table(""), None);
    }
}
