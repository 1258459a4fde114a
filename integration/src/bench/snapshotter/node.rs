//! The host as a node: its daemons, the links to its registry, and what a start on it takes.
//!
//! All of it happens in the host that this process is in.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, pipe};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::measure::output;
use super::super::suite::{Absent, brief};
use super::{daemon, peers, second};
use crate::command::{self, DEADLINE};
use crate::corpus::Recipe;
use crate::ctr::{Ctr, Stack};
use crate::demo::FORGET;
use crate::error::{Error, Result};
use crate::hosts::Site;
use crate::hosts::services::{Flavour, Service, Services, config};
use crate::proxy::{Proxy, Shape};

/// Where our snapshotter listens.
pub(super) const ADDRESS: &str = Service::SNAPSHOTTER_SOCKET;
/// containerd's configuration file.
const CONFIG: &str = "/etc/containerd/config.toml";
/// Where logs of the daemons go; the host takes them with it.
const LOGS: &str = "/var/log/xebec-bench";
/// What makes the host a node.
const NODE: [Service; 2] = [Service::Snapshotter, Service::Containerd];

/// A network between the node and its registry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Network {
    /// Its name in rows.
    pub(super) name: &'static str,
    /// Round-trip time in milliseconds.
    rtt: u64,
    /// Rate in Mbit/s.
    mbit: f64,
}

pub(super) const GIGABIT: Network = Network {
    name: "1 Gbit",
    rtt: 2,
    mbit: 1000.0,
};

/// What the rows of cold starts are measured over.
pub(super) const NETWORKS: [Network; 2] = [
    Network {
        name: "100 Mbit",
        rtt: 20,
        mbit: 100.0,
    },
    GIGABIT,
];

impl Network {
    /// Milliseconds that `bytes` are on the wire, without any round trip.
    pub(super) fn wire_ms(self, bytes: u64) -> f64 {
        bytes as f64 * 8.0 / (self.mbit * 1e3)
    }

    /// Milliseconds of `count` round trips.
    pub(super) fn round_trips_ms(self, count: u32) -> f64 {
        f64::from(count) * self.rtt as f64
    }
}

/// A start of a container, from the request of a pull, or of the container if that was all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    /// Milliseconds until the container's first line of output.
    pub(super) ms: f64,
    /// How much of that went by before the pull had ended.
    pub(super) pull_ms: f64,
    /// Bytes that had come from the registry by then.
    pub(super) bytes: u64,
}

/// The daemons of the host and its links to the registry.
pub(super) struct Node {
    services: RefCell<Services>,
    links: Vec<(Network, Proxy)>,
    /// Snapshotters that were tried, and why one cannot be used.
    tried: RefCell<BTreeMap<&'static str, std::result::Result<(), Absent>>>,
}

impl Node {
    /// Starts everything. containerd is told of its own EROFS snapshotter and of a second daemon
    /// of ours, too.
    pub(super) fn start() -> Result<Self> {
        let mut services = Services::prepare(Site::Here, Flavour::Native, Path::new(LOGS))?;
        configure()?;
        services.start(&[Service::Registry])?;
        services.start(&NODE)?;
        let registry: SocketAddr = Service::REGISTRY
            .parse()
            .map_err(|error| Error::invalid("the registry's address", error))?;
        let mut links = Vec::new();
        for network in NETWORKS {
            let listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let link = Proxy::start(listen, registry, Shape::new(network.rtt, network.mbit))?;
            let directory = PathBuf::from(format!("/etc/containerd/certs.d/{}", link.address()));
            fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
            let hosts = directory.join("hosts.toml");
            fs::write(&hosts, format!("server = \"http://{}\"\n", link.address()))
                .map_err(Error::file("write", &hosts))?;
            links.push((network, link));
        }
        Ok(Self {
            services: RefCell::new(services),
            links,
            tried: RefCell::default(),
        })
    }

