//! Mount options as containerd writes them, split into flags and file system data.

use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::error::{Error, Result};

/// How one mount is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Attribute flags, without those that the fields below hold.
    pub(super) flags: MountFlags,
    /// A bind mount, and whether it takes submounts along.
    pub(super) bind: Option<Recursive>,
    /// Propagation to set afterwards.
    pub(super) propagation: Option<MountPropagationFlags>,
    /// Owners on the host of the files' users and groups, as `/proc/PID/uid_map` and `gid_map`.
    pub(super) id_maps: Option<(String, String)>,
    /// What goes to the file system, in order.
    pub(super) data: Vec<String>,
}

/// Whether a bind mount takes submounts along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recursive {
    /// `rbind`
    Yes,
    /// `bind`
    No,
}

/// Options that set or clear a flag.
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("nostrictatime", MountFlags::STRICTATIME, false),
];

/// Parses the options of a mount of type `fs_type`.
pub(super) fn parse(fs_type: &str, options: &[String]) -> Result<Plan> {
    let bare_bind = matches!(fs_type, "bind" | "rbind");
    let mut plan = Plan {
        flags: MountFlags::empty(),
        bind: bare_bind.then_some(if fs_type == "rbind" {
            Recursive::Yes
        } else {
            Recursive::No
        }),
        propagation: None,
        id_maps: None,
        data: Vec::new(),
    };
    let (mut uids, mut gids) = (None, None);
    for option in options {
        if let Some((_, flag, on)) = FLAGS.iter().find(|(name, ..)| name == option) {
            plan.flags.set(*flag, *on);
            continue;
        }
        match option.as_str() {
            "" | "defaults" => {}
            "bind" => plan.bind = Some(Recursive::No),
            "rbind" => plan.bind = Some(Recursive::Yes),
            // The kernel reads EROFS from a file as it is (Linux 6.12).
            "loop" if fs_type == "erofs" => {}
            "loop" => return Err(unsupported(option)),
            _ => match (option.split_once('='), propagation(option)) {
                (Some(("uidmap", map)), _) => uids = Some(id_map(option, map)?),
                (Some(("gidmap", map)), _) => gids = Some(id_map(option, map)?),
                (_, Some(flags)) => plan.propagation = Some(flags),
                _ => plan.data.push(option.clone()),
            },
        }
    }
    plan.id_maps = match (uids, gids) {
        (Some(uids), Some(gids)) => Some((uids, gids)),
        (None, None) => None,
        _ => {
            let reason = "mount options uidmap and gidmap must come together";
            return Err(Error::InvalidArgument(reason.to_owned()));
        }
    };
    if plan.id_maps.is_some() && plan.bind.is_none() && fs_type != "overlay" {
        return Err(unsupported(&format!("uidmap of type {fs_type}")));
    }
    if plan.bind.is_some() && !plan.data.is_empty() {
        let data = plan.data.join(",");
        return Err(Error::InvalidArgument(format!(
            "bind mount with options {data:?}"
        )));
    }
    Ok(plan)
}

/// `0:200000:65536,…` (inside, outside, length) in the kernel's form.
fn id_map(option: &str, map: &str) -> Result<String> {
    let is_range = |range: &str| {
        let numbers = range.split(':').map(str::parse::<u32>);
        range.matches(':').count() == 2 && numbers.into_iter().all(|number| number.is_ok())
    };
    if !map.split(',').all(is_range) {
        let reason = format!("mount option {option:?} is no list of inside:outside:length");
        return Err(Error::InvalidArgument(reason));
    }
    Ok(map.replace(':', " ").replace(',', "\n") + "\n")
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    use MountPropagationFlags as P;
    Some(match option {
        "private" => P::PRIVATE,
        "rprivate" => P::PRIVATE | P::REC,
        "shared" => P::SHARED,
        "rshared" => P::SHARED | P::REC,
        "slave" => P::DOWNSTREAM,
        "rslave" => P::DOWNSTREAM | P::REC,
        "unbindable" => P::UNBINDABLE,
        "runbindable" => P::UNBINDABLE | P::REC,
        _ => return None,
    })
}

fn unsupported(option: &str) -> Error {
    Error::InvalidArgument(format!("mount option {option:?} is not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(fs_type: &str, options: &str) -> Result<Plan> {
        let list: Vec<String> = options
            .split(',')
            .filter(|o| !o.is_empty())
            .map(str::to_owned)
            .collect();
        parse(fs_type, &list)
    }

    #[test]
    fn flags_data_and_propagation_are_told_apart() {
        let overlay = plan("overlay", "ro,index=off,lowerdir=/a:/b,nosuid,rslave").unwrap();
        assert_eq!(overlay.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(overlay.data, ["index=off", "lowerdir=/a:/b"]);
        let rslave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        assert_eq!(overlay.propagation, Some(rslave));
        assert_eq!(overlay.bind, None);
    }

    #[test]
    fn binds_are_recognised_by_type_and_by_option() {
        assert_eq!(plan("bind", "").unwrap().bind, Some(Recursive::No));
        assert_eq!(plan("bind", "rbind,ro").unwrap().bind, Some(Recursive::Yes));
        assert_eq!(plan("", "bind").unwrap().bind, Some(Recursive::No));
        assert_eq!(plan("rbind", "").unwrap().bind, Some(Recursive::Yes));
    }

    #[test]
    fn id_maps_are_turned_into_the_kernels_form() {
        let options = ["uidmap=0:200000:65536,65536:9:1", "gidmap=0:300000:5"].map(str::to_owned);
        let maps = parse("overlay", &options).unwrap().id_maps.unwrap();
        assert_eq!(maps.0, "0 200000 65536\n65536 9 1\n");
        assert_eq!(maps.1, "0 300000 5\n");
        let error = parse("overlay", &options[..1]).unwrap_err().to_string();
        assert!(error.contains("must come together"), "{error}");
        let error = parse("tmpfs", &options).unwrap_err().to_string();
        assert!(error.contains("uidmap of type tmpfs"), "{error}");
    }

    #[test]
    fn the_last_of_two_opposite_options_wins() {
        assert_eq!(plan("erofs", "ro,rw").unwrap().flags, MountFlags::empty());
        assert_eq!(plan("erofs", "rw,ro").unwrap().flags, MountFlags::RDONLY);
    }

    #[test]
    fn erofs_needs_no_loop_device() {
        assert_eq!(
            plan("erofs", "ro,loop").unwrap(),
            plan("erofs", "ro").unwrap()
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (fs_type, options) in [
            ("ext4", "loop"),
            ("overlay", "uidmap=0:1000"),
            ("overlay", "gidmap=a:1000:1"),
            ("bind", "rbind,size=3"),
        ] {
            let error = plan(fs_type, options).unwrap_err().to_string();
            let named = options.rsplit(',').next().unwrap();
            assert!(error.contains(named), "{error}");
        }
    }
}
