//! `integration proxy`.

use std::io::{BufRead, stdin};
use std::net::SocketAddr;

use clap::Args;

use crate::error::{Error, Result};
use crate::proxy::{Proxy, Shape};

#[derive(Debug, Args)]
pub(super) struct ProxyArgs {
    /// Where to listen; port 0 is any free one, the first line of output names it
    listen: SocketAddr,
    /// Where connections go
    target: SocketAddr,
    /// Round-trip time in milliseconds
    #[arg(long, default_value_t = 20)]
    rtt: u64,
    /// Rate in Mbit/s, each way, all connections together
    #[arg(long, default_value_t = 100.0)]
    mbit: f64,
}

pub(super) fn run(arguments: &ProxyArgs) -> Result<()> {
    let shape = Shape::new(arguments.rtt, arguments.mbit);
    let proxy = Proxy::start(arguments.listen, arguments.target, shape)?;
    println!("{}", proxy.address());
    for line in stdin().lock().lines() {
        line.map_err(Error::system("read standard input"))?;
        let counters = proxy.reset();
        println!(
            "down {} up {} connections {}",
            counters.down, counters.up, counters.connections
        );
    }
    Ok(())
}
