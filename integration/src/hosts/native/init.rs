//! The first process of a native host: builds its mounts, then only exists.

use std::fs;
use std::io::{BufRead, Write, stdin, stdout};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount,
};
use rustix::process::{Signal, pivot_root, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

use super::plan::{Bind, InitPlan, READY};
use crate::command::{DEADLINE, check};
use crate::error::{Error, Result};
use crate::hosts::cgroup;
use crate::sys;

/// The leaf that holds the host's own processes, so that containers may have controllers.
pub(crate) const OWN_GROUP: &str = "/sys/fs/cgroup/init.scope";

/// State that is large, read only and of no concern to containers: shown, not copied.
const SHOWN_OF_VAR_LIB: [&str; 2] = ["apt", "dpkg"];

/// Builds the host, says so on standard output, and stays until its keeper is gone.
pub(crate) fn run() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Error::system("ask for a death signal"))?;
    let mut line = String::new();
    stdin()
        .lock()
        .read_line(&mut line)
        .map_err(Error::system("read the plan"))?;
    let plan: InitPlan = serde_json::from_str(&line).map_err(|e| Error::invalid("the plan", e))?;
    let said = match build(&plan) {
        Ok(()) => READY.to_owned(),
        Err(error) => error.to_string().replace('\n', "; "),
    };
    writeln!(stdout(), "{said}").map_err(Error::system("answer the keeper"))?;
    // From here on orphans are reaped by the kernel, and this process sleeps.
    sys::ignore_signals(&[libc::SIGCHLD]).map_err(Error::system("ignore SIGCHLD"))?;
    let input = stdin();
    loop {
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], None) {
            Err(rustix::io::Errno::INTR) => {}
            _ => exit(0),
        }
    }
}

fn build(plan: &InitPlan) -> Result<()> {
    cgroup::join(&plan.cgroup)?;
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    sys::unshare(namespaces).map_err(Error::system("unshare a host's namespaces"))?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(Error::errno("make private", Path::new("/")))?;
    let root = mount_root(plan)?;
    mount_kernel_file_systems(&root)?;
    make_devices(&root.join("dev"))?;
    for bind in &plan.native.binds {
        show(bind, &root)?;
    }
    enter_root(&root)?;
    for (link, target) in &plan.native.links {
        symlink(target, link).map_err(Error::file("link", link))?;
    }
    cgroup::join(&own_group()?)?;
    rustix::system::sethostname(b"xebec-host").map_err(Error::system("set the host name"))?;
    check(
        Command::new("ip").args(["link", "set", "lo", "up"]),
        DEADLINE,
    )?;
    let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
    fs::write(forward, "1").map_err(Error::file("write", forward))
}

/// An overlay over the shared root file system; /var/lib apart, straight on the disk, because
/// overlayfs cannot have its upper layer on overlayfs nor fanotify its pre-content events.
fn mount_root(plan: &InitPlan) -> Result<PathBuf> {
    let [upper, work, root, state] =
        ["upper", "work", "root", "var-lib"].map(|name| plan.scratch.join(name));
    for directory in [&upper, &work, &root, &state] {
        fs::create_dir(directory).map_err(Error::file("create", directory))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        plan.native.rootfs.display(),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options)
        .map_err(|error| Error::invalid("a path of the overlay", error))?;
    mount(
        "overlay",
        &root,
        "overlay",
        MountFlags::empty(),
        Some(&*options),
    )
    .map_err(Error::errno("mount an overlay at", &root))?;
    let lower = plan.native.rootfs.join("var/lib");
    copy_state(&lower, &state)?;
    let var_lib = root.join("var/lib");
    mount_bind(&state, &var_lib).map_err(Error::errno("bind", &var_lib))?;
    for name in SHOWN_OF_VAR_LIB {
        let (source, target) = (lower.join(name), Path::new("/var/lib").join(name));
        if source.exists() {
            show(
                &Bind {
                    source,
                    target,
                    writable: false,
                },
                &root,
            )?;
        }
    }
    Ok(root)
}

fn copy_state(from: &Path, to: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.arg("-a");
    for entry in fs::read_dir(from).map_err(Error::file("list", from))? {
        let path = entry.map_err(Error::file("list", from))?.path();
        if !SHOWN_OF_VAR_LIB.iter().any(|name| path.ends_with(name)) {
            copy.arg(path);
        }
    }
    check(copy.arg(to), DEADLINE).map(drop)
}

