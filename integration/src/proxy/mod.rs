//! A TCP proxy that makes a network slow on purpose and counts what passes.
//!
//! It adds a round-trip time and a rate that all its connections share, for kernels without
//! netem. A new connection costs one more round trip, as the handshake would. It can be cut, so
//! that everything under way dies as if a cable had been pulled, and restored.

mod link;

use std::io::{PipeReader, PipeWriter, pipe};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use self::link::Direction;
use crate::error::{Error, Result};

/// What a network is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Time from a request's departure to its answer's arrival.
    pub rtt: Duration,
    /// Rate of each direction in Mbit/s (10^6 bits), shared by all connections.
    pub mbit: f64,
}

impl Shape {
    /// A round-trip time in milliseconds and a rate in Mbit/s.
    pub fn new(rtt_milliseconds: u64, mbit: f64) -> Self {
        Self {
            rtt: Duration::from_millis(rtt_milliseconds),
            mbit,
        }
    }
}

/// What has passed since the start or the last reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes from the target to clients.
    pub down: u64,
    /// Bytes from clients to the target.
    pub up: u64,
    /// Connections accepted.
    pub connections: u64,
}

/// A running proxy; dropping it ends it and all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    network: Arc<Network>,
    lifeline: Option<PipeWriter>,
    acceptor: Option<JoinHandle<()>>,
}

/// What the threads of one proxy share.
#[derive(Debug)]
struct Network {
    target: SocketAddr,
    shape: Shape,
    down: Direction,
    up: Direction,
    connections: AtomicU64,
    is_cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens on `listen` (port 0: any free one) for connections to `target`, in the network
    /// namespace of the calling thread.
    pub fn start(listen: SocketAddr, target: SocketAddr, shape: Shape) -> Result<Self> {
        let listener =
            TcpListener::bind(listen).map_err(Error::system(format!("listen on {listen}")))?;
        let address = listener
            .local_addr()
            .map_err(Error::system("find the proxy's port"))?;
        listener
            .set_nonblocking(true)
            .map_err(Error::system("set up the proxy's socket"))?;
        let (end, lifeline) = pipe().map_err(Error::system("make a pipe"))?;
        let network = Arc::new(Network {
            target,
            shape,
            down: Direction::new(shape.mbit),
            up: Direction::new(shape.mbit),
            connections: 0.into(),
            is_cut: false.into(),
            open: Mutex::default(),
        });
        let acceptor = thread::spawn({
            let network = Arc::clone(&network);
            move || accept(&listener, &end, &network)
        });
        Ok(Self {
            address,
            network,
            lifeline: Some(lifeline),
            acceptor: Some(acceptor),
        })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has passed since the start or the last reset.
    pub fn counters(&self) -> Counters {
        Counters {
            down: self.network.down.bytes(),
            up: self.network.up.bytes(),
            connections: self.network.connections.load(Ordering::Relaxed),
        }
    }

    /// Sets the counters to zero; what they were.
    pub fn reset(&self) -> Counters {
        Counters {
            down: self.network.down.reset(),
            up: self.network.up.reset(),
            connections: self.network.connections.swap(0, Ordering::Relaxed),
        }
    }

    /// Ends every connection at once, in the middle of whatever it carries; new ones are closed
    /// as soon as they are made.
    pub fn cut(&self) {
        self.network.cut();
    }

    /// Cuts the network by itself as soon as `bytes` more have come down from the target.
    pub fn cut_after(&self, bytes: u64) {
        self.network.down.limit(bytes);
    }

    /// Ends a cut.
    pub fn restore(&self) {
        self.network.restore();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.lifeline.take();
        if let Some(acceptor) = self.acceptor.take() {
            // It ends at the pipe's end of file; its panic would have been printed already.
            let _ = acceptor.join();
        }
        self.cut();
    }
}

impl Network {
    fn cut(&self) {
        self.refuse();
        self.end_open();
    }

