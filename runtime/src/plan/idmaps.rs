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

/// Most extents that the kernel takes, and most bytes of their text (`user_namespaces(7)`).
const EXTENTS_MAX: usize = 340;
const TEXT_MAX: usize = 4095;

/// The maps of a new user namespace have to be ones that the kernel takes, with a root in them.
pub(super) fn check(linux: &Linux) -> Result<(), FieldError> {
    for (kind, list) in [("uid", linux.uid_mappings()), ("gid", linux.gid_mappings())] {
        let mappings = list.as_deref().unwrap_or_default();
        let field = format!("linux.{kind}Mappings");
        let text = checked_text(&field, &extents(mappings))?;
        if mappings.len() > EXTENTS_MAX || text.len() > TEXT_MAX {
            let reason = "has more extents than the kernel takes (340, in 4095 bytes of text)";
            return Err(FieldError::new(&field, reason));
        }
        if !is_mapped(mappings, 0) {
            let reason = format!("user namespaces enabled, but no mapping found for {kind} 0");
            return Err(FieldError::new(&field, &reason));
        }
    }
    Ok(())
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
    text(&extents(mappings))
}

/// A range of ids inside that are as many ids outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    inside: u32,
    outside: u32,
    size: u32,
}

pub(super) fn extents(mappings: &[LinuxIdMapping]) -> Vec<Extent> {
    let extent = |map: &LinuxIdMapping| Extent {
        inside: map.container_id(),
        outside: map.host_id(),
        size: map.size(),
    };
    mappings.iter().map(extent).collect()
}

fn text(extents: &[Extent]) -> String {
    extents.iter().fold(String::new(), |mut text, extent| {
        let Extent {
            inside,
            outside,
            size,
        } = extent;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{inside} {outside} {size}");
        text
    })
}

/// Maps of a mount, checked before the kernel refuses them without a word; the error names the
/// entry of `field`.
pub(super) fn checked_text(field: &str, extents: &[Extent]) -> Result<String, FieldError> {
    let overlap = |a: u32, a_size: u32, b: u32, b_size: u32| {
        u64::from(a) < u64::from(b) + u64::from(b_size)
            && u64::from(b) < u64::from(a) + u64::from(a_size)
    };
    for (index, extent) in extents.iter().enumerate() {
        let refuse = |reason: &str| FieldError::new(&format!("{field}[{index}]"), reason);
        let Extent {
            inside,
            outside,
            size,
        } = *extent;
        if size == 0 {
            return Err(refuse("size is 0"));
        }
        if inside.checked_add(size).is_none() || outside.checked_add(size).is_none() {
            return Err(refuse("reaches beyond the last id"));
        }
        let clashes = extents[..index].iter().any(|other| {
            overlap(inside, size, other.inside, other.size)
                || overlap(outside, size, other.outside, other.size)
        });
        if clashes {
            return Err(refuse("overlaps with an entry before it"));
        }
    }
    Ok(text(extents))
}

/// Maps in the notation of crun's option: `uids=0-100000-1000#2000-5000-1;gids=…`. The second
/// number of an extent that begins with `@` is an id of the container, to be looked up in the
/// maps `(uid, gid)` of its user namespace.
pub(super) fn parse_option(
    text: &str,
    container: (&[Extent], &[Extent]),
) -> Result<IdMaps, FieldError> {
    let refuse = |reason: String| FieldError::new("options", &reason);
    let mut maps = (None, None);
    for part in text.split(';').filter(|part| !part.is_empty()) {
        let (place, extents, base) = match part.split_once('=') {
            Some(("uids", extents)) => (&mut maps.0, extents, container.0),
            Some(("gids", extents)) => (&mut maps.1, extents, container.1),
            _ => {
                return Err(refuse(format!(
                    "idmap: {part:?} is neither uids= nor gids="
                )));
            }
        };
        let extents = extents
            .split('#')
            .filter(|extent| !extent.is_empty())
            .map(|extent| parse_extent(extent, base).map_err(refuse))
            .collect::<Result<Vec<_>, _>>()?;
        *place = Some(checked_text("options", &extents)?);
    }
    match maps {
        (Some(uid), Some(gid)) => Ok(IdMaps { uid, gid }),
        _ => Err(refuse("idmap= needs both uids= and gids=".to_owned())),
    }
}

fn parse_extent(extent: &str, base: &[Extent]) -> Result<Extent, String> {
    let (text, relative) = match extent.strip_prefix('@') {
        Some(text) => (text, true),
        None => (extent, false),
    };
    let numbers: Vec<u32> = text
        .split('-')
        .map_while(|part| part.parse().ok())
        .collect();
    let (&[inside, mut outside, size], 2) = (&numbers[..], text.matches('-').count()) else {
        return Err(format!("idmap: {extent:?} is no extent of three numbers"));
    };
    if relative {
        outside = base
            .iter()
            .find_map(|known| {
                let offset = outside.checked_sub(known.inside)?;
                (offset < known.size).then(|| known.outside.checked_add(offset))?
            })
            .ok_or_else(|| format!("idmap: {extent:?} is in no map of the user namespace"))?;
    }
    Ok(Extent {
        inside,
        outside,
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(inside: u32, outside: u32, size: u32) -> Extent {
        Extent {
            inside,
            outside,
            size,
        }
    }

    #[test]
    fn maps_that_the_kernel_would_refuse_name_their_entry() {
        for (maps, field) in [
            (vec![map(0, 1, 0)], "uidMappings[0]"),
            (vec![map(0, 100, 10), map(5, 200, 10)], "uidMappings[1]"),
            (vec![map(0, 100, 10), map(20, 105, 10)], "uidMappings[1]"),
            (vec![map(0, u32::MAX, 2)], "uidMappings[0]"),
        ] {
            let refused = checked_text("uidMappings", &maps).expect_err("refused");
            assert_eq!(refused.field, field);
        }
        let fine = checked_text("uidMappings", &[map(0, 100, 10), map(10, 90, 10)]);
        assert_eq!(fine.as_deref(), Ok("0 100 10\n10 90 10\n"));
    }

    #[test]
    fn maps_of_an_option_are_absolute_or_relative_to_the_container() {
        let base = [map(0, 100_000, 1000)];
        let parsed = parse_option("uids=0-5-10#20-70-1;gids=@0-3-2", (&base, &base));
        let maps = parsed.expect("valid");
        assert_eq!(maps.uid, "0 5 10\n20 70 1\n");
        assert_eq!(maps.gid, "0 100003 2\n");
        for bad in [
            "uids=0-1-2",
            "uids=0-1;gids=0-1-2",
            "uids=0-1-2-3;gids=0-1-2",
            "uids=a-1-2;gids=0-1-2",
            "uids=@0-5000-1;gids=0-1-2",
            "0-1-2",
        ] {
            let refused = parse_option(bad, (&base, &base)).expect_err(bad);
            assert_eq!(refused.field, "options");
        }
    }

    #[test]
    fn an_id_is_mapped_inside_an_extent_only() {
        let maps: Vec<LinuxIdMapping> = serde_json::from_str(
            r#"[{"containerID":0,"hostID":7000,"size":10},{"containerID":100,"hostID":7000,"size":10}]"#,
        )
        .expect("valid");
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
