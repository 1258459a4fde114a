//! What idle containers weigh: one, and each further one of a pod.

use super::super::measure::Weight;
use super::super::shims::{self, Shim};
use super::super::suite::{Task, Unit};
use super::{name, remove_all, start_container};
use crate::error::Result;

/// Containers of a pod beyond the first one.
const FURTHER: u32 = 9;

/// The weights of all shims.
pub(super) fn tasks() -> Vec<Task<'static>> {
    let rows = &[
        ("idle shim: private", Unit::Kibibytes),
        ("idle shim: PSS", Unit::Kibibytes),
        ("idle shim: RSS", Unit::Kibibytes),
        ("idle shim: threads", Unit::Threads),
        ("idle shim: fds", Unit::Descriptors),
        ("further container: private", Unit::Kibibytes),
        ("further container: fds", Unit::Descriptors),
        ("pod of 10: threads", Unit::Threads),
    ];
    super::all_rows(rows, weigh)
}

fn weigh(shim: &Shim, round: u32) -> Result<Vec<f64>> {
    let pod = name(shim, "pod", round);
    let ids: Vec<_> = (0..=FURTHER).map(|n| format!("{pod}-{n}")).collect();
    let weights = weigh_pod(shim, &ids);
    let removed = remove_all(&ids);
    let (one, ten) = weights?;
    removed?;
    Ok(figures(one, ten))
}

/// The shim's weight with the first container of a pod, and with all.
fn weigh_pod(shim: &Shim, ids: &[String]) -> Result<(Weight, Weight)> {
    let group = format!("io.containerd.runc.v2.group={}", ids[0]);
    let start = |id: &String| start_container(shim, id, &["--annotation", &group]);
    let (first, further) = ids.split_at(1);
    first.iter().try_for_each(start)?;
    let one = shims::weigh_idle(first)?;
    further.iter().try_for_each(start)?;
    Ok((one, shims::weigh_idle(ids)?))
}

fn figures(one: Weight, ten: Weight) -> Vec<f64> {
    let further = |of: fn(Weight) -> u64| (of(ten) as f64 - of(one) as f64) / f64::from(FURTHER);
    vec![
        one.private as f64,
        one.pss as f64,
        one.rss as f64,
        one.threads as f64,
        one.fds as f64,
        further(|weight| weight.private),
        further(|weight| weight.fds),
        ten.threads as f64,
    ]
}