    /// Whether a snapshotter can hold images here; tried once with an image of the registry.
    pub(super) fn can_pull(&self, stack: Stack, image: &str) -> std::result::Result<(), Absent> {
        let mut tried = self.tried.borrow_mut();
        let tried = tried.entry(stack.snapshotter).or_insert_with(|| {
            pull(image, stack).map_err(|error| {
                let (who, reason) = (stack.snapshotter, brief(&error));
                Absent(format!("{who} cannot unpack here: {reason}"))
            })
        });
        tried.clone()
    }

    fn link(&self, network: Network) -> Result<&Proxy> {
        let link = self.links.iter().find(|(known, _)| *known == network);
        link.map(|(_, link)| link)
            .ok_or_else(|| Error::invalid(network.name, "there is no such link"))
    }

    /// The registry by each of its links, as hosts are called.
    pub(super) fn registries(&self) -> Vec<String> {
        let links = self.links.iter();
        links.map(|(_, link)| link.address().to_string()).collect()
    }

    /// The end of what the snapshotter has logged, for who reports a failure.
    pub(super) fn log(&self) -> String {
        let log = self.services.borrow().log(Service::Snapshotter);
        command::tail(&log, 4096).to_owned()
    }

    pub(super) fn stop(&self, service: Service) -> Result<()> {
        self.services.borrow_mut().stop(service, Signal::TERM)
    }

    pub(super) fn pid(&self, service: Service) -> Result<u32> {
        let pid = self.services.borrow().pid(service);
        pid.ok_or_else(|| Error::invalid(service.name(), "it does not run"))
    }

    pub(super) fn start_service(&self, service: Service) -> Result<()> {
        self.services.borrow_mut().start(&[service])
    }

    /// Stops the daemons; a profile is written at the latest by that.
    pub(super) fn pause(&self) -> Result<()> {
        NODE.into_iter()
            .rev()
            .try_for_each(|service| self.stop(service))
    }

    pub(super) fn resume(&self) -> Result<()> {
        self.services.borrow_mut().start(&NODE)
    }

    /// Makes the host a node that has never seen an image, but may have been given a profile.
    pub(super) fn forget(&self, profile: Option<&Path>) -> Result<()> {
        self.pause()?;
        // What containerd's EROFS snapshotter has mounted is in the way, too.
        let unmount = "sed -n 's,^[^ ]* [^ ]* [^ ]* [^ ]* \\(/var/lib/containerd/[^ ]*\\) .*,\\1,p' \
                       /proc/self/mountinfo | sort -r | xargs -r umount -l";
        let script = format!("{unmount}; {FORGET}");
        let roots = peers::ALL.map(|peer| peer.root);
        output(&[&["sh", "-ec", &script, "sh"], &roots[..]].concat())?;
        if let Some(profile) = profile {
            let profile = profile.to_string_lossy();
            output(&["xebec-snapshotter", "profile", "import", &profile])?;
        }
        // What was written before must not be written back while the clock runs.
        rustix::fs::sync();
        self.resume()
    }

    /// Pulls `image` over `network` and runs it until its first line of output and on to its end.
    pub(super) fn cold(
        &self,
        stack: Stack,
        network: Network,
        recipe: &Recipe,
        image: &str,
    ) -> Result<Started> {
        let link = self.link(network)?;
        let remote = image.replacen(Service::REGISTRY, &link.address().to_string(), 1);
        link.reset();
        let began = Instant::now();
        pull(&remote, stack)?;
        let pulled = began.elapsed();
        let (ms, bytes) = run_and(stack, recipe, &remote, || link.counters().down)
            .map_err(|error| Error::invalid(self.log(), error))?;
        let pull_ms = milliseconds(pulled);
        Ok(Started {
            ms: pull_ms + ms,
            pull_ms,
            bytes,
        })
    }

