//! The machine's side of a job: a systemd unit starts this program from the job's disk.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use serde::{Deserialize, Serialize};

use crate::command::exit_code;
use crate::error::{Error, Result};
use crate::hosts::services::{Flavour, Service, Services};
use crate::hosts::site::Site;
use crate::paths::PRODUCT;

/// The hidden subcommand.
pub(crate) const GUEST: &str = "guest";
/// Name of the unit.
pub(crate) const UNIT_NAME: &str = "xebec-job.service";
/// Label of the job's disk.
pub(super) const JOB_LABEL: &str = "xebec-job";
/// Where this program is on the job's disk.
pub(super) const PROGRAM: &str = "integration";
/// Where the job is described on the job's disk.
pub(super) const JOB_FILE: &str = "job.json";
/// Virtio ports for standard output, standard error and the exit status.
pub(super) const PORTS: [&str; 3] = ["xebec.stdout", "xebec.stderr", "xebec.status"];

/// The unit: mounts the disk, runs the job, powers the machine off whatever became of it.
pub(crate) const UNIT: &str = "\
[Unit]
Description=The one job of this machine
After=dbus.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
TimeoutStartSec=infinity
Delegate=yes
ExecStartPre=/bin/udevadm settle
ExecStartPre=/bin/mkdir -p /job
ExecStartPre=/bin/mount -o ro /dev/disk/by-label/xebec-job /job
ExecStart=/job/integration guest
[Install]
WantedBy=multi-user.target
";

/// What a machine is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) argv: Vec<OsString>,
    pub(crate) services: Vec<Service>,
}

/// What the status port says before the job; the exit status follows on a line of its own.
pub(super) const BEGUN: &str = "begun";

/// Exit status of a job whose services did not start.
const NOT_STARTED: i32 = 125;

/// Runs the job and reports its exit status.
pub(crate) fn run() -> Result<()> {
    let [stdout, mut stderr, mut status] = open_ports()?;
    writeln!(status, "{BEGUN}").map_err(Error::system("report the beginning"))?;
    let errors = stderr.try_clone().map_err(Error::system("share a port"))?;
    let code = match perform(stdout, errors) {
        Ok(code) => code,
        Err(error) => {
            writeln!(stderr, "{error}").map_err(Error::system("report an error"))?;
            NOT_STARTED
        }
    };
    writeln!(status, "{code}").map_err(Error::system("report the job's status"))
}

fn open_ports() -> Result<[File; 3]> {
    let open = |port: &str| {
        let path = Path::new("/dev/virtio-ports").join(port);
        File::options()
            .write(true)
            .open(&path)
            .map_err(Error::file("open", &path))
    };
    let [stdout, stderr, status] = PORTS;
    Ok([open(stdout)?, open(stderr)?, open(status)?])
}

fn perform(stdout: File, stderr: File) -> Result<i32> {
    let disk = Path::new("/job");
    let file = disk.join(JOB_FILE);
    let text = fs::read(&file).map_err(Error::file("read", &file))?;
    let job: Job = serde_json::from_slice(&text).map_err(|e| Error::invalid("the job", e))?;
    link(&disk.join("corpus"), Path::new("/srv/corpus"))?;
    for name in PRODUCT {
        link(
            &disk.join("bin").join(name),
            &Path::new("/usr/local/bin").join(name),
        )?;
    }
    let site = Site::Here;
    let logs = Path::new("/var/log/xebec");
    let mut services = Services::prepare(site.clone(), Flavour::Vm, logs)?;
    services.start(&job.services)?;
    let mut command = site.command(&job.argv);
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let status = command.status().map_err(Error::system("start the job"))?;
    Ok(exit_code(status))
}

fn link(target: &Path, path: &Path) -> Result<()> {
    if target.exists() {
        symlink(target, path).map_err(Error::file("link", path))?;
    }
    Ok(())
}
