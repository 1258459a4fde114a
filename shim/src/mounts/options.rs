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
        data: Vec::new(),
    };
    for option in options {
        if let Some((_, flag, on)) = FLAGS.iter().find(|(name, ..)| name == option) {
            plan.flags.set(*flag, *on);
            continue;
        }
        match option.as_str() {
            "" | "defaults" => {}
            "bind" => plan.bind = Some(Recursive::No),
            "rbind" => plan.bind = Some(Recursive::Yes),
            "loop" => return Err(unsupported(option)),
            _ if option.starts_with("uidmap=") || option.starts_with("gidmap=") => {
                return Err(unsupported(option));
            }
            _ => match propagation(option) {
                Some(flags) => plan.propagation = Some(flags),
                None => plan.data.push(option.clone()),
            },
        }
    }
    if plan.bind.is_some() && !plan.data.is_empty() {
        let data = plan.data.join(",");
        return Err(Error::InvalidArgument(format!(
            "bind mount with options {data:?}"
        )));
    }
    Ok(plan)
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
    fn the_last_of_two_opposite_options_wins() {
        assert_eq!(plan("erofs", "ro,rw").unwrap().flags, MountFlags::empty());
        assert_eq!(plan("erofs", "rw,ro").unwrap().flags, MountFlags::RDONLY);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (fs_type, options) in [
            ("ext4", "loop"),
            ("overlay", "uidmap=0:1000:1"),
            ("bind", "rbind,size=3"),
        ] {
            let error = plan(fs_type, options).unwrap_err().to_string();
            let named = options.rsplit(',').next().unwrap();
            assert!(error.contains(named), "{error}");
        }
    }
}
