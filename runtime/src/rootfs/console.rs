//! The container's pseudo-terminal, in the child.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fstat, fstatfs, makedev};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::by_mount::Spot;
use super::mounts::move_to;
use super::refusals::refuses_mount_api;
use super::resolve::{Want, open_inside, open_target};

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: rustix::fs::FsWord = 0x1cd1;

/// Both ends of a pseudo-terminal.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// Opens a terminal of the devpts inside `root`, whose identity is checked after opening; with
/// `console` it is bound to `/dev/console` as well.
pub(crate) fn open_terminal(
    root: BorrowedFd<'_>,
    size: Option<Winsize>,
    console: bool,
) -> Result<Terminal, Errno> {
    let master = open_inside(root, c"dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY, true)?;
    let is_ptmx =
        fstat(&master)?.st_rdev == makedev(5, 2) && fstatfs(&master)?.f_type == DEVPTS_MAGIC;
    if !is_ptmx {
        return Err(Errno::NODEV);
    }
    unlockpt(&master)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    if let Some(size) = size {
        tcsetwinsize(&master, size)?;
    }
    if console {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let path = c"dev/console";
        let place = open_target(root, path, Want::File, true)?;
        let attached =
            open_tree(&slave, c"", flags).and_then(|tree| move_to(tree.as_fd(), place.as_fd()));
        match attached {
            Err(errno) if refuses_mount_api(errno) => {
                let spot = Spot {
                    base: root,
                    path,
                    place: place.as_fd(),
                    nofollow: true,
                };
                spot.bind(slave.as_fd(), false).map_err(|_| errno)?;
            }
            attached => attached?,
        }
    }
    Ok(Terminal { master, slave })
}

/// Lets a line feed stay one character, which a new terminal would turn into two.
pub(crate) fn keep_line_ends(slave: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut mode = tcgetattr(slave)?;
    mode.output_modes.remove(OutputModes::ONLCR);
    tcsetattr(slave, OptionalActions::Now, &mode)
}

/// Hands the master to the peer of `socket`, as runc does: a name as data, one descriptor.
pub(crate) fn send_terminal(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Result<(), Errno> {
    send_descriptor(socket, b"/dev/ptmx", master)
}

/// Hands a descriptor to the peer of `socket`; some data has to go with it.
pub(crate) fn send_descriptor(
    socket: BorrowedFd<'_>,
    name: &[u8],
    fd: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(
        socket,
        &[IoSlice::new(name)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}
