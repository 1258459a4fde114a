//! Messages of rtnetlink, written and read (`rtnetlink(7)`, `netlink(7)`).

use std::os::fd::{AsRawFd as _, OwnedFd};

/// Kinds of messages (`linux/rtnetlink.h`).
pub(super) const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
pub(super) const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Flags of requests: request, acknowledge, dump; create, and only if it is new.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;

/// Attributes of links (`linux/if_link.h`).
const LINK_NAME: u16 = 3;
const LINK_NAMESPACE_FD: u16 = 28;
const LINK_NEW_INDEX: u16 = 49;
/// Attributes of addresses (`linux/if_addr.h`).
const ADDRESS_LABEL: u16 = 3;
const ADDRESS_CACHE: u16 = 6;
const ADDRESS_FLAGS: u16 = 8;

const FLAG_UP: u32 = 1;
const PERMANENT: u32 = 0x80;
const SCOPE_GLOBAL: u8 = 0;

/// Sizes of the fixed parts.
const HEADER: usize = 16;
const LINK_HEAD: usize = 16;
const ADDRESS_HEAD: usize = 8;

/// A message for the kernel.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        // Sequence and port: one question at a time, answered on its own socket.
        bytes.extend([0; 8]);
        bytes.extend(head);
        Self(bytes).sized()
    }

    fn sized(mut self) -> Self {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(attribute.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.sized()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn find_link(name: &str) -> Self {
        Self::new(GET_LINK, ACK, &link_head(0, 0, 0)).with(LINK_NAME, &zero_terminated(name))
    }

    pub(super) fn all_links() -> Self {
        Self::new(GET_LINK, DUMP, &link_head(0, 0, 0))
    }

    pub(super) fn all_addresses() -> Self {
        Self::new(GET_ADDRESS, DUMP, &[0; ADDRESS_HEAD])
    }

    pub(super) fn set_up(index: i32) -> Self {
        Self::new(NEW_LINK, ACK, &link_head(index, FLAG_UP, FLAG_UP))
    }

    pub(super) fn set_down(index: i32) -> Self {
        Self::new(NEW_LINK, ACK, &link_head(index, 0, FLAG_UP))
    }

    /// Name and namespace change in one, so that no other name is ever in the way.
    pub(super) fn move_link(index: i32, name: &str, namespace: &OwnedFd, new_index: i32) -> Self {
        let request = Self::new(NEW_LINK, ACK, &link_head(index, 0, 0))
            .with(LINK_NAME, &zero_terminated(name))
            .with(LINK_NAMESPACE_FD, &namespace.as_raw_fd().to_ne_bytes());
        if new_index == index {
            return request;
        }
        request.with(LINK_NEW_INDEX, &new_index.to_ne_bytes())
    }

    pub(super) fn add_address(index: i32, address: &Address) -> Self {
        let mut head = address.head;
        head[4..].copy_from_slice(&index.to_ne_bytes());
        let mut request = Self::new(NEW_ADDRESS, ACK | CREATE | EXCLUSIVE, &head);
        for (attribute, value) in &address.attributes {
            request = request.with(*attribute, value);
        }
        request
    }
}

/// `struct ifinfomsg`
fn link_head(index: i32, flags: u32, change: u32) -> [u8; LINK_HEAD] {
    let mut head = [0; LINK_HEAD];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    head[12..].copy_from_slice(&change.to_ne_bytes());
    head
}

fn zero_terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// One part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    /// Kind and body.
    Record(u16, &'a [u8]),
    Done,
    /// With this errno.
    Failed(i32),
}

/// The parts of a packet; what is cut off is left out.
pub(super) fn replies(mut packet: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let length = word(packet, 0)? as usize;
        let kind = u16::from_ne_bytes(packet.get(4..6)?.try_into().ok()?);
        let body = packet.get(HEADER..length)?;
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(match kind {
            ERROR => match word(body, 0)? as i32 {
                0 => Reply::Done,
                errno => Reply::Failed(-errno),
            },
            DONE => Reply::Done,
            kind => Reply::Record(kind, body),
        })
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(word))
}

/// A network device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: i32,
    pub(super) is_up: bool,
}

