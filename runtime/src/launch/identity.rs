//! Who the process is: user, groups and capabilities, in the child.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::error::{At as _, Failure, Step};
use crate::plan::ProcessPlan;

/// Becomes the user of the plan, with all capabilities still permitted: they are dropped last.
pub(super) fn take(plan: &ProcessPlan) -> Result<(), Failure<'static>> {
    if let Some(capabilities) = &plan.capabilities {
        bound(capabilities.bounding).at(Step::Capabilities, b"bounding set")?;
    }
    change_user(plan).at(Step::User, b"")?;
    if plan.uid != 0 {
        // Leaving root has emptied the effective set; what is permitted is wanted once more.
        raise_effective().at(Step::Capabilities, b"")?;
    }
    Ok(())
}

fn change_user(plan: &ProcessPlan) -> Result<(), Errno> {
    if plan.uid != 0 {
        // Until execve, which takes that back.
        set_keep_capabilities(true)?;
    }
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    if !plan.keep_groups {
        match set_thread_groups(&plan.groups) {
            // As in `become_root`: setgroups is denied where there are none to set.
            Err(Errno::PERM) if plan.groups.is_empty() => {}
            result => result?,
        }
    }
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

fn raise_effective() -> Result<(), Errno> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    set_capabilities(None, sets)
}

/// Drops from the bounding set whatever the plan does not name.
fn bound(keep: u64) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = 1 << number;
        if keep & capability != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(capability)) {
            Ok(()) => {}
            // Past the last capability that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Sets the final capabilities, ambient ones included.
pub(super) fn drop_capabilities(plan: &ProcessPlan) -> Result<(), Failure<'static>> {
    let Some(plan) = &plan.capabilities else {
        return Ok(());
    };
    let set = CapabilitySet::from_bits_retain;
    set_capabilities(
        None,
        CapabilitySets {
            effective: set(plan.effective),
            permitted: set(plan.permitted),
            inheritable: set(plan.inheritable),
        },
    )
    .at(Step::Capabilities, b"")?;
    clear_ambient_capability_set().at(Step::Capabilities, b"ambient set")?;
    let mut left = plan.possible_ambient();
    while left != 0 {
        let lowest = left & left.wrapping_neg();
        configure_capability_in_ambient_set(set(lowest), true)
            .at(Step::Capabilities, b"ambient set")?;
        left &= !lowest;
    }
    Ok(())
}
