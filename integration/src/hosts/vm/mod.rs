//! The VM host: an emulated machine with systemd and every cgroup controller.
//!
//! [`machine`] is the QEMU process, [`guest`] is what runs in it. A job goes in on a second disk
//! and comes out through virtio ports. Emulated time means nothing: this host is for behaviour.

pub(crate) mod guest;
pub(crate) mod machine;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::guest::Job;
use self::machine::MachinePlan;
use super::keeper::{Keeper, Payload};
use super::services::Service;
use crate::command::{Output, tail};
use crate::corpus;
use crate::error::{Error, Result};
use crate::paths::{PRODUCT, Paths};
use crate::setup::{disk, rootfs};

/// What a VM host is to be like.
#[derive(Debug, Clone)]
pub struct VmOptions {
    /// Daemons that run before the command starts.
    pub services: Vec<Service>,
    /// Images of the corpus that the command can push, below /srv/corpus.
    pub images: Vec<String>,
    /// Other programs and files that the command can see in /job/files.
    pub files: Vec<PathBuf>,
    /// Words for the kernel's command line.
    pub kernel: Vec<String>,
    /// When the machine is stopped if the command has not ended.
    pub deadline: Duration,
}

impl Default for VmOptions {
    /// The plain registry, the snapshotter and containerd; ten minutes.
    fn default() -> Self {
        Self {
            services: vec![Service::Registry, Service::Snapshotter, Service::Containerd],
            images: Vec::new(),
            files: Vec::new(),
            kernel: Vec::new(),
            deadline: Duration::from_mins(10),
        }
    }
}

/// How often a machine is booted at most. The emulator's processors see each other's changes of
/// code late now and then, and the kernel, which patches itself while it boots, then panics on a
/// breakpoint of its own.
const BOOTS: u32 = 3;

/// A running machine. It ends when this is dropped or when this process dies.
#[derive(Debug)]
pub struct VmHost {
    paths: Paths,
    plan: MachinePlan,
    boots: u32,
    keeper: Keeper,
    end: Instant,
    deadline: Duration,
    stdout: Tail,
    stderr: Tail,
}

impl VmHost {
    /// Boots a machine, runs one command in it as root, and gives what it left.
    pub fn run(options: VmOptions, argv: &[impl AsRef<str>]) -> Result<Output> {
        let argv: Vec<_> = argv
            .iter()
            .map(|word| OsString::from(word.as_ref()))
            .collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = Self::start(options, &argv)?.finish(|stream, bytes| match stream {
            Stream::Stdout => stdout.extend_from_slice(bytes),
            Stream::Stderr => stderr.extend_from_slice(bytes),
        })?;
        let [stdout, stderr] = [stdout, stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// Boots a machine that runs one command and then powers off.
    pub fn start(options: VmOptions, argv: &[OsString]) -> Result<Self> {
        let paths = Paths::find()?;
        let plan = MachinePlan {
            program: paths.program.clone(),
            rootfs: rootfs::find(&paths)?,
            disk: disk::find(&paths)?,
            content: content(&paths, &options)?,
            kernel: options.kernel,
            job: Job {
                argv: argv.to_vec(),
                services: options.services,
            },
        };
        let keeper = Keeper::start(&paths, "vm", Payload::Machine(plan.clone()))?;
        let [stdout, stderr] = outputs(&keeper);
        Ok(Self {
            paths,
            plan,
            boots: 1,
            keeper,
            end: Instant::now() + options.deadline,
            deadline: options.deadline,
            stdout,
            stderr,
        })
    }

    /// Boots once more, if the kernel died before the job began and may be given another chance.
    fn boot_again(&mut self) -> Result<bool> {
        let panicked = self.console().contains("Kernel panic");
        if !panicked || self.boots == BOOTS || self.report()?.begun {
            return Ok(false);
        }
        eprintln!("vm: the kernel panicked before the job began; booting again");
        self.boots += 1;
        self.keeper = Keeper::start(&self.paths, "vm", Payload::Machine(self.plan.clone()))?;
        [self.stdout, self.stderr] = outputs(&self.keeper);
        Ok(true)
    }

    /// Waits for the command's end and hands its output over as it comes; its exit status.
    pub fn finish(mut self, mut sink: impl FnMut(Stream, &[u8])) -> Result<i32> {
        loop {
            let ended = self.keeper.wait(Duration::from_millis(100))?.is_some();
            self.stdout.read(|bytes| sink(Stream::Stdout, bytes))?;
            self.stderr.read(|bytes| sink(Stream::Stderr, bytes))?;
            if ended && !self.boot_again()? {
                return self.status();
            }
            if Instant::now() > self.end {
                return Err(Error::Deadline {
                    command: "a job of the VM host".into(),
                    seconds: self.deadline.as_secs(),
                    output: self.console(),
                });
            }
        }
    }

    fn status(&self) -> Result<i32> {
        self.report()?.status.ok_or_else(|| Error::Host {
            host: "vm",
            reason: format!(
                "it ended before its job did; its console:\n{}",
                self.console()
            ),
        })
    }

    fn report(&self) -> Result<Report> {
        let path = self.keeper.scratch.join(machine::STATUS);
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        Ok(Report::read(&text))
    }

    /// The end of what the machine's console says.
    fn console(&self) -> String {
        let bytes = fs::read(self.keeper.scratch.join(machine::CONSOLE)).unwrap_or_default();
        tail(&String::from_utf8_lossy(&bytes), 8192).to_owned()
    }
}

/// One of a command's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a machine has said about its job.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    begun: bool,
    status: Option<i32>,
}

impl Report {
    fn read(text: &str) -> Self {
        let mut lines = text.lines();
        Self {
            begun: lines.next() == Some(guest::BEGUN),
            status: lines.next().and_then(|line| line.parse().ok()),
        }
    }
}

fn outputs(keeper: &Keeper) -> [Tail; 2] {
    [machine::STDOUT, machine::STDERR].map(|name| Tail {
        path: keeper.scratch.join(name),
        file: None,
    })
}

/// A file that another process appends to.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn read(&mut self, mut sink: impl FnMut(&[u8])) -> Result<()> {
        if self.file.is_none() && self.path.exists() {
            self.file = Some(File::open(&self.path).map_err(Error::file("open", &self.path))?);
        }
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut bytes)
                .map_err(Error::file("read", &self.path))?;
        }
        if !bytes.is_empty() {
            sink(&bytes);
        }
        Ok(())
    }
}

/// What goes onto the job's disk: (file here, path there).
fn content(paths: &Paths, options: &VmOptions) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut content = vec![(paths.program.clone(), Path::new(guest::PROGRAM).to_owned())];
    for name in PRODUCT {
        let binary = paths.binaries.join(name);
        if binary.exists() {
            content.push((binary, Path::new("bin").join(name)));
        }
    }
    for image in &options.images {
        content.push((corpus::find(paths, image)?, Path::new("corpus").join(image)));
    }
    for file in &options.files {
        let name = file
            .file_name()
            .ok_or_else(|| Error::invalid("a job's file", "no name"))?;
        content.push((file.clone(), Path::new("files").join(name)));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_never_began_its_job_is_told_from_one_that_broke_off() {
        let report = |begun, status| Report { begun, status };
        assert_eq!(Report::read(""), report(false, None));
        assert_eq!(Report::read("begun\n"), report(true, None));
        assert_eq!(Report::read("begun\n3\n"), report(true, Some(3)));
    }
}
