//! All bytes of a blob in order, fetched in windows over a few connections at once.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::Sink;
use crate::error::{Error, Result};
use crate::fetch::BlobSource;

/// Bytes of one request: bounds what one connection may be ahead.
const WINDOW: u64 = 2 << 20;
/// Requests under way: storage behind registries limits the rate of each connection.
const CONNECTIONS: u64 = 3;
/// Parts that wait for their turn; with a part of a TLS record's size, 1 MiB a connection.
const WAITING: usize = 64;

/// What a connection delivers.
enum Part {
    Bytes(Vec<u8>),
    /// The end of a window, good or bad.
    End(Result<()>),
}

/// Gives every byte of `source` to `sink`.
pub fn download(source: &dyn BlobSource, sink: Sink<'_>) -> Result<()> {
    let windows = source.size().div_ceil(WINDOW);
    let connections = windows.min(CONNECTIONS);
    std::thread::scope(|scope| {
        let mut receivers = Vec::new();
        for first in 0..connections {
            let (sender, receiver) = sync_channel(WAITING);
            receivers.push(receiver);
            let work = move || {
                let mine = (first..windows).step_by(connections as usize);
                for window in mine {
                    if !fetch(source, window * WINDOW, &sender) {
                        break;
                    }
                }
            };
            std::thread::Builder::new()
                .name("xebec-stream".to_owned())
                .spawn_scoped(scope, work)
                .map_err(|error| Error::Internal(format!("start a thread: {error}")))?;
        }
        for window in 0..windows {
            take(&receivers[(window % connections) as usize], sink)?;
        }
        Ok(())
    })
}

/// Fetches one window; false when nothing more is wanted.
fn fetch(source: &dyn BlobSource, offset: u64, sender: &SyncSender<Part>) -> bool {
    let len = WINDOW.min(source.size() - offset);
    let mut wanted = true;
    let read = source.read_parts(offset, len, &mut |part| {
        wanted = wanted && sender.send(Part::Bytes(part.to_vec())).is_ok();
    });
    let good = read.is_ok();
    wanted && sender.send(Part::End(read)).is_ok() && good
}

/// Takes one window from its connection.
fn take(receiver: &Receiver<Part>, sink: Sink<'_>) -> Result<()> {
    loop {
        match receiver.recv() {
            Ok(Part::Bytes(bytes)) => sink(&bytes)?,
            Ok(Part::End(outcome)) => return outcome,
            Err(_) => return Err(Error::Internal("a download thread has ended".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::fetch::FileBlob;

    fn blob(len: usize) -> (FileBlob, Vec<u8>) {
        let data: Vec<u8> = (0..len).map(|i| (i / 1000) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        (FileBlob::new(file, "blob").unwrap(), data)
    }

    #[test]
    fn all_bytes_come_once_and_in_order() {
        for len in [0, 1, WINDOW as usize, (WINDOW * 4) as usize + 5] {
            let (blob, data) = blob(len);
            let mut seen = Vec::new();
            download(&blob, &mut |bytes| {
                seen.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
            assert!(seen == data, "{len}");
        }
    }

    #[test]
    fn whoever_has_enough_ends_it() {
        let (blob, _) = blob((WINDOW * 8) as usize);
        let mut taken = 0;
        let stop = |bytes: &[u8]| {
            taken += bytes.len();
            match taken {
                0..6_000_000 => Ok(()),
                _ => Err(Error::NotFound("patience".to_owned())),
            }
        };
        let mut stop = stop;
        assert!(matches!(
            download(&blob, &mut stop),
            Err(Error::NotFound(_))
        ));
    }
}
