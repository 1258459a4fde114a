//! `integration host native` and `integration host vm`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::command::exit_code;
use crate::error::{Error, Result};
use crate::hosts::vm::Stream;
use crate::hosts::{HostOptions, NativeHost, Service, VmHost, VmOptions};
use crate::setup::tools;
use crate::sys;

#[derive(Debug, Subcommand)]
pub(super) enum Host {
    /// In namespaces of this machine: full speed, no cgroup controllers
    #[command(after_help = "Examples:
  integration host native                              a shell with containerd running
  integration host native -- ctr version
  integration host native --push python3-numpy -- ctr images pull --snapshotter xebec \\
      127.0.0.1:5000/python3-numpy:v1
  integration host native --bare -- xebec features     no services
The repository is visible at its own path, the corpus in /srv/corpus; the product's release
binaries are in the PATH ($XEBEC_BIN_DIR for others). The exit code is the command's.")]
    Native(Native),
    /// In an emulated machine: systemd, every cgroup controller, slow
    #[command(after_help = "Examples:
  integration host vm -- cat /sys/fs/cgroup/cgroup.controllers
  integration host vm --image busybox -- sh -c 'ls /srv/corpus'
  integration host vm --bare --file target/x/release/probe -- /job/files/probe")]
    Vm(Vm),
}

#[derive(Debug, Args)]
pub(super) struct Native {
    #[command(flatten)]
    services: ServiceArgs,
    /// Push this image of the corpus into the registry first; may be repeated
    #[arg(long, value_name = "IMAGE")]
    push: Vec<String>,
    /// Keep the services' logs in this directory
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// containerd 1.6 or 1.7 and its ctr instead of 2.1
    #[arg(long, value_name = "VERSION", value_parser = ["1.6", "1.7"])]
    containerd: Option<String>,
    /// Other clients too: ctr-remote, docker-buildx
    #[arg(long)]
    clients: bool,
    /// Absent cgroup controllers are an error, as they are on a real host
    #[arg(long)]
    strict_cgroups: bool,
    /// The command; a shell if there is none
    #[arg(last = true)]
    argv: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct Vm {
    #[command(flatten)]
    services: ServiceArgs,
    /// Make this image of the corpus visible in /srv/corpus; may be repeated
    #[arg(long, value_name = "IMAGE")]
    image: Vec<String>,
    /// Make this file visible in /job/files; may be repeated
    #[arg(long)]
    file: Vec<PathBuf>,
    /// Add this word to the kernel's command line; may be repeated
    #[arg(long, value_name = "WORD")]
    kernel: Vec<String>,
    /// Stop the machine after so many seconds
    #[arg(long, default_value_t = 600)]
    deadline: u64,
    /// The command
    #[arg(last = true, required = true)]
    argv: Vec<OsString>,
}

#[derive(Debug, Args)]
struct ServiceArgs {
    /// No services at all
    #[arg(long, conflicts_with_all = ["tls", "private"])]
    bare: bool,
    /// The registry with TLS too (registry.xebec.test)
    #[arg(long)]
    tls: bool,
    /// The registry that asks for a password too (private.xebec.test:5443, xebec, lazily)
    #[arg(long)]
    private: bool,
}

impl ServiceArgs {
    fn services(&self) -> Vec<Service> {
        if self.bare {
            return Vec::new();
        }
        let mut services = vec![Service::Registry, Service::Snapshotter, Service::Containerd];
        services.extend(self.tls.then_some(Service::TlsRegistry));
        services.extend(self.private.then_some(Service::PrivateRegistry));
        services
    }
}

pub(super) fn run(host: Host) -> Result<i32> {
    match host {
        Host::Native(native) => run_native(native),
        Host::Vm(vm) => run_vm(vm),
    }
}

fn run_native(arguments: Native) -> Result<i32> {
    let mut options = HostOptions {
        services: arguments.services.services(),
        ignore_missing_controllers: !arguments.strict_cgroups,
        keep_logs: arguments.logs,
        ..HostOptions::bare()
    };
    options = match arguments.containerd.as_deref() {
        Some("1.6") => options.old_containerd(&tools::CONTAINERD_1_6),
        Some(_) => options.old_containerd(&tools::CONTAINERD_1_7),
        None => options,
    };
    if arguments.clients {
        options = options.tool(&tools::CLIENTS);
    }
    let host = NativeHost::start(options)?;
    for image in &arguments.push {
        host.push(image)?;
    }
    let argv = if arguments.argv.is_empty() {
        vec!["bash".into()]
    } else {
        arguments.argv
    };
    // Where there is no such directory in the host, the command starts in the root directory.
    let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let mut command = host.command_in(&directory, &argv);
    let mut child = command
        .spawn()
        .map_err(Error::system("start the command"))?;
    // Ctrl-C is for the command; this process stays to clean up and to pass its exit code on.
    sys::ignore_signals(&[libc::SIGINT, libc::SIGQUIT]).map_err(Error::system("ignore SIGINT"))?;
    let status = child
        .wait()
        .map_err(Error::system("wait for the command"))?;
    Ok(exit_code(status))
}

fn run_vm(arguments: Vm) -> Result<i32> {
    let options = VmOptions {
        services: arguments.services.services(),
        images: arguments.image,
        files: arguments.file,
        kernel: arguments.kernel,
        deadline: Duration::from_secs(arguments.deadline),
    };
    VmHost::start(options, &arguments.argv)?.finish(|stream, bytes| {
        // If nobody reads any more, the job goes on and its status still counts.
        let _ = match stream {
            Stream::Stdout => std::io::stdout().write_all(bytes),
            Stream::Stderr => std::io::stderr().write_all(bytes),
        };
    })
}