fn mount_kernel_file_systems(root: &Path) -> Result<()> {
    let usual = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let hidden = MountFlags::NOSUID | MountFlags::NODEV;
    for (target, kind, flags, data) in [
        ("proc", "proc", usual, None),
        ("sys", "sysfs", usual, None),
        ("sys/fs/cgroup", "cgroup2", usual, None),
        ("dev", "tmpfs", MountFlags::NOSUID, Some(c"mode=755")),
        (
            "dev/pts",
            "devpts",
            MountFlags::NOSUID,
            Some(c"newinstance,ptmxmode=0666,mode=620,gid=5"),
        ),
        ("dev/shm", "tmpfs", hidden, None),
        ("dev/mqueue", "mqueue", usual, None),
        ("run", "tmpfs", hidden, Some(c"mode=755")),
        ("tmp", "tmpfs", hidden, None),
    ] {
        let path = root.join(target);
        fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        mount(kind, &path, kind, flags, data).map_err(Error::errno("mount at", &path))?;
    }
    Ok(())
}

/// The machine's character devices, without terminals and without loop control: a loop device
/// is the one thing that would outlive the namespaces.
fn make_devices(dev: &Path) -> Result<()> {
    let machine = Path::new("/dev");
    for entry in fs::read_dir(machine).map_err(Error::file("list", machine))? {
        let entry = entry.map_err(Error::file("list", machine))?;
        let (name, metadata) = (entry.file_name(), entry.metadata());
        let metadata = metadata.map_err(Error::file("examine", &entry.path()))?;
        if metadata.file_type().is_char_device() && is_wanted(&name.to_string_lossy()) {
            make_device(&dev.join(name), &metadata)?;
        }
    }
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let path = dev.join(link);
        symlink(target, &path).map_err(Error::file("link", &path))?;
    }
    Ok(())
}

fn make_device(path: &Path, like: &fs::Metadata) -> Result<()> {
    let mode = Mode::from_raw_mode(like.mode() & 0o777);
    mknodat(CWD, path, FileType::CharacterDevice, mode, like.rdev())
        .and_then(|()| rustix::fs::chmod(path, mode))
        .map_err(Error::errno("make device", path))
}

fn is_wanted(device: &str) -> bool {
    let is_terminal = device.starts_with("tty") && device != "tty";
    !is_terminal
        && !["ptmx", "console", "loop-control"].contains(&device)
        && !device.starts_with("vcs")
}

fn show(bind: &Bind, root: &Path) -> Result<()> {
    let target = root.join(bind.target.strip_prefix("/").unwrap_or(&bind.target));
    let parent = target.parent().unwrap_or(root);
    if bind.source.is_dir() {
        fs::create_dir_all(&target).map_err(Error::file("create", &target))?;
    } else {
        fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        fs::write(&target, "").map_err(Error::file("create", &target))?;
    }
    mount_bind_recursive(&bind.source, &target).map_err(Error::errno("bind", &target))?;
    if !bind.writable {
        mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, c"")
            .map_err(Error::errno("make read only", &target))?;
    }
    Ok(())
}

fn enter_root(root: &Path) -> Result<()> {
    // The old root is stacked on the new one and then detached: pivot_root(2), "pivot_root(".", ".")".
    std::env::set_current_dir(root).map_err(Error::file("enter", root))?;
    pivot_root(".", ".").map_err(Error::errno("pivot the root to", root))?;
    unmount(".", UnmountFlags::DETACH).map_err(Error::system("detach the machine's root"))?;
    std::env::set_current_dir("/").map_err(Error::system("enter the new root"))
}

fn own_group() -> Result<PathBuf> {
    let group = PathBuf::from(OWN_GROUP);
    fs::create_dir(&group).map_err(Error::file("create cgroup", &group))?;
    Ok(group)
}

#[cfg(test)]
mod tests {
    use super::is_wanted;

    #[test]
    fn a_host_has_fuse_and_its_terminal_but_no_loop_control() {
        for device in ["fuse", "null", "tty", "kmsg"] {
            assert!(is_wanted(device), "{device}");
        }
        for device in ["loop-control", "tty0", "ttyS0", "ptmx", "console", "vcs1"] {
            assert!(!is_wanted(device), "{device}");
        }
    }
}