    /// From now on no connection is taken.
    fn refuse(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    /// Ends what is open, unless the cut has been undone meanwhile: a late end must not hit the
    /// connections that came after it.
    fn end_open(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_cut.load(Ordering::SeqCst) {
            return;
        }
        for stream in open.drain(..) {
            // One that is closed already cannot be shut down, which is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn restore(&self) {
        let _open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.down.limit(u64::MAX);
        self.is_cut.store(false, Ordering::SeqCst);
    }

    /// Registers a connection's ends, so that a cut reaches them; false if it is cut already.
    fn track(&self, ends: [&TcpStream; 2]) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|stream| stream.peer_addr().is_ok());
        open.extend(ends.into_iter().filter_map(|end| end.try_clone().ok()));
        !self.is_cut.load(Ordering::SeqCst)
    }

    fn serve(self: &Arc<Self>, client: &TcpStream) {
        thread::sleep(self.shape.rtt);
        let Ok(target) = TcpStream::connect(self.target) else {
            return;
        };
        // Without Nagle's algorithm; a socket that refuses is only slower.
        let _ = (client.set_nodelay(true), target.set_nodelay(true));
        let (Ok(from_client), Ok(to_client)) = (client.try_clone(), client.try_clone()) else {
            return;
        };
        let (Ok(from_target), Ok(to_target)) = (target.try_clone(), target.try_clone()) else {
            return;
        };
        if !self.track([client, &target]) {
            return;
        }
        let up = thread::spawn({
            let network = Arc::clone(self);
            move || link::forward(from_client, to_target, &network.up, &network)
        });
        link::forward(from_target, to_client, &self.down, self);
        // A panic in it would have been printed already.
        let _ = up.join();
    }
}

fn accept(listener: &TcpListener, end: &PipeReader, network: &Arc<Network>) {
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        if poll(&mut fds, None).is_ok() && !fds[1].revents().is_empty() {
            return;
        }
        let Ok((client, _)) = listener.accept() else {
            continue;
        };
        network.connections.fetch_add(1, Ordering::Relaxed);
        if network.is_cut.load(Ordering::SeqCst) || client.set_nonblocking(false).is_err() {
            continue;
        }
        thread::spawn({
            let network = Arc::clone(network);
            move || network.serve(&client)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use super::*;

    const LOOPBACK: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// Answers each connection's first byte N with N * 1000 bytes.
    fn server() -> SocketAddr {
        let listener = TcpListener::bind(LOOPBACK).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut count = [0];
                if stream.read_exact(&mut count).is_ok() {
                    let _ = stream.write_all(&vec![7; usize::from(count[0]) * 1000]);
                }
            }
        });
        address
    }

    fn ask(proxy: &Proxy, thousands: u8) -> (usize, Duration) {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        let mut answer = Vec::new();
        if stream.write_all(&[thousands]).is_ok() {
            let _ = stream.read_to_end(&mut answer);
        }
        (answer.len(), begun.elapsed())
    }

    #[test]
    fn a_request_costs_the_handshake_and_one_round_trip_and_is_counted() {
        let proxy = Proxy::start(LOOPBACK, server(), Shape::new(40, 1e4)).unwrap();
        let (bytes, time) = ask(&proxy, 3);
        assert_eq!(bytes, 3000);
        assert!(time >= Duration::from_millis(80), "{time:?}");
        let counted = Counters {
            down: 3000,
            up: 1,
            connections: 1,
        };
        assert_eq!(proxy.reset(), counted);
        assert_eq!(
            proxy.counters(),
            Counters {
                down: 0,
                up: 0,
                connections: 0
            }
        );
    }

    #[test]
    fn the_rate_holds_for_all_connections_together() {
        let proxy = Proxy::start(LOOPBACK, server(), Shape::new(0, 10.0)).unwrap();
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| assert_eq!(ask(&proxy, 125).0, 125_000));
            }
        });
        // 250 kB at 10 Mbit/s are 200 ms of wire; the last piece's own time is not waited for.
        assert!(
            begun.elapsed() >= Duration::from_millis(140),
            "{:?}",
            begun.elapsed()
        );
    }

    #[test]
    fn a_cut_ends_a_read_in_its_middle_and_is_restored() {
        let proxy = Proxy::start(LOOPBACK, server(), Shape::new(0, 1000.0)).unwrap();
        proxy.cut_after(50_000);
        assert_eq!(ask(&proxy, 200).0, 50_000);
        assert_eq!(ask(&proxy, 1).0, 0);
        proxy.restore();
        assert_eq!(ask(&proxy, 200).0, 200_000);
    }
}
