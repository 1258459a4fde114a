//! Content on its way from containerd and to it.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use xebec_proto::content::{AbortRequest, ReadContentRequest, WriteAction, WriteContentRequest};

use super::client::{Client, refused};
use crate::convert::store::from_stream;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::BlobSource;

/// Bytes of a message.
const PIECE: usize = 512 << 10;
/// Messages that may wait for the other side.
const QUEUE: usize = 8;

/// A blob's bytes as they come.
pub(in crate::convert) struct ContentReader {
    pieces: mpsc::Receiver<Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl ContentReader {
    pub(super) fn start(client: &Arc<Client>, digest: Digest) -> Self {
        let (sender, pieces) = mpsc::channel(QUEUE);
        let transfer = forward(Arc::clone(client), digest, (0, 0), sender);
        client.runtime.spawn(transfer);
        Self {
            pieces,
            piece: io::Cursor::default(),
        }
    }
}

impl Read for ContentReader {
    /// Errors carry the crate's [`Error`] inside.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.piece.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = io::Cursor::new(piece.map_err(io::Error::other)?),
                None => return Ok(0),
            }
        }
    }
}

/// Sends `size` bytes from `offset` on, or what is left if `size` is 0.
async fn forward(
    client: Arc<Client>,
    digest: Digest,
    (offset, size): (u64, u64),
    sender: mpsc::Sender<Result<Vec<u8>>>,
) {
    let what = client.blob_name(&digest);
    let request = client.request(ReadContentRequest {
        digest: digest.to_string(),
        offset: offset as i64,
        size: size as i64,
    });
    let mut content = client.content.clone();
    let mut stream = match content.read(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            // The reader may be gone; nobody else is there to be told.
            let _ = sender.send(Err(refused(&what, &status))).await;
            return;
        }
    };
    loop {
        let piece = match stream.message().await {
            Ok(Some(answer)) => Ok(answer.data),
            Ok(None) => return,
            Err(status) => Err(refused(&what, &status)),
        };
        let failed = piece.is_err();
        if sender.send(piece).await.is_err() || failed {
            return;
        }
    }
}

/// A blob that is read by ranges.
pub(in crate::convert) struct ContentBlob {
    client: Arc<Client>,
    digest: Digest,
    size: u64,
}

impl ContentBlob {
    pub(super) fn new(client: Arc<Client>, digest: Digest, size: u64) -> Self {
        Self {
            client,
            digest,
            size,
        }
    }
}

impl BlobSource for ContentBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_range(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let what = self.client.blob_name(&self.digest);
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            let size = self.size;
            let reason = format!("{len} bytes at {offset} of {what}, which has {size} bytes");
            return Err(Error::InvalidArgument(reason));
        }
        if len == 0 {
            return Ok(Vec::new());
        }
        let (sender, mut pieces) = mpsc::channel(QUEUE);
        let client = Arc::clone(&self.client);
        let transfer = forward(client, self.digest, (offset, len), sender);
        self.client.runtime.spawn(transfer);
        let mut data = Vec::new();
        while let Some(piece) = pieces.blocking_recv() {
            data.extend_from_slice(&piece?);
        }
        if data.len() as u64 != len {
            let reason = format!("has {} of {len} bytes at {offset}", data.len());
            return Err(Error::Malformed { what, reason });
        }
        Ok(data)
    }
}

/// Stores a blob; false when it was there already.
pub(super) fn write(
    client: &Client,
    (digest, size): (Digest, u64),
    content: impl Read + Send,
    labels: &HashMap<String, String>,
) -> Result<bool> {
    let what = client.blob_name(&digest);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let upload = Upload {
        name: format!("xebec-{}-{}", std::process::id(), digest.hex()),
        digest,
        size,
        what: &what,
    };
    let (sent, answered) = std::thread::scope(|scope| {
        let upload = &upload;
        let sending = scope.spawn(move || upload.send(content, labels, &sender));
        let answered = client.runtime.block_on(async {
            let mut content = client.content.clone();
            let request = client.request(ReceiverStream::new(receiver));
            let mut answers = content.write(request).await?.into_inner();
            let mut committed = false;
            while let Some(answer) = answers.message().await? {
                committed |= answer.action == WriteAction::Commit as i32;
            }
            Ok::<_, tonic::Status>(committed)
        });
        let sent = sending.join();
        (sent, answered)
    });
    let sent = sent.map_err(|_| Error::Internal(format!("{what}: a sender panicked")))?;
    let failed = match (sent, answered) {
        (Ok(()), Ok(true)) => return Ok(true),
        (_, Err(status)) if status.code() == Code::AlreadyExists => return Ok(false),
        // What could not be read is the cause; that containerd then misses something is not.
        (Err(Some(error)), _) => error,
        (_, Err(status)) => refused(&what, &status),
        (_, Ok(_)) => Error::Internal(format!("{what} was not committed by containerd")),
    };
    let abort = AbortRequest { r#ref: upload.name };
    let mut content = client.content.clone();
    if let Err(status) = client
        .runtime
        .block_on(content.abort(client.request(abort)))
        && status.code() != Code::NotFound
    {
        tracing::warn!(%status, blob = what, "is left over");
    }
    Err(failed)
}

struct Upload<'a> {
    name: String,
    digest: Digest,
    size: u64,
    what: &'a str,
}

impl Upload<'_> {
    /// Sends everything and the wish to commit. The error is none where nobody listens any more:
    /// then the answer says why.
    fn send(
        &self,
        mut content: impl Read,
        labels: &HashMap<String, String>,
        to: &mpsc::Sender<WriteContentRequest>,
    ) -> std::result::Result<(), Option<Error>> {
        let mut offset = 0;
        loop {
            let mut data = vec![0; PIECE];
            let mut filled = 0;
            while filled < PIECE {
                let count = content.read(&mut data[filled..]);
                match count.map_err(|error| Some(from_stream(error, self.what)))? {
                    0 => break,
                    count => filled += count,
                }
            }
            data.truncate(filled);
            let is_last = filled < PIECE;
            let message = WriteContentRequest {
                action: if is_last {
                    WriteAction::Commit.into()
                } else {
                    WriteAction::Write.into()
                },
                r#ref: self.name.clone(),
                total: self.size as i64,
                expected: self.digest.to_string(),
                offset,
                data,
                labels: if is_last {
                    labels.clone()
                } else {
                    HashMap::new()
                },
            };
            to.blocking_send(message).map_err(|_| None)?;
            offset += filled as i64;
            if is_last {
                return Ok(());
            }
        }
    }
}
