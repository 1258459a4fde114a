//! A connection to systemd: its own socket where that may be used, a message bus otherwise.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use super::wire::{self, Call, Kind, Message, PROLOGUE};
use crate::cgroup::error::{CgroupError, Result};

/// How long systemd may take for anything, as in runc.
const PATIENCE: Duration = Duration::from_secs(30);

const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// Where systemd itself listens, for root alone.
const SYSTEM_PRIVATE: &str = "/run/systemd/private";

/// An authenticated connection; one call at a time.
#[derive(Debug)]
pub(super) struct Bus {
    socket: UnixStream,
    /// Received, but not yet looked at.
    inbox: Vec<u8>,
    /// To be sent with the next call.
    outbox: Vec<u8>,
    serial: u32,
    /// The peer is systemd: there is nobody to say hello to, and signals come unasked.
    pub(super) direct: bool,
}

/// A place to connect to.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    name: OsString,
    is_abstract: bool,
    direct: bool,
}

impl Bus {
    /// Connects to the manager of the system, or of the calling user.
    pub(super) fn connect(user: bool) -> Result<Self> {
        let addresses = if user {
            user_addresses(
                env::var_os("DBUS_SESSION_BUS_ADDRESS"),
                env::var_os("XDG_RUNTIME_DIR").as_ref(),
            )
        } else {
            system_addresses(env::var_os("DBUS_SYSTEM_BUS_ADDRESS"))
        };
        let mut last = None;
        for address in &addresses {
            match Self::open(address) {
                Ok(bus) => return Ok(bus),
                Err(error) => last = Some((address, error)),
            }
        }
        Err(match last {
            Some((address, error)) => failed("connect to", &address.name.to_string_lossy(), &error),
            None => CgroupError::Systemd {
                action: "find the user's systemd".to_owned(),
                reason: "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set".to_owned(),
            },
        })
    }

    fn open(address: &Address) -> io::Result<Self> {
        let place = if address.is_abstract {
            SocketAddr::from_abstract_name(address.name.as_bytes())
        } else {
            SocketAddr::from_pathname(Path::new(&address.name))
        };
        let socket = UnixStream::connect_addr(&place?)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self {
            socket,
            inbox: Vec::new(),
            outbox: Vec::new(),
            serial: 0,
            direct: address.direct,
        };
        bus.authenticate(Instant::now() + PATIENCE)?;
        Ok(bus)
    }

    /// Says who we are by the credentials of the socket alone, which hold in any user namespace.
    fn authenticate(&mut self, deadline: Instant) -> io::Result<()> {
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        loop {
            let line = self.line(deadline)?;
            if line.starts_with(b"OK ") {
                return Ok(());
            }
            if !line.starts_with(b"DATA") {
                let said = String::from_utf8_lossy(&line).trim().to_owned();
                return Err(io::Error::other(format!("authentication refused: {said}")));
            }
        }
    }

    /// Lets calls go out together with the next one; nobody waits for their answers.
    pub(super) fn queue(&mut self, calls: &[Call<'_>]) {
        for call in calls {
            self.serial += 1;
            self.outbox.extend(call.encode(self.serial));
        }
    }

    /// Sends a call and waits for its answer.
    pub(super) fn call(&mut self, call: &Call<'_>) -> io::Result<Message> {
        self.queue(&[*call]);
        let bytes = std::mem::take(&mut self.outbox);
        self.send(&bytes)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(deadline)?;
            if message.answers == Some(self.serial) {
                return Ok(message);
            }
        }
    }