impl Link {
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        Some(Self {
            index: word(body, 4)? as i32,
            is_up: word(body, 8)? & FLAG_UP != 0,
        })
    }
}

/// An address as the kernel described it, to be added elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    head: [u8; ADDRESS_HEAD],
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// The address, if it is a permanent one of global scope on this device.
    pub(super) fn parse(body: &[u8], index: i32) -> Option<Self> {
        let head: [u8; ADDRESS_HEAD] = body.get(..ADDRESS_HEAD)?.try_into().ok()?;
        let [_family, _prefix, flags, scope, ..] = head;
        let attributes: Vec<_> = attributes(&body[ADDRESS_HEAD..]).collect();
        let long_flags = attributes
            .iter()
            .find(|(attribute, _)| *attribute == ADDRESS_FLAGS)
            .and_then(|(_, value)| word(value, 0));
        let permanent = long_flags.unwrap_or(u32::from(flags)) & PERMANENT != 0;
        if word(&head, 4)? as i32 != index || scope != SCOPE_GLOBAL || !permanent {
            return None;
        }
        let mut head = head;
        head[2] = 0;
        Some(Self {
            head,
            // Its label has the name of the device, which may change; flags and ages are results.
            attributes: attributes
                .into_iter()
                .filter(|(attribute, _)| {
                    ![ADDRESS_LABEL, ADDRESS_CACHE, ADDRESS_FLAGS].contains(attribute)
                })
                .map(|(attribute, value)| (attribute, value.to_vec()))
                .collect(),
        })
    }
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let half = |at: usize| {
            let half = bytes.get(at..at + 2)?.try_into().ok()?;
            Some(u16::from_ne_bytes(half))
        };
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address message of the kernel: 10.0.0.7/24 on device 3.
    fn address(scope: u8, flags: u32) -> Vec<u8> {
        let mut head = vec![2, 24, flags as u8, scope];
        head.extend(3_i32.to_ne_bytes());
        Request::new(NEW_ADDRESS, 0, &head)
            .with(1, &[10, 0, 0, 7])
            .with(ADDRESS_LABEL, b"eth0\0")
            .with(ADDRESS_FLAGS, &flags.to_ne_bytes())
            .0
            .split_off(HEADER)
    }

    #[test]
    fn only_global_permanent_addresses_of_the_device_are_taken_along() {
        assert!(Address::parse(&address(0, PERMANENT), 4).is_none());
        assert!(Address::parse(&address(253, PERMANENT), 3).is_none());
        assert!(Address::parse(&address(0, 0), 3).is_none());
        let found = Address::parse(&address(0, PERMANENT), 3).expect("global and permanent");
        assert_eq!(found.attributes, [(1, vec![10, 0, 0, 7])]);
        let request = Request::add_address(9, &found);
        assert_eq!(word(request.bytes(), HEADER + 4), Some(9));
    }

    #[test]
    fn attributes_are_padded_and_the_length_is_that_of_the_whole() {
        let request = Request::find_link("abc");
        assert_eq!(word(request.bytes(), 0), Some(request.bytes().len() as u32));
        let longer = Request::find_link("abcd");
        assert_eq!(longer.bytes().len(), request.bytes().len() + 4);
        let mut parts = attributes(&longer.bytes()[HEADER + LINK_HEAD..]);
        assert_eq!(parts.next(), Some((LINK_NAME, &b"abcd\0"[..])));
        assert_eq!(parts.next(), None);
    }

    #[test]
    fn an_answer_ends_with_done_or_an_errno() {
        let mut packet = Request::new(NEW_LINK, 0, &link_head(5, FLAG_UP, 0)).0;
        packet.extend(Request::new(ERROR, 0, &(-19_i32).to_ne_bytes()).0);
        packet.extend(Request::new(DONE, 0, &[0; 4]).0);
        let parts: Vec<_> = replies(&packet).collect();
        assert_eq!(parts.len(), 3);
        let Reply::Record(NEW_LINK, body) = parts[0] else {
            panic!("{parts:?}");
        };
        let link = Link::parse(body).expect("whole");
        assert_eq!((link.index, link.is_up), (5, true));
        assert_eq!(parts[1..], [Reply::Failed(19), Reply::Done]);
        assert_eq!(replies(&packet[..20]).count(), 0);
    }
}