    /// Runs an image that [`Self::cold`] has run before.
    pub(super) fn warm(
        &self,
        stack: Stack,
        network: Network,
        recipe: &Recipe,
        image: &str,
    ) -> Result<f64> {
        let link = self.link(network)?;
        let remote = image.replacen(Service::REGISTRY, &link.address().to_string(), 1);
        run(stack, recipe, &remote)
    }
}

/// `ctr images pull`, without its progress.
pub(super) fn pull(image: &str, stack: Stack) -> Result<()> {
    let arguments = Ctr::pull_arguments(image, stack.snapshotter);
    output(&[&["ctr"], &arguments[..]].concat()).map(drop)
}

/// `ctr run` of what the image runs, to its end; the milliseconds until its first line.
pub(super) fn run(stack: Stack, recipe: &Recipe, image: &str) -> Result<f64> {
    run_and(stack, recipe, image, || ()).map(|(ms, ())| ms)
}

/// As [`run`], with what `then` says when the first line has come.
fn run_and<T>(
    stack: Stack,
    recipe: &Recipe,
    image: &str,
    then: impl Fn() -> T,
) -> Result<(f64, T)> {
    let (reader, writer) = pipe().map_err(Error::system("make a pipe"))?;
    let second = writer.try_clone().map_err(Error::system("make a pipe"))?;
    let arguments = stack.run_arguments();
    let mut command = Command::new(arguments[0]);
    command
        .args(&arguments[1..])
        .args(["--rm", image, "bench"])
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(second);
    let began = Instant::now();
    let spawned = command.spawn();
    let mut child = spawned.map_err(Error::system("start ctr"))?;
    let name = command::show(&command);
    // The command still holds the write ends of the pipe.
    drop(command);
    let (mut reader, mut line) = (BufReader::new(reader), String::new());
    let read = reader.read_line(&mut line);
    let (elapsed, then) = (began.elapsed(), then());
    read.map_err(Error::system("read a container's output"))?;
    let mut rest = String::new();
    reader
        .read_to_string(&mut rest)
        .map_err(Error::system("read a container's output"))?;
    let status = command::wait(&mut child, DEADLINE)?;
    if !line.starts_with(first_words(recipe)) || !status.is_some_and(|status| status.success()) {
        return Err(Error::Command {
            command: name,
            status: status.map_or("no end".into(), |status| status.to_string()),
            output: line + &rest,
        });
    }
    Ok((milliseconds(elapsed), then))
}

/// What the first line of an image's output begins with.
fn first_words(recipe: &Recipe) -> &'static str {
    recipe.prints.unwrap_or(match recipe.name {
        "openjdk" => "openjdk version",
        _ => "",
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Adds to containerd's configuration what only this benchmark needs.
fn configure() -> Result<()> {
    let files = config::files(Flavour::Native);
    let (path, mut text) = files
        .into_iter()
        .find(|(path, _)| path == CONFIG)
        .ok_or_else(|| Error::invalid(CONFIG, "no such file of a host"))?;
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let others = peers::ALL.iter().filter(|peer| peer.is_there().is_ok());
    let more = [("erofs", "erofs"), (second::NAME, "walking")].into_iter();
    let more = more.chain(others.clone().map(|peer| (peer.name, "walking")));
    for (snapshotter, differ) in more {
        let _ = write!(
            text,
            "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
             platform = 'linux/{architecture}'\nsnapshotter = '{snapshotter}'\n\
             differ = '{differ}'\n"
        );
    }
    text.push_str(&second::containerd());
    for peer in others {
        text.push_str(&daemon::proxy(peer.name, peer.socket, peer.root));
    }
    fs::write(&path, text).map_err(Error::file("write", Path::new(&path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_takes_its_time_for_bytes_and_round_trips() {
        let [slow, _] = NETWORKS;
        assert!((slow.wire_ms(12_500_000) - 1000.0).abs() < 1e-6);
        assert!((slow.round_trips_ms(3) - 60.0).abs() < 1e-6);
    }
}
