//! Id maps of a user namespace, as the kernel reads them.

use std::fmt::Write as _;

use oci_spec::runtime::{Linux, LinuxIdMapping};

use super::{FieldError, ProcessPlan};

/// Texts for `uid_map` and `gid_map` (`user_namespaces(7)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMaps {
    pub(crate) uid: String,
    pub(crate) gid: String,
}

impl IdMaps {
    /// `linux.uidMappings` and `linux.gidMappings`, when there are any.
    pub(crate) fn from_spec(linux: &Linux) -> Option<Self> {
        let uid = linux.uid_mappings().as_deref().filter(|m| !m.is_empty())?;
        let gid = linux.gid_mappings().as_deref().filter(|m| !m.is_empty())?;
        Some(Self {
            uid: map_text(uid),
            gid: map_text(gid),
        })
    }
}

/// The process's own ids must have a meaning in the new user namespace.
pub(super) fn check_user(linux: &Linux, process: &ProcessPlan) -> Result<(), FieldError> {
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    let groups = process.groups.iter().map(|gid| gid.as_raw());
    let ids = [
        ("uid", "setuid", "uid", process.uid, uids),
        ("gid", "setgid", "gid", process.gid, gids),
    ]
    .into_iter()
    .chain(groups.map(|gid| ("additionalGids", "setgroups", "gid", gid, gids)));
    for (field, call, kind, id, mappings) in ids {
        if !is_mapped(mappings, id) {
            let reason = format!("cannot {call} to unmapped {kind} {id} in user namespace");
            return Err(FieldError::new(&format!("process.user.{field}"), &reason));
        }
    }
    Ok(())
}

fn is_mapped(mappings: &[LinuxIdMapping], id: u32) -> bool {
    mappings
        .iter()
        .any(|map| (id.checked_sub(map.container_id())).is_some_and(|offset| offset < map.size()))
}

/// One line an extent: id inside, id outside, length.
pub(super) fn map_text(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, map| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} {} {}",
            map.container_id(),
            map.host_id(),
            map.size()
        );
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_mapped_inside_an_extent_only() {
        let map = |inside: u32| -> LinuxIdMapping {
            let text = format!(r#"{{"containerID":{inside},"hostID":7000,"size":10}}"#);
            serde_json::from_str(&text).expect("valid")
        };
        let maps = [map(0), map(100)];
        for (id, expected) in [(0, true), (9, true), (10, false), (99, false), (109, true)] {
            assert_eq!(is_mapped(&maps, id), expected, "{id}");
        }
    }

    #[test]
    fn extents_are_written_inside_first() {
        let map: LinuxIdMapping =
            serde_json::from_str(r#"{"containerID":0,"hostID":100000,"size":65536}"#)
                .expect("valid");
        assert_eq!(map_text(&[map, map]), "0 100000 65536\n0 100000 65536\n");
    }
}
