//! `linux.resources` as a list of cgroup v2 file writes; pure.
//!
//! Every entry knows the spec field it came from and the controller it needs, so that the host's
//! refusal can be told in the words of the configuration.

pub(super) mod convert;
mod present;

use std::borrow::Cow;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::Controllers;
use super::error::{CgroupError, Result};

pub use present::Present;

/// What the kernel's refusal of an entry means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnRefusal {
    /// An error.
    Fail,
    /// Nothing, if the file does not exist: the kernel lacks the feature and the value asks for
    /// nothing that would need it.
    IgnoreAbsent,
    /// If the file does not exist, another one serves.
    Instead {
        /// The other file.
        file: &'static str,
        /// What to write there.
        value: String,
    },
    /// EINVAL means that another entry has to come first: it is tried again at the end.
    Postpone,
}

/// One write to a cgroup file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub file: Cow<'static, str>,
    /// What is written, in one write(2).
    pub value: String,
    /// The spec field the value came from.
    pub field: Cow<'static, str>,
    /// Name of the controller whose file it is; "cgroup" for core files.
    pub controller: Cow<'static, str>,
    /// What a refusal means.
    pub on_refusal: OnRefusal,
}

/// A memory limit that must not be below the present use
/// (`linux.resources.memory.checkBeforeUpdate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageCheck {
    /// `limit` or `swap`.
    pub field: &'static str,
    /// In bytes.
    pub limit: u64,
}

/// Everything `linux.resources` asks for, but devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePlan {
    entries: Vec<Entry>,
    usage_checks: Vec<UsageCheck>,
    ignored: Vec<&'static str>,
    warnings: Vec<&'static str>,
}

impl ResourcePlan {
    /// Translates the resources of a container; zero means unset, as in runc.
    pub fn from_spec(resources: &LinuxResources) -> Result<Self> {
        let mut plan = Self::default();
        if let Some(pids) = resources.pids() {
            plan.pids(pids.limit());
        }
        if let Some(memory) = resources.memory() {
            plan.memory(memory)?;
        }
        if let Some(io) = resources.block_io() {
            plan.io(io);
        }
        if let Some(cpu) = resources.cpu() {
            plan.cpu(cpu)?;
        }
        plan.hugetlb(resources)?;
        plan.rdma(resources)?;
        if resources
            .network()
            .as_ref()
            .is_some_and(|network| network.class_id().is_some())
        {
            plan.ignored.push("linux.resources.network");
        }
        plan.unified(resources)?;
        plan.let_idle_win();
        Ok(plan)
    }

    /// The writes, in the order they are to be made.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Limits to compare with `memory.current` before anything is written.
    pub fn usage_checks(&self) -> &[UsageCheck] {
        &self.usage_checks
    }

    /// Fields that are set and that cgroup v2 has no equivalent for; runc leaves them out too.
    pub fn ignored(&self) -> &[&'static str] {
        &self.ignored
    }

    /// What was asked for and contradicts itself.
    pub fn warnings(&self) -> &[&'static str] {
        &self.warnings
    }

    /// The controllers that are needed.
    pub fn controllers(&self) -> Controllers {
        self.entries
            .iter()
            .filter(|entry| entry.on_refusal != OnRefusal::IgnoreAbsent)
            .filter_map(|entry| Controllers::by_name(&entry.controller))
            .fold(Controllers::NONE, Controllers::union)
    }

