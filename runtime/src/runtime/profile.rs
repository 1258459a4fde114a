//! The AppArmor profile that a restore names.
//!
//! CRIU replaces the profile of a process that had one, and says nothing of one that had none. So
//! the profile is looked for before anything is made, and on init before it goes on.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result};

/// The kernel's list of what is loaded, one `NAME (MODE)` a line.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The one profile that `apparmor:NAME` names; none for other modules, stacks of profiles and
/// namespaces of them, which are shown in other words than they are asked for.
fn single(option: Option<&str>) -> Option<&str> {
    let name = option?.strip_prefix("apparmor:")?;
    let is_single = !name.is_empty() && !name.starts_with(':') && !name.contains("//&");
    is_single.then_some(name)
}

/// What stands before the mode.
fn name_of(label: &str) -> &str {
    let label = label.trim_end_matches(['\n', '\0']);
    label.rsplit_once(" (").map_or(label, |(name, _)| name)
}

fn is_loaded(list: &str, name: &str) -> bool {
    name == "unconfined" || list.lines().any(|line| name_of(line) == name)
}

/// Refuses a profile that the kernel does not have. Where its list cannot be read, CRIU refuses
/// whatever it is given.
pub(super) fn require_loaded(option: Option<&str>) -> Result<()> {
    let Some(name) = single(option) else {
        return Ok(());
    };
    match fs::read_to_string(LOADED) {
        Ok(list) if !is_loaded(&list, name) => Err(Error::InvalidArgument(format!(
            "--lsm-profile apparmor:{name}: no such profile is loaded"
        ))),
        _ => Ok(()),
    }
}

/// Ends an init that has not resumed and is not what was asked for.
pub(super) fn require_applied(option: Option<&str>, init: i32) -> Result<()> {
    let Some(name) = single(option) else {
        return Ok(());
    };
    let label = label_of(init)?;
    let found = name_of(&label);
    if found == name {
        return Ok(());
    }
    if let Some(init) = Pid::from_raw(init) {
        // If it is gone, nothing goes on.
        let _ = kill_process(init, Signal::KILL);
    }
    Err(Error::Unsupported(format!(
        "--lsm-profile apparmor:{name}: init is {found}: criu gives a profile only to what was dumped with one"
    )))
}

fn label_of(pid: i32) -> Result<String> {
    let attributes = Path::new("/proc").join(pid.to_string()).join("attr");
    let own = attributes.join("apparmor/current");
    // Before Linux 5.8 there is only the other one.
    let path = if own.exists() {
        own
    } else {
        attributes.join("current")
    };
    fs::read_to_string(&path).map_err(Error::file("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_profile_of_apparmor_is_looked_for() {
        let cases = [
            (Some("apparmor:web"), Some("web")),
            (Some("apparmor:/usr/bin/man"), Some("/usr/bin/man")),
            (Some("apparmor:web//child"), Some("web//child")),
            (Some("apparmor::ns:web"), None),
            (Some("apparmor:one//&two"), None),
            (Some("apparmor:"), None),
            (Some("selinux:u:r:t:s0"), None),
            (Some("web"), None),
            (None, None),
        ];
        for (option, name) in cases {
            assert_eq!(single(option), name, "{option:?}");
        }
    }

    #[test]
    fn a_profile_is_loaded_under_its_whole_name_in_any_mode() {
        let list = "web (enforce)\nlsb_release (complain)\nwith (odd) name (kill)\n";
        for name in ["web", "lsb_release", "with (odd) name", "unconfined"] {
            assert!(is_loaded(list, name), "{name}");
        }
        for name in ["we", "web (enforce)", "enforce", ""] {
            assert!(!is_loaded(list, name), "{name}");
        }
        assert_eq!(name_of("web (enforce)\n"), "web");
        assert_eq!(name_of("unconfined\n"), "unconfined");
    }
}
