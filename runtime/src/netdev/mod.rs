//! `linux.netDevices`: devices of the host move into the container's network namespace.
//!
//! A move takes a device's addresses away, so the global permanent ones are read before and given
//! back after. Until [`Moved::keep`] is called, dropping takes every device back to where it was.

mod message;
mod socket;

use std::os::fd::OwnedFd;

use oci_spec::runtime::Linux;
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use self::message::{Address, Request};
use self::socket::Netlink;
use crate::error::{Error, Result};

/// A device to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Move {
    from: String,
    to: String,
}

/// A device in its new place.
#[derive(Debug)]
struct Guest {
    name: String,
    /// In the container.
    index: i32,
    was_up: bool,
    addresses: Vec<Address>,
}

/// Devices that have been moved, and the way back.
#[derive(Debug)]
pub(crate) struct Moved {
    host: Netlink,
    host_namespace: OwnedFd,
    container: Netlink,
    container_namespace: OwnedFd,
    guests: Vec<Guest>,
}

/// Moves the devices of a configuration into the network namespace of `pid`.
pub(crate) fn move_devices(linux: &Linux, pid: i32) -> Result<Option<Moved>> {
    let mut moves: Vec<Move> = linux
        .net_devices()
        .iter()
        .flatten()
        .map(|(from, device)| Move {
            from: from.clone(),
            to: device
                .name()
                .clone()
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| from.clone()),
        })
        .collect();
    if moves.is_empty() {
        return Ok(None);
    }
    moves.sort_by(|a, b| a.from.cmp(&b.from));
    let mut moved = Moved::between(pid)?;
    for device in &moves {
        moved.take(device)?;
    }
    Ok(Some(moved))
}

impl Moved {
    fn between(pid: i32) -> Result<Self> {
        let host_namespace = namespace("/proc/self/ns/net")?;
        let container_namespace = namespace(&format!("/proc/{pid}/ns/net"))?;
        let same = |a: &OwnedFd, b: &OwnedFd| Ok((fstat(a)?.st_ino, fstat(b)?.st_ino));
        let (here, there) = same(&host_namespace, &container_namespace)
            .map_err(|e: Errno| Error::os("examine network namespace")(e))?;
        if here == there {
            return Err(Error::InvalidArgument(
                "linux.netDevices: unable to move network devices into the network namespace that \
                 they are in"
                    .into(),
            ));
        }
        let host = Netlink::open()?;
        // A socket belongs to the namespace that it was made in.
        enter(&container_namespace)?;
        let container = Netlink::open();
        enter(&host_namespace)?;
        Ok(Self {
            host,
            host_namespace,
            container: container?,
            container_namespace,
            guests: Vec::new(),
        })
    }

    fn take(&mut self, device: &Move) -> Result<()> {
        let Move { from, to } = device;
        let failed = |what: &str| {
            let op = format!("linux.netDevices[{from}]: {what}");
            move |errno| Error::os(op)(errno)
        };
        let link = self
            .host
            .link_by_name(from)
            .map_err(failed("link not found on runtime namespace"))?;
        let addresses = self
            .host
            .addresses(link.index)
            .map_err(failed("read its addresses"))?;
        // The number may be taken over there; then the next free one.
        let index = self
            .container
            .free_index(link.index)
            .map_err(failed("look at the container's devices"))?;
        self.host
            .change(&Request::set_down(link.index))
            .map_err(failed("set link down"))?;
        let moving = Request::move_link(link.index, to, &self.container_namespace, index);
        let moved = self.host.change(&moving);
        // A name that is taken there is found out by the kernel when the device has moved already.
        if moved.is_ok() || self.has_arrived(from, index) {
            self.guests.push(Guest {
                name: from.clone(),
                index,
                was_up: link.is_up,
                addresses,
            });
        } else if link.is_up {
            // Nothing has happened but that it is down.
            let _ = self.host.change(&Request::set_up(link.index));
        }
        moved.map_err(failed(&format!("move it to the container as {to}")))?;
        settle(&self.container, index, true, self.guests.last()).map_err(failed("set it up"))
    }

    fn has_arrived(&self, name: &str, index: i32) -> bool {
        let there = self.container.link_by_name(name);
        there.is_ok_and(|link| link.index == index)
    }

    /// The devices stay where they are.
    pub(crate) fn keep(mut self) {
        self.guests.clear();
    }
}

/// Gives a device that has moved its addresses, and sets it up.
fn settle(
    netlink: &Netlink,
    index: i32,
    up: bool,
    guest: Option<&Guest>,
) -> std::result::Result<(), rustix::io::Errno> {
    for address in guest.iter().flat_map(|guest| &guest.addresses) {
        netlink.change(&Request::add_address(index, address))?;
    }
    if up {
        netlink.change(&Request::set_up(index))?;
    }
    Ok(())
}

impl Drop for Moved {
    /// A container that failed gives back what it got: as far as that is possible, one by one.
    fn drop(&mut self) {
        for guest in &self.guests {
            let _ = self.container.change(&Request::set_down(guest.index));
            let Ok(index) = self.host.free_index(guest.index) else {
                continue;
            };
            let back = Request::move_link(guest.index, &guest.name, &self.host_namespace, index);
            if self.container.change(&back).is_ok() {
                let _ = settle(&self.host, index, guest.was_up, Some(guest));
            }
        }
    }
}

fn namespace(path: &str) -> Result<OwnedFd> {
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::file("open", path))
}

fn enter(namespace: &OwnedFd) -> Result<()> {
    use std::os::fd::AsFd as _;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(Error::os("join network namespace"))
}
