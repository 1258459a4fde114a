//! What runs on a host: registries, the snapshotter, containerd.
//!
//! [`config`] and [`trust`] say what files they need; [`Services`] starts them, waits until each
//! answers, and keeps their logs.

pub mod config;
mod trust;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::site::Site;
use crate::command::{self, tail};
use crate::error::{Error, Result};
pub use config::Flavour;

const START_DEADLINE: Duration = Duration::from_mins(1);

/// One of the daemons that a host can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Service {
    /// docker-registry without TLS on [`Service::REGISTRY`].
    Registry,
    /// The same images over TLS under the public-looking name [`Service::TLS_REGISTRY`].
    TlsRegistry,
    /// The same images, but only with [`Service::USER`] and [`Service::PASSWORD`], over TLS, on
    /// [`Service::PRIVATE_REGISTRY`].
    PrivateRegistry,
    /// `xebec-snapshotter serve`.
    Snapshotter,
    /// containerd with CRI, our snapshotter and our runtime.
    Containerd,
}

/// How a service shows that it serves.
#[derive(Debug, Clone, Copy)]
enum Ready {
    Socket(&'static str),
    Port(u16),
}

impl Service {
    /// All of them, in the order of their start.
    pub const ALL: [Self; 5] = [
        Self::Registry,
        Self::TlsRegistry,
        Self::PrivateRegistry,
        Self::Snapshotter,
        Self::Containerd,
    ];
    /// Host and port of the plain registry.
    pub const REGISTRY: &str = "127.0.0.1:5000";
    /// Host of the registry with TLS, on port 443.
    pub const TLS_REGISTRY: &str = "registry.xebec.test";
    /// Host and port of the registry that asks for a password.
    pub const PRIVATE_REGISTRY: &str = "private.xebec.test:5443";
    /// User of the private registry.
    pub const USER: &str = "xebec";
    /// The user's password.
    pub const PASSWORD: &str = "lazily";
    /// Where containerd listens.
    pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
    /// Where the snapshotter listens.
    pub const SNAPSHOTTER_SOCKET: &str = "/run/xebec-snapshotter/snapshotter.sock";

    /// Its name in messages, and of its log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::TlsRegistry => "registry-tls",
            Self::PrivateRegistry => "registry-private",
            Self::Snapshotter => "snapshotter",
            Self::Containerd => "containerd",
        }
    }

    fn argv(self) -> Vec<String> {
        match self {
            Self::Registry | Self::TlsRegistry | Self::PrivateRegistry => {
                let file = config::registry_file(self);
                vec!["docker-registry".into(), "serve".into(), file]
            }
            Self::Snapshotter => vec!["xebec-snapshotter".into(), "serve".into()],
            Self::Containerd => vec!["containerd".into()],
        }
    }

    fn ready(self) -> Ready {
        match self {
            Self::Registry => Ready::Port(5000),
            Self::TlsRegistry => Ready::Port(443),
            Self::PrivateRegistry => Ready::Port(5443),
            Self::Snapshotter => Ready::Socket(Self::SNAPSHOTTER_SOCKET),
            Self::Containerd => Ready::Socket(Self::CONTAINERD_SOCKET),
        }
    }
}

/// The services of one host.
#[derive(Debug)]
pub struct Services {
    site: Site,
    logs: PathBuf,
    running: BTreeMap<Service, Child>,
}

