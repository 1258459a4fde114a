//! Id maps of a user namespace, as the kernel reads them.

use std::fmt::Write as _;

use oci_spec::runtime::{Linux, LinuxIdMapping};

/// Texts for `uid_map` and `gid_map` (`user_namespaces(7)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMaps {
    pub(crate) uid: String,
    pub(crate) gid: String,
}

impl IdMaps {
    /// `linux.uidMappings` and `linux.gidMappings`, when there are any.
    pub(super) fn from_spec(linux: &Linux) -> Option<Self> {
        let uid = linux.uid_mappings().as_deref().filter(|m| !m.is_empty())?;
        let gid = linux.gid_mappings().as_deref().filter(|m| !m.is_empty())?;
        Some(Self {
            uid: map_text(uid),
            gid: map_text(gid),
        })
    }
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
    fn extents_are_written_inside_first() {
        let map: LinuxIdMapping =
            serde_json::from_str(r#"{"containerID":0,"hostID":100000,"size":65536}"#)
                .expect("valid");
        assert_eq!(map_text(&[map, map]), "0 100000 65536\n0 100000 65536\n");
    }
}
