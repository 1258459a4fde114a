//! The formats of cgroup v2's statistics files (Documentation/admin-guide/cgroup-v2.rst).

use super::{CpuStats, IoDevice, MemoryEvents, Pressure, Psi, RdmaDevice};

/// A file of one number, where "max" is `u64::MAX`.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

/// The pairs of a flat keyed file; lines of another shape are left out.
pub(super) fn flat(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

pub(super) fn cpu(text: &str) -> CpuStats {
    let mut stats = CpuStats::default();
    for (key, value) in flat(text) {
        match key {
            "usage_usec" => stats.usage_usec = value,
            "user_usec" => stats.user_usec = value,
            "system_usec" => stats.system_usec = value,
            "nr_periods" => stats.nr_periods = value,
            "nr_throttled" => stats.nr_throttled = value,
            "throttled_usec" => stats.throttled_usec = value,
            "nr_bursts" => stats.nr_bursts = value,
            "burst_usec" => stats.burst_usec = value,
            _ => {}
        }
    }
    stats
}

impl MemoryEvents {
    /// Parses the content of `memory.events`.
    pub fn parse(text: &str) -> Self {
        let mut events = Self::default();
        for (key, value) in flat(text) {
            match key {
                "low" => events.low = value,
                "high" => events.high = value,
                "max" => events.max = value,
                "oom" => events.oom = value,
                "oom_kill" => events.oom_kill = value,
                "oom_group_kill" => events.oom_group_kill = value,
                _ => {}
            }
        }
        events
    }
}

/// `None` if there is no "some" line; "full" is missing in `cpu.pressure` before Linux 5.13.
pub(super) fn psi(text: &str) -> Option<Psi> {
    let line = |kind| {
        text.lines()
            .find_map(|line| pressure(line.strip_prefix(kind)?))
    };
    Some(Psi {
        some: line("some ")?,
        full: line("full ").unwrap_or_default(),
    })
}

fn pressure(pairs: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for pair in pairs.split_whitespace() {
        let (key, value) = pair.split_once('=')?;
        match key {
            "avg10" => pressure.avg10 = value.parse().ok()?,
            "avg60" => pressure.avg60 = value.parse().ok()?,
            "avg300" => pressure.avg300 = value.parse().ok()?,
            "total" => pressure.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(pressure)
}

/// A line of `io.stat`; `None` for devices without traffic, whose lines have no keys.
pub(super) fn io_device(line: &str) -> Option<IoDevice> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut device = IoDevice {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..IoDevice::default()
    };
    let mut known = false;
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let field = match key {
            "rbytes" => &mut device.rbytes,
            "wbytes" => &mut device.wbytes,
            "rios" => &mut device.rios,
            "wios" => &mut device.wios,
            _ => continue,
        };
        *field = value.parse().ok()?;
        known = true;
    }
    known.then_some(device)
}

/// A line of `rdma.current` or `rdma.max`.
pub(super) fn rdma_device(line: &str) -> Option<RdmaDevice> {
    let mut words = line.split_whitespace();
    let mut device = RdmaDevice {
        device: words.next()?.to_owned(),
        ..RdmaDevice::default()
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = if value == "max" {
            u32::MAX
        } else {
            value.parse().ok()?
        };
        match key {
            "hca_handle" => device.hca_handles = value,
            "hca_object" => device.hca_objects = value,
            _ => {}
        }
    }
    Some(device)
}

/// The page size of a `hugetlb.SIZE.current` file.
pub(super) fn huge_page_size(file: &str) -> Option<String> {
    let size = file.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
    (!size.contains('.')).then(|| size.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_be_unlimited() {
        for (text, value) in [("42\n", Some(42)), ("max\n", Some(u64::MAX)), ("x", None)] {
            assert_eq!(number(text), value, "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_left_out() {
        let stats = cpu("usage_usec 3\nuser_usec 2\nsystem_usec 1\nfuture 9\nnr_bursts 4\nodd\n");
        let expected = CpuStats {
            usage_usec: 3,
            user_usec: 2,
            system_usec: 1,
            nr_bursts: 4,
            ..stats
        };
        assert_eq!(stats, expected);
        assert_eq!(stats.throttled_usec, 0);
        let events = MemoryEvents::parse("low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n");
        assert_eq!(
            (events.oom, events.oom_kill, events.oom_group_kill),
            (3, 4, 0)
        );
    }

    #[test]
    fn pressure_has_some_and_perhaps_full() {
        let text = "some avg10=0.50 avg60=1.25 avg300=0.00 total=77\n\
                    full avg10=0.10 avg60=0.00 avg300=0.00 total=7\n";
        let both = psi(text).expect("both lines");
        assert_eq!(
            (both.some.avg60, both.some.total, both.full.total),
            (1.25, 77, 7)
        );
        let some = psi(text.lines().next().expect("a line")).expect("one line");
        assert_eq!(some.full, Pressure::default());
        assert_eq!(psi(""), None);
    }

    #[test]
    fn io_lines_without_traffic_are_left_out() {
        let line = "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0";
        let device = io_device(line).expect("traffic");
        assert_eq!((device.major, device.minor, device.wios), (8, 16, 353));
        assert_eq!(io_device("7:0"), None);
        assert_eq!(io_device(""), None);
    }

    #[test]
    fn rdma_and_huge_page_names_are_taken_from_their_files() {
        let device = rdma_device("mlx4_0 hca_handle=2 hca_object=max").expect("a device");
        assert_eq!((device.hca_handles, device.hca_objects), (2, u32::MAX));
        assert_eq!(
            huge_page_size("hugetlb.2MB.current").as_deref(),
            Some("2MB")
        );
        assert_eq!(huge_page_size("hugetlb.2MB.rsvd.current"), None);
        assert_eq!(huge_page_size("memory.current"), None);
    }
}
