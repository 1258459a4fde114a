//! What a cgroup has used so far. A figure whose file the kernel or the host does not offer is
//! absent, never zero.

mod parse;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use serde::Serialize;

use super::error::{CgroupError, Result};
use super::files::{self, io_error};
use super::{Cgroup, Controllers};

/// Statistics of a cgroup: bytes, microseconds and counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// `pids.*`
    pub pids: Option<PidsStats>,
    /// `cpu.stat`; its times are there even without the controller.
    pub cpu: Option<CpuStats>,
    /// `memory.*`
    pub memory: Option<MemoryStats>,
    /// `memory.events`
    pub memory_events: Option<MemoryEvents>,
    /// `io.*`
    pub io: Option<IoStats>,
    /// `hugetlb.*`, one entry a page size.
    pub hugetlb: Option<Vec<HugetlbStats>>,
    /// `rdma.*`
    pub rdma: Option<RdmaStats>,
}

/// Numbers of processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `u64::MAX` is unlimited.
    pub limit: u64,
}

/// Processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CpuStats {
    /// All of it.
    pub usage_usec: u64,
    /// In user mode.
    pub user_usec: u64,
    /// In the kernel.
    pub system_usec: u64,
    /// Enforcement periods that have passed.
    pub nr_periods: u64,
    /// Periods in which the quota ran out.
    pub nr_throttled: u64,
    /// Time the processes had to wait for the next period.
    pub throttled_usec: u64,
    /// Periods with a burst.
    pub nr_bursts: u64,
    /// Time used above the quota.
    pub burst_usec: u64,
    /// `cpu.pressure`
    pub psi: Option<Psi>,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryStats {
    /// `memory.current`
    pub usage: u64,
    /// `memory.max`; `u64::MAX` is unlimited.
    pub usage_limit: u64,
    /// `memory.peak`, since Linux 5.19.
    pub max_usage: Option<u64>,
    /// `memory.swap.current`
    pub swap_usage: Option<u64>,
    /// `memory.swap.max`; `u64::MAX` is unlimited.
    pub swap_limit: Option<u64>,
    /// `memory.swap.peak`, since Linux 6.5.
    pub swap_max_usage: Option<u64>,
    /// `memory.stat`, by the kernel's names.
    pub stat: BTreeMap<String, u64>,
    /// `memory.pressure`
    pub psi: Option<Psi>,
}

/// How often limits were met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEvents {
    /// Reclaimed below `memory.low`.
    pub low: u64,
    /// Throttled at `memory.high`.
    pub high: u64,
    /// About to go over `memory.max`.
    pub max: u64,
    /// Allocations that were about to fail.
    pub oom: u64,
    /// Processes killed for want of memory.
    pub oom_kill: u64,
    /// Whole groups killed.
    pub oom_group_kill: u64,
}

/// Block device traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IoStats {
    /// `io.stat`, one entry a device.
    pub devices: Vec<IoDevice>,
    /// `io.pressure`
    pub psi: Option<Psi>,
}

/// Traffic with one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IoDevice {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Read requests.
    pub rios: u64,
    /// Write requests.
    pub wios: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HugetlbStats {
    /// As the kernel spells it: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes in use.
    pub current: u64,
    /// Bytes allowed; `u64::MAX` is unlimited.
    pub max: u64,
    /// Allocations that the limit refused.
    pub failcnt: u64,
}

/// RDMA resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RdmaStats {
    /// In use.
    pub current: Vec<RdmaDevice>,
    /// Allowed.
    pub limit: Vec<RdmaDevice>,
}

/// RDMA resources of one device; `u32::MAX` is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RdmaDevice {
    /// Its name.
    pub device: String,
    /// Handles.
    pub hca_handles: u32,
    /// Objects.
    pub hca_objects: u32,
}

/// Pressure stall information of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Psi {
    /// Some process was waiting.
    pub some: Pressure,
    /// All of them were.
    pub full: Pressure,
}

/// Share of time in percent over 10, 60 and 300 s, and the total in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct Pressure {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

impl Cgroup {
    /// Reads the statistics of all controllers the cgroup has.
    pub fn stats(&self) -> Result<Stats> {
        let have = self.controllers()?;
        let with = |controller| have.contains(controller);
        let mut stats = Stats {
            cpu: self.cpu_stats()?,
            ..Stats::default()
        };
        if with(Controllers::PIDS) {
            stats.pids = self.pids_stats()?;
        }
        if with(Controllers::MEMORY) {
            stats.memory = self.memory_stats()?;
            stats.memory_events = self.memory_events()?;
        }
        if with(Controllers::IO) {
            stats.io = self.io_stats()?;
        }
        if with(Controllers::HUGETLB) {
            stats.hugetlb = Some(self.hugetlb_stats()?);
        }
        if with(Controllers::RDMA) {
            stats.rdma = self.rdma_stats()?;
        }
        Ok(stats)
    }

