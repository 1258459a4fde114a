//! Many containers: started one after the other and side by side, and idle all at once.

use std::time::{Duration, Instant};

use super::super::measure::wall_ms;
use super::super::parallel::for_each;
use super::super::shims::{self, Shim};
use super::super::stats::quantile;
use super::super::suite::{Task, Unit};
use super::exits::{Exit, Exits};
use super::{name, run_command, start_container};
use crate::error::Result;

/// Containers of a sample without and with others beside them.
const ALONE: u32 = 16;
const BESIDE: u32 = 48;
/// How many are started side by side while exits are timed.
const MOST: u32 = 16;
/// Containers whose exits are timed at once: enough for a 99th percentile.
const TIMED: u32 = 128;
/// Containers that idle all at once, and how many are started side by side.
const IDLE: u32 = 200;
const AT_ONCE: u32 = 4;
/// How long the event of an exit may take until it counts as lost.
const LOST: Duration = Duration::from_mins(1);

/// `ctr run --rm` by all shims.
pub(super) fn throughput() -> Vec<Task<'static>> {
    let rows = &[
        ("ctr run --rm, 1 at once", Unit::Milliseconds),
        ("ctr run --rm, 4 at once", Unit::Milliseconds),
        ("ctr run --rm, 16 at once", Unit::Milliseconds),
        ("exit to event, 16 at once: p50", Unit::Milliseconds),
        ("exit to event, 16 at once: p99", Unit::Milliseconds),
    ];
    super::all_rows(rows, |shim, round| {
        let alone = run_many(shim, round, ALONE, 1)?;
        let beside = run_many(shim, round, BESIDE, 4)?;
        let exits = Exits::follow(|n| {
            wall_ms(&run_command(shim, &["--rm"], &name(shim, "herald", n))).map(drop)
        })?;
        let crowded = run_many(shim, round, TIMED, MOST)?;
        let ids: Vec<_> = (0..TIMED).map(|n| many(shim, round, MOST, n)).collect();
        let [median, most] = latencies(&exits.of(&ids, LOST)?);
        Ok(vec![alone, beside, crowded, median, most])
    })
}

/// Milliseconds a container, of `count` that are run to their ends, `at_once` side by side.
fn run_many(shim: &Shim, round: u32, count: u32, at_once: u32) -> Result<f64> {
    let began = Instant::now();
    for_each(count, at_once, |n| {
        let id = many(shim, round, at_once, n);
        wall_ms(&run_command(shim, &["--rm"], &id)).map(drop)
    })?;
    Ok(began.elapsed().as_secs_f64() * 1e3 / f64::from(count))
}

fn many(shim: &Shim, round: u32, at_once: u32, number: u32) -> String {
    name(shim, &format!("many-{round}-{at_once}"), number)
}

/// Median and 99th percentile of the milliseconds from exits to their arrivals.
fn latencies(exits: &[Exit]) -> [f64; 2] {
    let ms = |exit: &Exit| match exit.arrived.duration_since(exit.at) {
        Ok(elapsed) => elapsed.as_secs_f64() * 1e3,
        // The clock was set back meanwhile.
        Err(_) => 0.0,
    };
    let mut sorted: Vec<_> = exits.iter().map(ms).collect();
    sorted.sort_by(f64::total_cmp);
    [0.5, 0.99].map(|q| quantile(&sorted, q))
}

/// Memory of many idle containers, a shim each.
pub(super) fn idle() -> Vec<Task<'static>> {
    let rows = &[
        ("200 idle containers: PSS", Unit::Kibibytes),
        ("200 idle containers: RSS", Unit::Kibibytes),
        ("200 idle containers: threads a shim", Unit::Threads),
        ("200 idle containers: fds a shim", Unit::Descriptors),
    ];
    super::all_rows(rows, |shim, round| {
        let ids: Vec<_> = (0..IDLE)
            .map(|n| name(shim, &format!("idle-{round}"), n))
            .collect();
        let id = |n: u32| &ids[n as usize];
        let started = for_each(IDLE, AT_ONCE, |n| start_container(shim, id(n), &[]));
        let weight = started.and_then(|()| shims::weigh_idle(&ids));
        let removed = for_each(IDLE, AT_ONCE, |n| shims::remove(id(n)));
        let weight = weight?;
        removed?;
        let each = |total: u64| total as f64 / f64::from(IDLE);
        Ok(vec![
            weight.pss as f64,
            weight.rss as f64,
            each(weight.threads),
            each(weight.fds),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn latencies_are_from_the_exit_to_its_arrival() {
        let exit = |ms| Exit {
            at: SystemTime::UNIX_EPOCH,
            arrived: SystemTime::UNIX_EPOCH + Duration::from_millis(ms),
        };
        let exits: Vec<_> = (0..=100).rev().map(exit).collect();
        let [median, most] = latencies(&exits);
        assert!((median - 50.0).abs() < 1e-9 && (most - 99.0).abs() < 1e-9);
    }
}
