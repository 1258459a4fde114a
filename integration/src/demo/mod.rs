//! `integration demo`: an image is converted, pushed and started lazily over a slow link, and
//! started by what another node has recorded of its start, and by a full pull, over the same link, by
//! nodes that have never seen it.

mod outcome;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;

pub use outcome::{EXPECTED, Leg, Outcome};

use crate::command::{self, DEADLINE};
use crate::ctr::{Ctr, Stack};
use crate::error::{Error, Result};
use crate::hosts::{HostOptions, NativeHost, Service};
use crate::paths::Paths;
use crate::progress::Step;
use crate::proxy::{Proxy, Shape};

const IMAGE: &str = "python3-numpy";

/// Takes away what a node knows of images, mounts that wait for the next daemon included; without
/// it the node has never seen any. Its arguments are roots of other snapshotters.
///
/// containerd's many files are emptied, not deleted: ext4 without a journal passes over the inodes that
/// were deleted in the last minutes, one by one, whenever it makes a file, and an unpack of ten thousand
/// files that follows a deletion of as many takes several seconds more than on any other day.
pub const FORGET: &str = "for tree in /var/lib/xebec-snapshotter/lazy/mnt/*; do \
                          umount -l \"$tree\" 2> /dev/null || true; done; \
                          rm -rf /var/lib/xebec-snapshotter; \
                          grave=/var/lib/forgotten/$(date +%s%N); mkdir -p $grave; \
                          for state in /var/lib/containerd \"$@\"; do \
                          [ ! -e $state ] || mv $state $grave; done; \
                          find $grave -type f -size +0 -exec truncate -s 0 {} +";

/// Where the profile of the first start lies in the meantime.
const PROFILE: &str = "/tmp/profile.json";

/// The ways that are compared, with their names in the table.
const LAZY: (&str, Stack) = ("xebec, lazily", Stack::XEBEC);
const GUIDED: (&str, Stack) = ("xebec, with a profile", Stack::XEBEC);
const FULL: (&str, Stack) = ("overlayfs + runc, by a full pull", Stack::RUNC);

/// Runs the demo; fails if what it promises does not come true.
pub fn main() -> Result<i32> {
    let artifacts = artifacts()?;
    let outcome = run(&artifacts)?;
    let json = serde_json::to_string_pretty(&outcome).map_err(|e| Error::invalid("outcome", e))?;
    let result = artifacts.join("result.json");
    fs::write(&result, json + "\n").map_err(Error::file("write", &result))?;

    println!("\n{}", outcome.table());
    println!("link: 100 Mbit/s, 20 ms round trip; bytes are what left the registry");
    println!("figures: {}", result.display());
    println!("logs:    {}", artifacts.join("logs").display());
    let broken = outcome.broken_promises();
    for promise in &broken {
        eprintln!("demo: {promise}");
    }
    Ok(i32::from(!broken.is_empty()))
}

/// An empty directory for what the demo leaves on purpose.
fn artifacts() -> Result<PathBuf> {
    let directory = Paths::find()?.cache.join("demo");
    if directory.exists() {
        fs::remove_dir_all(&directory).map_err(Error::file("empty", &directory))?;
    }
    fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
    Ok(directory)
}

fn run(artifacts: &Path) -> Result<Outcome> {
    let step = Step::begin("start a host with a registry, containerd and xebec-snapshotter");
    let keep_logs = Some(artifacts.join("logs"));
    let host = NativeHost::start(HostOptions {
        keep_logs,
        ..HostOptions::default()
    })?;
    step.done("");

    let step = Step::begin(format!("push {IMAGE} to the registry"));
    let ordinary = host.push(IMAGE)?;
    step.done(&ordinary);

    let step = Step::begin("convert it to eStargz and push that");
    let converted = format!("{}/{IMAGE}:lazy", Service::REGISTRY);
    host.check(&[
        "xebec-snapshotter",
        "image",
        "convert",
        &ordinary,
        &converted,
    ])?;
    step.done(&converted);

    let lazy = leg(&host, LAZY, &converted)?;
    let profile = ["xebec-snapshotter", "profile"];
    let export = ["export", "--output", PROFILE, &converted];
    stop_node(&host)?;
    host.check(&[&profile[..], &export].concat())?;
    forget_images(&host)?;
    host.check(&[&profile[..], &["import", PROFILE]].concat())?;
    let guided = leg(&host, GUIDED, &converted)?;
    forget_images(&host)?;
    let full = leg(&host, FULL, &ordinary)?;
    Ok(Outcome { lazy, guided, full })
}

