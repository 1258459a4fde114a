//! Memory that comes when it is touched: our own server of pages for clones (`userfaultfd(2)`).
//!
//! CRIU hands over a descriptor for each process whose memory it did not fill. [`space`] (pure) knows
//! which page of it is where in the template, however the process moves its memory; [`tenant`] serves
//! one clone; [`server`] serves all clones of this host, and ends with the last of them; [`guard`]
//! ends the clones of a server that is killed, which would read zeroes; [`home`] is the cgroup of both.
//! [`client`] is what a clone's launch has to do with it, in the messages of [`wire`]. [`fill`] needs no
//! server: it copies all of the memory before a restored container goes on.

mod client;
mod fill;
mod guard;
mod home;
mod process;
mod reception;
mod server;
mod socket;
mod source;
mod space;
mod tenant;
mod wire;

pub(crate) use client::PageClient;
pub(crate) use fill::Filler;
pub use server::{PageProgram, serve_pages};