    /// Takes out a limit of one process.
    pub(crate) fn take_one_task(&mut self) -> Self {
        let one = |entry: &mut Entry| entry.file == "pids.max" && entry.value == "1";
        Self {
            entries: self.entries.extract_if(.., one).collect(),
            ..Self::default()
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn push(
        &mut self,
        controller: &'static str,
        file: &'static str,
        field: &'static str,
        value: String,
    ) {
        self.entries.push(Entry {
            file: Cow::Borrowed(file),
            value,
            field: Cow::Borrowed(field),
            controller: Cow::Borrowed(controller),
            on_refusal: OnRefusal::Fail,
        });
    }

    fn last_refusal(&mut self, on_refusal: OnRefusal) {
        if let Some(entry) = self.entries.last_mut() {
            entry.on_refusal = on_refusal;
        }
    }

    fn pids(&mut self, limit: i64) {
        if limit != 0 {
            let value = if limit < 0 {
                "max".to_owned()
            } else {
                limit.to_string()
            };
            self.push("pids", "pids.max", "linux.resources.pids.limit", value);
        }
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<()> {
        const LIMIT: &str = "linux.resources.memory.limit";
        const RESERVATION: &str = "linux.resources.memory.reservation";
        const SWAP: &str = "linux.resources.memory.swap";
        let limit = memory.limit().unwrap_or(0);
        let sum = memory.swap().unwrap_or(0);
        let swap = convert::swap_alone(sum, limit)
            .map_err(|reason| invalid(SWAP, format!("{reason} (swap {sum}, limit {limit})")))?;
        // An equal sum and limit mean no swap at all; without a sum, swap stays as it is.
        if swap != 0 || sum > 0 {
            let value = limit_text(SWAP, swap)?;
            let harmless = matches!(value.as_str(), "max" | "0");
            self.push("memory", "memory.swap.max", SWAP, value);
            if harmless {
                self.last_refusal(OnRefusal::IgnoreAbsent);
            }
        }
        if limit != 0 {
            self.push("memory", "memory.max", LIMIT, limit_text(LIMIT, limit)?);
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0) {
            self.push(
                "memory",
                "memory.low",
                RESERVATION,
                limit_text(RESERVATION, low)?,
            );
        }
        if memory.check_before_update() == Some(true) {
            let checks = [("swap", sum), ("limit", limit)];
            self.usage_checks
                .extend(checks.into_iter().filter(|(_, limit)| *limit > 0).map(
                    |(field, limit)| UsageCheck {
                        field,
                        limit: limit.unsigned_abs(),
                    },
                ));
        }
        if memory.kernel_tcp().is_some() {
            self.ignored.push("linux.resources.memory.kernelTCP");
        }
        if memory.swappiness().is_some() {
            self.ignored.push("linux.resources.memory.swappiness");
        }
        if memory.disable_oom_killer() == Some(true) {
            self.ignored.push("linux.resources.memory.disableOOMKiller");
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<()> {
        if let Some(idle) = cpu.idle() {
            self.push(
                "cpu",
                "cpu.idle",
                "linux.resources.cpu.idle",
                idle.to_string(),
            );
        }
        if let Some(weight) = cpu.shares().and_then(convert::shares_to_weight) {
            self.push(
                "cpu",
                "cpu.weight",
                "linux.resources.cpu.shares",
                weight.to_string(),
            );
            // The default weight, which containerd always asks for, limits nothing.
            if weight == convert::DEFAULT_WEIGHT {
                self.last_refusal(OnRefusal::IgnoreAbsent);
            }
        }
        // The kernel wants burst <= quota at any moment: lowering works burst first, raising
        // quota first.
        if let Some(burst) = cpu.burst() {
            self.push(
                "cpu",
                "cpu.max.burst",
                "linux.resources.cpu.burst",
                burst.to_string(),
            );
            if cpu.quota().is_some_and(|quota| quota != 0) {
                self.last_refusal(OnRefusal::Postpone);
            }
        }
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        if quota.is_some() || period.is_some() {
            let field = if quota.is_some() {
                "linux.resources.cpu.quota"
            } else {
                "linux.resources.cpu.period"
            };
            let quota = quota
                .filter(|q| *q > 0)
                .map_or("max".to_owned(), |q| q.to_string());
            let value = format!("{quota} {}", period.unwrap_or(100_000));
            self.push("cpu", "cpu.max", field, value);
        }
        let cpuset = [
            (cpu.cpus(), "cpuset.cpus", "linux.resources.cpu.cpus"),
            (cpu.mems(), "cpuset.mems", "linux.resources.cpu.mems"),
        ];
        for (list, file, field) in cpuset {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                check_one_line(field, list)?;
                self.push("cpuset", file, field, list.clone());
            }
        }
        if cpu.realtime_runtime().is_some_and(|v| v != 0) {
            self.ignored.push("linux.resources.cpu.realtimeRuntime");
        }
        if cpu.realtime_period().is_some_and(|v| v != 0) {
            self.ignored.push("linux.resources.cpu.realtimePeriod");
        }
        Ok(())
    }

    fn io(&mut self, io: &LinuxBlockIo) {
        const WEIGHT: &str = "linux.resources.blockIO.weight";
        const WEIGHT_DEVICE: &str = "linux.resources.blockIO.weightDevice";
        let weight = io.weight().unwrap_or(0);
        if let Some(converted) = convert::blkio_to_io_weight(weight) {
            self.push("io", "io.bfq.weight", WEIGHT, weight.to_string());
            self.last_refusal(OnRefusal::Instead {
                file: "io.weight",
                value: converted.to_string(),
            });
        }
        for device in io.weight_device().iter().flatten() {
            let weight = device.weight().unwrap_or(0);
            if let Some(converted) = convert::blkio_to_io_weight(weight) {
                let node = format!("{}:{}", device.major(), device.minor());
                self.push(
                    "io",
                    "io.bfq.weight",
                    WEIGHT_DEVICE,
                    format!("{node} {weight}"),
                );
                let value = format!("{node} {converted}");
                self.last_refusal(OnRefusal::Instead {
                    file: "io.weight",
                    value,
                });
            }
        }
        if io.leaf_weight().is_some_and(|weight| weight != 0) {
            self.ignored.push("linux.resources.blockIO.leafWeight");
        }
        let read_bps = "linux.resources.blockIO.throttleReadBpsDevice";
        self.throttle(io.throttle_read_bps_device().as_deref(), "rbps", read_bps);
        let write_bps = "linux.resources.blockIO.throttleWriteBpsDevice";
        self.throttle(io.throttle_write_bps_device().as_deref(), "wbps", write_bps);
        let read_iops = "linux.resources.blockIO.throttleReadIOPSDevice";
        self.throttle(
            io.throttle_read_iops_device().as_deref(),
            "riops",
            read_iops,
        );
        let write_iops = "linux.resources.blockIO.throttleWriteIOPSDevice";
        self.throttle(
            io.throttle_write_iops_device().as_deref(),
            "wiops",
            write_iops,
        );
    }

    fn throttle(
        &mut self,
        devices: Option<&[LinuxThrottleDevice]>,
        key: &str,
        field: &'static str,
    ) {
        for device in devices.unwrap_or_default() {
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
            self.push("io", "io.max", field, value);
        }
    }

    fn hugetlb(&mut self, resources: &LinuxResources) -> Result<()> {
        for limit in resources.hugepage_limits().iter().flatten() {
            let size = limit.page_size();
            let field = format!("linux.resources.hugepageLimits[{size}]");
            let sane = size.ends_with('B') && size.bytes().all(|b| b.is_ascii_alphanumeric());
            if !sane {
                return Err(invalid(
                    &field,
                    "not a page size such as \"2MB\"".to_owned(),
                ));
            }
            for (kind, on_refusal) in [
                ("max", OnRefusal::Fail),
                ("rsvd.max", OnRefusal::IgnoreAbsent),
            ] {
                self.entries.push(Entry {
                    file: Cow::Owned(format!("hugetlb.{size}.{kind}")),
                    value: limit_text(&field, limit.limit())?,
                    field: Cow::Owned(field.clone()),
                    controller: Cow::Borrowed("hugetlb"),
                    on_refusal,
                });
            }
        }
        Ok(())
    }

    fn rdma(&mut self, resources: &LinuxResources) -> Result<()> {
        let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
        devices.sort_by_key(|(name, _)| name.as_str());
        for (device, limit) in devices {
            let field = format!("linux.resources.rdma[{device}]");
            check_one_line(&field, device)?;
            let pair = |key: &str, limit: Option<u32>| {
                limit.map_or_else(String::new, |limit| format!(" {key}={limit}"))
            };
            let handles = pair("hca_handle", limit.hca_handles());
            let objects = pair("hca_object", limit.hca_objects());
            self.entries.push(Entry {
                file: Cow::Borrowed("rdma.max"),
                value: format!("{device}{handles}{objects}"),
                field: Cow::Owned(field),
                controller: Cow::Borrowed("rdma"),
                on_refusal: OnRefusal::Fail,
            });
        }
        Ok(())
    }

    /// An idle cgroup has no weight: the kernel refuses one.
    fn let_idle_win(&mut self) {
        let before = self.entries.len();
        if self
            .entries
            .iter()
            .any(|entry| entry.file == "cpu.idle" && entry.value == "1")
        {
            self.entries.retain(|entry| entry.file != "cpu.weight");
        }
        if self.entries.len() < before {
            // runc's words.
            self.warnings
                .push("unable to apply both cpu.weight and cpu.idle, ignoring cpu.weight");
        }
    }

    /// Raw values come last and so win over what the other fields say; one write a line.
    fn unified(&mut self, resources: &LinuxResources) -> Result<()> {
        let mut keys: Vec<_> = resources.unified().iter().flatten().collect();
        keys.sort_by_key(|(key, _)| key.as_str());
        for (key, value) in keys {
            let field = format!("linux.resources.unified[{key}]");
            if key.contains('/') {
                let reason = format!("unified resource {key:?} must be a file name (no slashes)");
                return Err(invalid(&field, reason));
            }
            let Some((controller, _)) = key.split_once('.').filter(|(name, _)| !name.is_empty())
            else {
                let reason =
                    format!("unified resource {key:?} must be in the form CONTROLLER.PARAMETER");
                return Err(invalid(&field, reason));
            };
            for line in value.lines().filter(|line| !line.is_empty()) {
                self.entries.push(Entry {
                    file: Cow::Owned(key.clone()),
                    value: line.to_owned(),
                    field: Cow::Owned(field.clone()),
                    controller: Cow::Owned(controller.to_owned()),
                    on_refusal: OnRefusal::Fail,
                });
            }
        }
        Ok(())
    }
}

fn invalid(field: &str, reason: String) -> CgroupError {
    CgroupError::Invalid {
        field: field.to_owned(),
        reason,
    }
}

/// A byte count, with -1 for "max".
fn limit_text(field: &str, value: i64) -> Result<String> {
    match value {
        -1 => Ok("max".to_owned()),
        ..-1 => Err(invalid(
            field,
            format!("{value} is neither a limit nor -1 (unlimited)"),
        )),
        _ => Ok(value.to_string()),
    }
}

/// A value that must not smuggle a second line or key into a cgroup file.
fn check_one_line(field: &str, value: &str) -> Result<()> {
    if value.bytes().any(|b| b.is_ascii_control()) {
        return Err(invalid(field, format!("{value:?} has control characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