impl Services {
    /// Writes the files that services need; starts nothing. Logs go to the directory `logs`.
    pub fn prepare(site: Site, flavour: Flavour, logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs).map_err(Error::file("create", logs))?;
        for (path, content) in config::files(flavour) {
            site.write(path, content)?;
        }
        trust::install(&site)?;
        Ok(Self {
            site,
            logs: logs.to_owned(),
            running: BTreeMap::new(),
        })
    }

    /// Starts services that are not running yet, side by side, and waits until each answers.
    pub fn start(&mut self, services: &[Service]) -> Result<()> {
        let mut wanted = services.to_vec();
        wanted.retain(|service| !self.running.contains_key(service));
        wanted.sort_unstable();
        wanted.dedup();
        for &service in &wanted {
            if service == Service::PrivateRegistry {
                self.write_passwords()?;
            }
            let process = self.spawn(service)?;
            self.running.insert(service, process);
            if service == Service::Snapshotter {
                // containerd's first calls fail if its snapshotter does not answer yet.
                self.wait_until_ready(service)?;
            }
        }
        wanted
            .into_iter()
            .try_for_each(|service| self.wait_until_ready(service))
    }

    /// Sends `signal` and waits until the service has ended.
    pub fn stop(&mut self, service: Service, signal: Signal) -> Result<()> {
        let Some(mut process) = self.running.remove(&service) else {
            return Ok(());
        };
        let target = match &self.site {
            Site::Here => Pid::from_child(&process),
            Site::Inside { .. } => only_child(&process)?,
        };
        kill_process(target, signal).map_err(Error::system(format!("stop {}", service.name())))?;
        if command::wait(&mut process, START_DEADLINE)?.is_none() {
            process
                .kill()
                .map_err(Error::system(format!("kill {}", service.name())))?;
            return Err(Error::Deadline {
                command: service.name().into(),
                seconds: START_DEADLINE.as_secs(),
                output: self.log_end(service),
            });
        }
        Ok(())
    }

    /// The process of a service that runs here: the way into another host has one of its own.
    pub fn pid(&self, service: Service) -> Option<u32> {
        self.running.get(&service).map(Child::id)
    }

    /// The log of a service so far, of all its runs.
    pub fn log(&self, service: Service) -> String {
        fs::read(self.log_file(service))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The directory of the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    fn log_file(&self, service: Service) -> PathBuf {
        self.logs.join(format!("{}.log", service.name()))
    }

    fn log_end(&self, service: Service) -> String {
        tail(&self.log(service), 4096).to_owned()
    }

    fn spawn(&self, service: Service) -> Result<Child> {
        let path = self.log_file(service);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(Error::file("open", &path))?;
        let errors = log.try_clone().map_err(Error::file("open", &path))?;
        // Its own process group: the terminal's Ctrl-C is for the command, not for services.
        self.site
            .command(&service.argv())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(Error::system(format!("start {}", service.name())))
    }

    fn wait_until_ready(&mut self, service: Service) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        while Instant::now() < end {
            if self.answers(service)? {
                return Ok(());
            }
            if let Some(process) = self.running.get_mut(&service)
                && let Some(status) = process.try_wait().map_err(Error::system("wait"))?
            {
                self.running.remove(&service);
                return Err(Error::Command {
                    command: service.argv().join(" "),
                    status: status.to_string(),
                    output: self.log_end(service),
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        let (service_name, seconds) = (service.name(), START_DEADLINE.as_secs());
        Err(Error::NotReady {
            service: service_name,
            seconds,
            log: self.log_end(service),
        })
    }

    fn answers(&self, service: Service) -> Result<bool> {
        match service.ready() {
            Ready::Socket(path) => Ok(UnixStream::connect(self.site.path(path)).is_ok()),
            Ready::Port(port) => self
                .site
                .in_network(|| TcpStream::connect(("127.0.0.1", port)).is_ok()),
        }
    }

    fn write_passwords(&self) -> Result<()> {
        let argv = [
            "htpasswd",
            "-nbB",
            "-C",
            "4",
            Service::USER,
            Service::PASSWORD,
        ];
        let line = command::check(&mut self.site.command(&argv), command::DEADLINE)?;
        self.site.write(config::PASSWORDS, line)
    }
}

impl Drop for Services {
    /// In a native host they end with the host; here they would go on.
    fn drop(&mut self) {
        for process in self.running.values_mut() {
            // One that has ended by itself cannot be killed, which is as good.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The command itself is the only child of the process that led it into the host.
fn only_child(entrance: &Child) -> Result<Pid> {
    let id = entrance.id();
    let path = PathBuf::from(format!("/proc/{id}/task/{id}/children"));
    let list = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let child = list
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok());
    child
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::invalid("the children of a service's entrance", "there is none"))
}
