//! A cgroup's statistics as containerd's clients read them.

use xebec_proto::cgroup2_stats as proto;
use xebec_runtime::cgroup::{
    CgroupError, CpuStats, HugetlbStats, IoStats, MemoryEvents, MemoryStats, Pressure, Psi,
    RdmaDevice, Stats,
};

use crate::error::Error;

/// A cgroup file that cannot be read.
pub(super) fn unreadable(error: CgroupError) -> Error {
    Error::Io {
        what: "read the cgroup".into(),
        source: std::io::Error::other(error),
    }
}

/// The message of a cgroup's statistics. What the host does not count stays absent.
pub(super) fn metrics(stats: &Stats) -> proto::Metrics {
    proto::Metrics {
        pids: stats.pids.map(|pids| proto::PidsStat {
            current: pids.current,
            limit: pids.limit,
        }),
        cpu: stats.cpu.map(cpu),
        memory: stats.memory.as_ref().map(memory),
        rdma: stats.rdma.as_ref().map(|rdma| proto::RdmaStat {
            current: rdma.current.iter().map(rdma_entry).collect(),
            limit: rdma.limit.iter().map(rdma_entry).collect(),
        }),
        io: stats.io.as_ref().map(io),
        hugetlb: stats.hugetlb.iter().flatten().map(hugetlb).collect(),
        memory_events: stats.memory_events.map(memory_events),
        network: Vec::new(),
    }
}

fn cpu(cpu: CpuStats) -> proto::CpuStat {
    proto::CpuStat {
        usage_usec: cpu.usage_usec,
        user_usec: cpu.user_usec,
        system_usec: cpu.system_usec,
        nr_periods: cpu.nr_periods,
        nr_throttled: cpu.nr_throttled,
        throttled_usec: cpu.throttled_usec,
        psi: cpu.psi.map(psi),
        nr_bursts: cpu.nr_bursts,
        burst_usec: cpu.burst_usec,
    }
}

fn memory(memory: &MemoryStats) -> proto::MemoryStat {
    let stat = |name: &str| memory.stat.get(name).copied().unwrap_or(0);
    proto::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: stat("workingset_refault"),
        workingset_activate: stat("workingset_activate"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: memory.usage,
        usage_limit: memory.usage_limit,
        swap_usage: memory.swap_usage.unwrap_or(0),
        swap_limit: memory.swap_limit.unwrap_or(0),
        max_usage: memory.max_usage.unwrap_or(0),
        swap_max_usage: memory.swap_max_usage.unwrap_or(0),
        psi: memory.psi.map(psi),
        workingset_refault_anon: stat("workingset_refault_anon"),
        workingset_refault_file: stat("workingset_refault_file"),
        workingset_activate_anon: stat("workingset_activate_anon"),
        workingset_activate_file: stat("workingset_activate_file"),
    }
}

fn memory_events(events: MemoryEvents) -> proto::MemoryEvents {
    proto::MemoryEvents {
        low: events.low,
        high: events.high,
        max: events.max,
        oom: events.oom,
        oom_kill: events.oom_kill,
        oom_group_kill: events.oom_group_kill,
    }
}

fn io(io: &IoStats) -> proto::IoStat {
    let usage = io.devices.iter().map(|device| proto::IoEntry {
        major: device.major,
        minor: device.minor,
        rbytes: device.rbytes,
        wbytes: device.wbytes,
        rios: device.rios,
        wios: device.wios,
    });
    proto::IoStat {
        usage: usage.collect(),
        psi: io.psi.map(psi),
    }
}

fn hugetlb(pages: &HugetlbStats) -> proto::HugeTlbStat {
    proto::HugeTlbStat {
        current: pages.current,
        max: pages.max,
        pagesize: pages.page_size.clone(),
        failcnt: pages.failcnt,
    }
}

fn rdma_entry(device: &RdmaDevice) -> proto::RdmaEntry {
    proto::RdmaEntry {
        device: device.device.clone(),
        hca_handles: device.hca_handles,
        hca_objects: device.hca_objects,
    }
}

fn psi(psi: Psi) -> proto::PsiStats {
    proto::PsiStats {
        some: Some(pressure(psi.some)),
        full: Some(pressure(psi.full)),
    }
}

fn pressure(pressure: Pressure) -> proto::PsiData {
    proto::PsiData {
        avg10: pressure.avg10,
        avg60: pressure.avg60,
        avg300: pressure.avg300,
        total: pressure.total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xebec_runtime::cgroup::PidsStats;

    #[test]
    fn figures_go_to_their_fields_and_absent_ones_stay_absent() {
        let stat = [("anon", 11), ("workingset_refault_file", 12)];
        let stats = Stats {
            pids: Some(PidsStats {
                current: 3,
                limit: u64::MAX,
            }),
            memory: Some(MemoryStats {
                usage: 4096,
                stat: stat.map(|(key, value)| (key.to_owned(), value)).into(),
                ..MemoryStats::default()
            }),
            ..Stats::default()
        };
        let metrics = metrics(&stats);
        assert_eq!(metrics.pids.unwrap().limit, u64::MAX);
        let memory = metrics.memory.unwrap();
        assert_eq!(
            (memory.usage, memory.anon, memory.workingset_refault_file),
            (4096, 11, 12)
        );
        assert!(metrics.cpu.is_none() && metrics.io.is_none() && metrics.rdma.is_none());
    }
}