    /// `memory.events`; `None` without the memory controller.
    pub fn memory_events(&self) -> Result<Option<MemoryEvents>> {
        let text = self.read("memory.events")?;
        Ok(text.map(|text| MemoryEvents::parse(&text)))
    }

    /// `memory.events`, open for reading and polling; `None` without the memory controller.
    /// Poll for `POLLPRI` after each read from the beginning and compare `oom_kill`.
    pub fn oom_events(&self) -> Result<Option<File>> {
        const FILE: &str = "memory.events";
        let fd: rustix::io::Result<OwnedFd> = openat(
            self.fd(),
            FILE,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        match fd {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(io_error("open", &self.full_path().join(FILE), errno)),
        }
    }

    fn read(&self, file: &str) -> Result<Option<String>> {
        files::read_optional(self.fd(), self.full_path(), file)
    }

    fn number(&self, file: &str) -> Result<Option<u64>> {
        let Some(text) = self.read(file)? else {
            return Ok(None);
        };
        parse::number(&text)
            .map(Some)
            .ok_or_else(|| CgroupError::Parse {
                path: self.full_path().join(file),
                reason: format!("{:?} is no number", text.trim()),
            })
    }

    fn psi(&self, file: &str) -> Result<Option<Psi>> {
        Ok(self.read(file)?.and_then(|text| parse::psi(&text)))
    }

    fn pids_stats(&self) -> Result<Option<PidsStats>> {
        let (current, limit) = (self.number("pids.current")?, self.number("pids.max")?);
        Ok(current
            .zip(limit)
            .map(|(current, limit)| PidsStats { current, limit }))
    }

    fn cpu_stats(&self) -> Result<Option<CpuStats>> {
        let Some(text) = self.read("cpu.stat")? else {
            return Ok(None);
        };
        Ok(Some(CpuStats {
            psi: self.psi("cpu.pressure")?,
            ..parse::cpu(&text)
        }))
    }

    fn memory_stats(&self) -> Result<Option<MemoryStats>> {
        let (Some(usage), Some(limit)) =
            (self.number("memory.current")?, self.number("memory.max")?)
        else {
            return Ok(None);
        };
        let stat = self.read("memory.stat")?.unwrap_or_default();
        Ok(Some(MemoryStats {
            usage,
            usage_limit: limit,
            max_usage: self.number("memory.peak")?,
            swap_usage: self.number("memory.swap.current")?,
            swap_limit: self.number("memory.swap.max")?,
            swap_max_usage: self.number("memory.swap.peak")?,
            stat: parse::flat(&stat)
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            psi: self.psi("memory.pressure")?,
        }))
    }

    fn io_stats(&self) -> Result<Option<IoStats>> {
        let Some(text) = self.read("io.stat")? else {
            return Ok(None);
        };
        let devices = text.lines().filter_map(parse::io_device).collect();
        Ok(Some(IoStats {
            devices,
            psi: self.psi("io.pressure")?,
        }))
    }

    fn hugetlb_stats(&self) -> Result<Vec<HugetlbStats>> {
        let mut all = Vec::new();
        for page_size in self.huge_page_sizes()? {
            let value = |kind: &str| self.number(&format!("hugetlb.{page_size}.{kind}"));
            let (current, max) = (value("current")?, value("max")?);
            let events = self
                .read(&format!("hugetlb.{page_size}.events"))?
                .unwrap_or_default();
            let failcnt = parse::flat(&events)
                .find(|(key, _)| *key == "max")
                .map_or(0, |(_, n)| n);
            if let Some((current, max)) = current.zip(max) {
                all.push(HugetlbStats {
                    page_size,
                    current,
                    max,
                    failcnt,
                });
            }
        }
        Ok(all)
    }

    /// The page sizes the kernel has, by the names of the cgroup's files.
    fn huge_page_sizes(&self) -> Result<Vec<String>> {
        let fail = |errno| io_error("list cgroup", self.full_path(), errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let list = openat(self.fd(), ".", flags, Mode::empty())
            .and_then(Dir::new)
            .map_err(fail)?;
        let mut sizes = Vec::new();
        for entry in list {
            let entry = entry.map_err(fail)?;
            sizes.extend(parse::huge_page_size(&entry.file_name().to_string_lossy()));
        }
        sizes.sort_unstable();
        Ok(sizes)
    }

    fn rdma_stats(&self) -> Result<Option<RdmaStats>> {
        let (current, limit) = (self.read("rdma.current")?, self.read("rdma.max")?);
        let devices = |text: String| text.lines().filter_map(parse::rdma_device).collect();
        Ok(current.zip(limit).map(|(current, limit)| RdmaStats {
            current: devices(current),
            limit: devices(limit),
        }))
    }
}
