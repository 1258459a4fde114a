//! What a container stands on: the caller's privileges, namespaces that exist already, and the
//! trees of the host. Without privileges a user namespace comes first, and all else from inside.

use oci_spec::runtime::{Linux, Spec};

use crate::caller::Caller;
use crate::error::Result;
use crate::launch::{
    Joined, OpenNamespace, check_maps, no_user_namespace, open_joins, open_trees_inside,
    own_user_namespace, shares_network, user_namespace,
};
use crate::plan::{FieldError, IdMaps, LaunchPlan, RootChange};
use crate::rootfs::{HostTrees, RootTree};
use crate::spec::Namespaces;

/// Found out before anything of the container exists.
#[derive(Debug)]
pub(super) struct Foundation {
    pub(super) caller: Caller,
    opened: Vec<OpenNamespace>,
}

/// Opens what the configuration joins; refuses what cannot work with it or with this caller.
pub(super) fn lay(
    spec: &Spec,
    namespaces: &mut Namespaces,
) -> Result<std::result::Result<Foundation, FieldError>> {
    let caller = Caller::probe()?;
    Ok(check(spec, namespaces, caller))
}

fn check(
    spec: &Spec,
    namespaces: &mut Namespaces,
    caller: Caller,
) -> std::result::Result<Foundation, FieldError> {
    let refuse = |field: &str, reason: &str| FieldError {
        field: field.to_owned(),
        reason: reason.to_owned(),
    };
    if !caller.privileged && !namespaces.has(libc::CLONE_NEWUSER as u64) {
        let reason = "rootless container requires user namespaces";
        return Err(refuse("linux.namespaces", reason));
    }
    let opened = open_joins(namespaces)?;
    let linux = spec.linux().as_ref();
    if let Some(maps) = linux.and_then(IdMaps::from_spec) {
        check_maps(&opened, &maps)?;
    }
    let of_network = linux.and_then(network_sysctl);
    if let Some(key) = of_network
        && shares_network(namespaces, &opened)
    {
        let reason = format!("sysctl {key:?} not allowed in host network namespace");
        return Err(refuse(&format!("linux.sysctl[{key}]"), &reason));
    }
    Ok(Foundation { caller, opened })
}

/// Some kernel parameter of the network, in either spelling.
fn network_sysctl(linux: &Linux) -> Option<&str> {
    let keys = linux.sysctl().as_ref()?.keys();
    let mut keys = keys.filter(|key| key.starts_with("net.") || key.starts_with("net/"));
    keys.next().map(String::as_str)
}

impl Foundation {
    /// Opens the trees; makes the user namespace for them when only its root may do that.
    pub(super) fn open(self, plan: &mut LaunchPlan) -> Result<(Joined, HostTrees)> {
        let create = plan.namespaces.create;
        let offsets = plan.time_offsets.take();
        let mut joined = Joined::new(self.opened, create, offsets, self.caller.privileged);
        if self.caller.privileged {
            let trees = HostTrees::open(&plan.rootfs, plan.root_change, user_namespace)?;
            match (plan.root_change, &trees.root) {
                (RootChange::Enter, RootTree::Namespace(_)) => joined.leave_mounts_out(),
                (RootChange::Enter, RootTree::Clone(_)) => plan.root_change = RootChange::Pivot,
                _ => {}
            }
            return Ok((joined, trees));
        }
        if let Some(maps) = plan.id_maps.take() {
            joined.enter_first(own_user_namespace(&maps)?);
        }
        let trees = match joined.user() {
            Some(user) => {
                let open = || HostTrees::open(&plan.rootfs, plan.root_change, no_user_namespace);
                open_trees_inside(user, open)?
            }
            None => HostTrees::open(&plan.rootfs, plan.root_change, user_namespace)?,
        };
        Ok((joined, trees))
    }
}
