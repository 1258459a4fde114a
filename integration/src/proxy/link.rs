//! One direction of one connection, and what all connections of a direction share.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Network;

/// How far ahead of the wire a connection may read.
const AHEAD: Duration = Duration::from_millis(20);
const PIECE: usize = 64 << 10;

/// A direction's wire: its rate, what went over it, and what may still go.
#[derive(Debug)]
pub(super) struct Direction {
    bytes_per_second: f64,
    free_at: Mutex<Instant>,
    bytes: AtomicU64,
    left: AtomicU64,
}

impl Direction {
    pub(super) fn new(mbit: f64) -> Self {
        Self {
            bytes_per_second: mbit * 1e6 / 8.0,
            free_at: Mutex::new(Instant::now()),
            bytes: 0.into(),
            left: u64::MAX.into(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn reset(&self) -> u64 {
        self.bytes.swap(0, Ordering::Relaxed)
    }

    /// At most `bytes` more may pass; `u64::MAX` means no limit.
    pub(super) fn limit(&self, bytes: u64) {
        self.left.store(bytes, Ordering::SeqCst);
    }

    /// How many of `wanted` bytes may pass.
    fn take(&self, wanted: usize) -> usize {
        let wanted = wanted as u64;
        let rest = |left: u64| {
            Some(if left == u64::MAX {
                left
            } else {
                left.saturating_sub(wanted)
            })
        };
        let left = match self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, rest)
        {
            Ok(left) | Err(left) => left,
        };
        let granted = wanted.min(left);
        self.bytes.fetch_add(granted, Ordering::Relaxed);
        granted as usize
    }

    /// When the last of `bytes` will have left, if they queue up now.
    fn depart(&self, bytes: usize) -> Instant {
        let time = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = (*free_at).max(Instant::now()) + time;
        *free_at
    }
}

/// Carries bytes until either end closes: the reader takes the wire's time, and a second thread
/// delivers each piece half a round trip later.
pub(super) fn forward(
    mut from: TcpStream,
    mut to: TcpStream,
    direction: &Direction,
    network: &Network,
) {
    let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(512);
    let delivery = thread::spawn(move || {
        for (at, piece) in receiver {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        // Fails if the other end is gone, which is as good.
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; PIECE];
    let mut is_limit_reached = false;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let granted = direction.take(count);
        is_limit_reached = granted < count;
        if is_limit_reached {
            // Before the last bytes arrive: whoever has them finds the network cut.
            network.refuse();
        }
        let departure = direction.depart(granted);
        thread::sleep(departure.saturating_duration_since(Instant::now() + AHEAD));
        let piece = (
            departure + network.shape.rtt / 2,
            buffer[..granted].to_vec(),
        );
        if sender.send(piece).is_err() || is_limit_reached {
            break;
        }
    }
    drop(sender);
    // A panic in it would have been printed already.
    let _ = delivery.join();
    if is_limit_reached {
        // This connection ends even if the cut has been undone meanwhile: what its other end still
        // wants to send has no reader.
        let _ = from.shutdown(Shutdown::Both);
        network.end_open();
    }
}