    /// Waits for the end of a job; the answer is how it ended.
    pub(super) fn wait_for_job(&mut self, job: &str) -> io::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receive(deadline)?.removed_job() {
                Some((ended, result)) if ended == job => return Ok(result.to_owned()),
                _ => {}
            }
        }
    }

    fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent =
                rustix::io::retry_on_intr(|| send(&self.socket, bytes, SendFlags::NOSIGNAL))?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<Message> {
        let malformed = || io::Error::other("not a message of D-Bus");
        let mut prologue = [0; PROLOGUE];
        self.fill(PROLOGUE, deadline)?;
        prologue.copy_from_slice(&self.inbox[..PROLOGUE]);
        let length = wire::length(&prologue).ok_or_else(malformed)?;
        self.fill(length, deadline)?;
        let rest = self.inbox.split_off(length);
        let bytes = std::mem::replace(&mut self.inbox, rest);
        Message::decode(&bytes).ok_or_else(malformed)
    }

    fn line(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut length = 0;
        loop {
            if let Some(end) = self.inbox[length..].iter().position(|b| *b == b'\n') {
                let rest = self.inbox.split_off(length + end + 1);
                return Ok(std::mem::replace(&mut self.inbox, rest));
            }
            length = self.inbox.len();
            self.fill(length + 1, deadline)?;
        }
    }

    /// Reads until there are `length` bytes.
    fn fill(&mut self, length: usize, deadline: Instant) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while self.inbox.len() < length {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.inbox.extend_from_slice(&buffer[..read]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The result of a call that was answered.
pub(super) fn accepted(action: &str, unit: &str, message: Message) -> Result<Message> {
    if message.kind != Kind::Error {
        return Ok(message);
    }
    let text = message.text().unwrap_or_default();
    Err(CgroupError::Systemd {
        action: format!("{action} {unit}"),
        reason: format!("{text} ({})", message.error),
    })
}

pub(super) fn failed(action: &str, what: &str, error: &io::Error) -> CgroupError {
    CgroupError::Systemd {
        action: format!("{action} {what}"),
        reason: error.to_string(),
    }
}

fn system_addresses(configured: Option<OsString>) -> Vec<Address> {
    let private = Address {
        name: SYSTEM_PRIVATE.into(),
        is_abstract: false,
        direct: true,
    };
    let mut addresses = vec![private];
    let listed = configured
        .map(|list| parse_addresses(&list))
        .unwrap_or_default();
    if listed.is_empty() {
        addresses.push(Address {
            name: SYSTEM_BUS.into(),
            is_abstract: false,
            direct: false,
        });
    }
    addresses.extend(listed);
    addresses
}

/// The bus that the environment names; else the manager's own socket and the bus where they are.
fn user_addresses(configured: Option<OsString>, runtime_dir: Option<&OsString>) -> Vec<Address> {
    let listed = configured
        .map(|list| parse_addresses(&list))
        .unwrap_or_default();
    if !listed.is_empty() {
        return listed;
    }
    let below = |name: &str, direct| {
        let dir = runtime_dir.filter(|dir| !dir.is_empty())?;
        Some(Address {
            name: Path::new(dir).join(name).into(),
            is_abstract: false,
            direct,
        })
    };
    [below("systemd/private", true), below("bus", false)]
        .into_iter()
        .flatten()
        .collect()
}

/// Addresses of unix sockets in a list as the D-Bus specification writes it.
fn parse_addresses(list: &OsString) -> Vec<Address> {
    let unix = list
        .as_bytes()
        .split(|b| *b == b';')
        .filter_map(|address| address.strip_prefix(b"unix:"));
    let pairs = unix.flat_map(|address| address.split(|b| *b == b','));
    pairs
        .filter_map(|pair| {
            let is_abstract = pair.starts_with(b"abstract=");
            let name = pair
                .strip_prefix(b"abstract=")
                .or(pair.strip_prefix(b"path="))?;
            Some(Address {
                name: OsString::from_vec(unescape(name)),
                is_abstract,
                direct: false,
            })
        })
        .collect()
}

/// Turns `%20` and the like into bytes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let code = (*byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        let code = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(code.unwrap_or(*byte));
        at += if code.is_some() { 3 } else { 1 };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn address(name: &str, is_abstract: bool, direct: bool) -> Address {
        Address {
            name: name.into(),
            is_abstract,
            direct,
        }
    }

    #[test]
    fn the_environment_names_the_bus_and_the_runtime_directory_has_two() {
        let list = "tcp:host=x;unix:path=/run/a%20b,guid=7;unix:abstract=/tmp/c";
        let expected = [
            address("/run/a b", false, false),
            address("/tmp/c", true, false),
        ];
        assert_eq!(
            user_addresses(Some(list.into()), Some(&"/run/user/1".into())),
            expected
        );
        let expected = [
            address("/run/user/1/systemd/private", false, true),
            address("/run/user/1/bus", false, false),
        ];
        assert_eq!(user_addresses(None, Some(&"/run/user/1".into())), expected);
        assert_eq!(user_addresses(None, None), []);
        let system = system_addresses(None);
        assert_eq!(
            system,
            [
                address(SYSTEM_PRIVATE, false, true),
                address(SYSTEM_BUS, false, false)
            ]
        );
    }

    #[test]
    fn who_hangs_up_or_refuses_is_told_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).expect("bound");
        for (answer, expected) in [
            ("REJECTED KERBEROS\r\n", "refused"),
            ("DATA\r\n", "end of file"),
        ] {
            let peer = std::thread::scope(|scope| {
                let peer = scope.spawn(|| {
                    let (mut peer, _) = listener.accept().expect("a client");
                    let mut greeting = [0; 29];
                    peer.read_exact(&mut greeting).expect("a greeting");
                    peer.write_all(answer.as_bytes()).expect("answered");
                    greeting
                });
                let error = Bus::open(&address(path.to_str().expect("UTF-8"), false, true))
                    .expect_err("no bus")
                    .to_string();
                assert!(error.contains(expected), "{error}");
                peer.join().expect("no panic")
            });
            assert_eq!(&peer, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
        }
    }
}
