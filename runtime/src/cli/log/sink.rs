//! Destinations of the log: stderr, a file, systemd's journal, syslog.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use xebec_runtime::{Error, Result};

use super::{Level, LogFormat};

const JOURNAL: &str = "/run/systemd/journal/socket";
const SYSLOG: &str = "/dev/log";

/// Messages "from user programs" (`syslog(3)`).
const FACILITY_USER: u8 = 1;

/// Where lines go.
#[derive(Clone)]
pub(super) enum Sink {
    Stderr,
    File(Arc<File>),
    /// The journal's own protocol, and the identifier that lines carry there.
    Journal(Arc<UnixDatagram>, String),
    Syslog(Arc<UnixDatagram>, String),
}

impl Sink {
    /// Opens `[file:]PATH`, `journald:ID` or `syslog:ID`.
    pub(super) fn open(target: &OsStr) -> Result<Self> {
        let bytes = target.as_bytes();
        let identifier = |id: &[u8]| String::from_utf8_lossy(id).into_owned();
        if let Some(id) = bytes.strip_prefix(b"journald:") {
            return Ok(Self::Journal(connect(JOURNAL)?, identifier(id)));
        }
        if let Some(id) = bytes.strip_prefix(b"syslog:") {
            return Ok(Self::Syslog(connect(SYSLOG)?, identifier(id)));
        }
        let path = Path::new(OsStr::from_bytes(
            bytes.strip_prefix(b"file:").unwrap_or(bytes),
        ));
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(|file| Self::File(Arc::new(file)))
            .map_err(|source| Error::File {
                op: "open",
                path: path.into(),
                source,
            })
    }

    /// A log that cannot be written must not change the outcome of the command.
    pub(super) fn write(&self, format: LogFormat, level: Level, message: &str, time: &str) {
        let _ = match self {
            Self::Stderr => io::stderr().write_all(format.line(level, message, time).as_bytes()),
            Self::File(file) => (&**file).write_all(format.line(level, message, time).as_bytes()),
            Self::Journal(socket, id) => socket.send(&journal_entry(level, message, id)).map(drop),
            Self::Syslog(socket, id) => socket.send(&syslog_entry(level, message, id)).map(drop),
        };
    }
}

fn connect(path: &'static str) -> Result<Arc<UnixDatagram>> {
    let connected = UnixDatagram::unbound().and_then(|socket| {
        socket.connect(path)?;
        Ok(Arc::new(socket))
    });
    connected.map_err(|source| Error::File {
        op: "connect to",
        path: path.into(),
        source,
    })
}

/// An entry in the journal's native protocol: fields by their length, as a message may have
/// several lines.
fn journal_entry(level: Level, message: &str, id: &str) -> Vec<u8> {
    let priority = level.priority().to_string();
    let fields = [
        ("PRIORITY", &*priority),
        ("SYSLOG_IDENTIFIER", id),
        ("MESSAGE", message),
    ];
    let mut entry = Vec::new();
    for (name, value) in fields {
        entry.extend_from_slice(name.as_bytes());
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    }
    entry
}

fn syslog_entry(level: Level, message: &str, id: &str) -> Vec<u8> {
    let priority = FACILITY_USER << 3 | level.priority();
    format!("<{priority}>{id}: {message}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_form_that_their_readers_know() {
        assert_eq!(syslog_entry(Level::Error, "gone", "web"), b"<11>web: gone");
        let entry = journal_entry(Level::Warning, "a\nb", "web");
        let expected = b"PRIORITY\n\x01\0\0\0\0\0\0\x004\n\
            SYSLOG_IDENTIFIER\n\x03\0\0\0\0\0\0\0web\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n";
        assert_eq!(entry, expected);
    }
}
