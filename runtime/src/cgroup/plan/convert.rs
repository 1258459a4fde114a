//! Conversions from the runtime spec's cgroup v1 numbers to cgroup v2 values, as runc does them.

/// What `cpu.weight` is unless it is set.
pub(in crate::cgroup) const DEFAULT_WEIGHT: u64 = 100;

/// `cpu.shares` (2..=262144, default 1024) to `cpu.weight` (1..=10000, default 100); 0 is unset.
///
/// The quadratic in log2(shares) goes through the minimum, the default and the maximum of both.
pub(in crate::cgroup) fn shares_to_weight(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            Some(10_f64.powf(exponent).ceil() as u64)
        }
    }
}

/// `blockIO.weight` (10..=1000) to `io.weight` (1..=10000), linearly; 0 is unset.
pub(in crate::cgroup) fn blkio_to_io_weight(weight: u16) -> Option<u64> {
    match weight {
        0 => None,
        1..10 => Some(1),
        _ => Some(1 + (u64::from(weight) - 10) * 9999 / 990),
    }
}

/// `memory.swap` counts memory and swap together; `memory.swap.max` counts swap alone. 0 is
/// unset and -1 unlimited, in the result too.
pub(in crate::cgroup) fn swap_alone(
    memory_and_swap: i64,
    memory: i64,
) -> Result<i64, &'static str> {
    match (memory_and_swap, memory) {
        (0, -1) => Ok(-1),
        (-1 | 0, _) | (_, -1) => Ok(memory_and_swap),
        (_, 0) => Err("unable to set swap limit without memory limit"),
        (_, ..0) => Err("invalid memory value"),
        _ if memory_and_swap < memory => Err("memory+swap limit should be >= memory limit"),
        _ => Ok(memory_and_swap - memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_to_weights_through_minimum_default_and_maximum() {
        let table = [
            (0, None),
            (1, Some(1)),
            (2, Some(1)),
            (512, Some(59)),
            (1024, Some(100)),
            (2048, Some(174)),
            (262_144, Some(10_000)),
            (u64::MAX, Some(10_000)),
        ];
        for (shares, weight) in table {
            assert_eq!(shares_to_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn block_io_weights_map_linearly() {
        for (weight, io) in [
            (0, None),
            (10, Some(1)),
            (500, Some(4950)),
            (1000, Some(10_000)),
        ] {
            assert_eq!(blkio_to_io_weight(weight), io, "{weight}");
        }
    }

    #[test]
    fn swap_is_what_is_left_of_the_sum() {
        let table = [
            (0, -1, Ok(-1)),
            (0, 100, Ok(0)),
            (-1, 100, Ok(-1)),
            (300, 100, Ok(200)),
            (100, 100, Ok(0)),
            (300, -1, Ok(300)),
            (300, 0, Err("unable to set swap limit without memory limit")),
            (50, 100, Err("memory+swap limit should be >= memory limit")),
            (50, -7, Err("invalid memory value")),
        ];
        for (sum, memory, swap) in table {
            assert_eq!(swap_alone(sum, memory), swap, "{sum} {memory}");
        }
    }
}
