//! A route socket (`rtnetlink(7)`): requests go to the kernel, which answers at once.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::message::{self, Address, Link, Reply, Request};
use crate::error::{Error, Result};

/// A connection to the kernel's network namespace in which it was made.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> Result<Self> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        // Protocol 0 is NETLINK_ROUTE.
        socket_with(AddressFamily::NETLINK, kind, flags, None)
            .map(Self)
            .map_err(Error::os("open a route socket"))
    }

    /// Carries out a change.
    pub(super) fn change(&self, request: &Request) -> std::result::Result<(), Errno> {
        self.ask(request, |_, _| {})
    }

    pub(super) fn link_by_name(&self, name: &str) -> std::result::Result<Link, Errno> {
        let mut found = None;
        self.ask(&Request::find_link(name), |kind, body| {
            if kind == message::NEW_LINK {
                found = Link::parse(body);
            }
        })?;
        found.ok_or(Errno::NODEV)
    }

    /// This number, or if another device has it, the next that none has.
    pub(super) fn free_index(&self, wanted: i32) -> std::result::Result<i32, Errno> {
        let mut taken = Vec::new();
        self.ask(&Request::all_links(), |kind, body| {
            if kind == message::NEW_LINK {
                taken.extend(Link::parse(body).map(|link| link.index));
            }
        })?;
        let highest = taken.iter().copied().max().unwrap_or(0);
        Ok(if taken.contains(&wanted) {
            highest.max(wanted) + 1
        } else {
            wanted
        })
    }

    /// The global permanent addresses of a device.
    pub(super) fn addresses(&self, index: i32) -> std::result::Result<Vec<Address>, Errno> {
        let mut addresses = Vec::new();
        self.ask(&Request::all_addresses(), |kind, body| {
            if kind == message::NEW_ADDRESS {
                addresses.extend(Address::parse(body, index));
            }
        })?;
        Ok(addresses)
    }

    /// Sends a request and reads the answer to its end.
    fn ask(
        &self,
        request: &Request,
        mut each: impl FnMut(u16, &[u8]),
    ) -> std::result::Result<(), Errno> {
        send(&self.0, request.bytes(), SendFlags::empty())?;
        // The kernel fills no more than 32 KiB of a reader's buffer.
        let mut buffer = vec![0; 32 << 10];
        loop {
            let (_, length) =
                rustix::io::retry_on_intr(|| recv(&self.0, &mut *buffer, RecvFlags::empty()))?;
            for reply in message::replies(&buffer[..length]) {
                match reply {
                    Reply::Done => return Ok(()),
                    Reply::Failed(errno) => return Err(Errno::from_raw_os_error(errno)),
                    Reply::Record(kind, body) => each(kind, body),
                }
            }
        }
    }
}
