//! Daemons of users without privileges: what tells them, and where their files are.
//!
//! Such a daemon runs as root of a user namespace, beside containerd, as rootlesskit and
//! `unshare --map-root-user --mount` make it. Nothing it does needs more: FUSE and overlayfs are
//! mounted in namespaces like these (Linux 5.11), and what they lack is tried and told
//! ([`crate::mount::probe`]).

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// Files and directories that no configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// The configuration file, which may be absent.
    pub(crate) config: PathBuf,
    /// Everything that is kept.
    pub(crate) root: PathBuf,
    /// The socket for containerd.
    pub(crate) address: PathBuf,
}

impl Places {
    /// Those of this process's user.
    pub(crate) fn own() -> Self {
        let is_users = !rustix::process::geteuid().is_root() || in_user_namespace();
        is_users
            .then(|| Self::of_user(|name| std::env::var_os(name).filter(|value| !value.is_empty())))
            .flatten()
            .unwrap_or_else(Self::of_system)
    }

    fn of_system() -> Self {
        Self {
            config: "/etc/xebec/snapshotter.toml".into(),
            root: "/var/lib/xebec-snapshotter".into(),
            address: "/run/xebec-snapshotter/snapshotter.sock".into(),
        }
    }

    /// Where the XDG Base Directory Specification has them. `None`: this is no user's session, but
    /// the system of a container, say.
    fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let directory = |name, below_home| {
            let home = || Some(PathBuf::from(variable("HOME")?).join(below_home));
            variable(name).map(PathBuf::from).or_else(home)
        };
        let runtime = PathBuf::from(variable("XDG_RUNTIME_DIR")?);
        Some(Self {
            config: directory("XDG_CONFIG_HOME", ".config")?.join("xebec/snapshotter.toml"),
            root: directory("XDG_DATA_HOME", ".local/share")?.join("xebec-snapshotter"),
            address: runtime.join("xebec-snapshotter/snapshotter.sock"),
        })
    }
}

/// Whether this process is in a user namespace other than the first one.
pub(crate) fn in_user_namespace() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_initial(&map))
    })
}

/// Refuses to serve where nothing can be mounted.
pub(crate) fn check_privileges() -> Result<()> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Ok(());
    }
    Err(Error::Unusable {
        what: format!("user {}", user.as_raw()),
        reason: "who is not root can mount nothing; a user's daemon runs in containerd's user namespace \
                 (nsenter, rootlesskit, unshare --user --map-root-user --mount)"
            .to_owned(),
    })
}

/// Whether a `uid_map` is the identity over all ids, which only the first namespace has.
fn is_initial(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(variables: &[(&str, &str)]) -> Option<[String; 3]> {
        let value = |name: &str| {
            let known = variables.iter().find(|(known, _)| *known == name);
            known.map(|(_, value)| OsString::from(value))
        };
        let Places {
            config,
            root,
            address,
        } = Places::of_user(value)?;
        Some([config, root, address].map(|path| path.display().to_string()))
    }

    #[test]
    fn a_user_has_directories_of_their_own_and_a_system_in_a_container_has_the_systems() {
        let session = [("HOME", "/home/a"), ("XDG_RUNTIME_DIR", "/run/user/1")];
        let expected = [
            "/home/a/.config/xebec/snapshotter.toml",
            "/home/a/.local/share/xebec-snapshotter",
            "/run/user/1/xebec-snapshotter/snapshotter.sock",
        ];
        assert_eq!(places(&session), Some(expected.map(String::from)));
        let moved = [
            ("XDG_RUNTIME_DIR", "/r"),
            ("XDG_DATA_HOME", "/d"),
            ("XDG_CONFIG_HOME", "/c"),
        ];
        let expected = [
            "/c/xebec/snapshotter.toml",
            "/d/xebec-snapshotter",
            "/r/xebec-snapshotter/snapshotter.sock",
        ];
        assert_eq!(places(&moved), Some(expected.map(String::from)));
        assert_eq!(places(&[("HOME", "/root")]), None);
        assert_eq!(places(&moved[..1]), None, "no place for what is kept");
    }

    #[test]
    fn only_the_full_identity_map_is_the_initial_user_namespace() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0     100000      65536\n"));
    }
}