/// What makes the host a node; a profile is written at the latest when it ends.
const NODE: [Service; 2] = [Service::Containerd, Service::Snapshotter];

fn stop_node(host: &NativeHost) -> Result<()> {
    NODE.into_iter().try_for_each(|service| host.stop(service))
}

/// Makes the host a node that has never seen an image.
fn forget_images(host: &NativeHost) -> Result<()> {
    let step = Step::begin("make the host a node that has never seen the image");
    stop_node(host)?;
    host.check_sh(FORGET)?;
    host.start_services(&NODE)?;
    step.done("");
    Ok(())
}

/// Pulls and runs `reference` over a link of its own.
fn leg(host: &NativeHost, (name, stack): (&'static str, Stack), reference: &str) -> Result<Leg> {
    let registry: SocketAddr = Service::REGISTRY
        .parse()
        .map_err(|e| Error::invalid("the registry's address", e))?;
    let link = host.proxy(registry, Shape::new(20, 100.0))?;
    let remote = through(&link, host, reference)?;

    let step = Step::begin(format!("start {reference}: {name}"));
    let began = Instant::now();
    Ctr::new(host).pull(&remote, stack.snapshotter)?;
    step.detail(format!(
        "pulled after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let mut argv = stack.run_arguments().to_vec();
    argv.extend(["--rm", &remote, "demo"]);
    let mut container = host.spawn(&argv)?;
    let first = first_line(&mut container)?;
    let first_output = began.elapsed();
    let output = first + &rest(container)?;
    let bytes = link.counters().down;
    step.done(output.trim());

    println!("{output}");
    Ok(Leg {
        name,
        first_output,
        bytes,
        output,
    })
}

/// The same image by way of the link, which the host's clients are told of.
fn through(link: &Proxy, host: &NativeHost, reference: &str) -> Result<String> {
    let address = link.address();
    let hosts = format!("/etc/containerd/certs.d/{address}/hosts.toml");
    host.write_file(hosts, format!("server = \"http://{address}\"\n"))?;
    Ok(reference.replacen(Service::REGISTRY, &address.to_string(), 1))
}

/// The first line that a container writes, as soon as it is there.
fn first_line(container: &mut Child) -> Result<String> {
    let mut line = String::new();
    if let Some(stdout) = container.stdout.as_mut() {
        // One byte at a time would do as well: what follows the line is read by `rest`.
        let mut reader = BufReader::with_capacity(1, stdout);
        reader
            .read_line(&mut line)
            .map_err(Error::system("read the container's output"))?;
    }
    Ok(line)
}

/// Waits for the container's end; what it wrote after its first line.
fn rest(mut container: Child) -> Result<String> {
    let status = command::wait(&mut container, DEADLINE)?;
    if status.is_none() {
        container
            .kill()
            .map_err(Error::system("kill the container's ctr"))?;
    }
    let mut text = String::new();
    let mut errors = String::new();
    if let (Some(stdout), Some(stderr)) = (container.stdout.as_mut(), container.stderr.as_mut()) {
        stdout
            .read_to_string(&mut text)
            .map_err(Error::system("read the container's output"))?;
        stderr
            .read_to_string(&mut errors)
            .map_err(Error::system("read the errors of ctr"))?;
    }
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => Err(Error::Command {
            command: "ctr run".to_owned(),
            status: status.to_string(),
            output: errors,
        }),
        None => Err(Error::Deadline {
            command: "ctr run".to_owned(),
            seconds: DEADLINE.as_secs(),
            output: errors,
        }),
    }
}
