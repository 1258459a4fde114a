//! Options that every command takes, and what they open.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use xebec_runtime::cgroup::CgroupManager;
use xebec_runtime::{Error, Result, Runtime, RuntimeOptions};

use super::log::{Level, Log, LogFormat};

/// Where the state of root's containers is.
const ROOT: &str = "/run/xebec";

/// Options that every command takes, before or after its name.
#[derive(Args, Debug)]
pub(super) struct Globals {
    /// Directory of the containers' state [default: /run/xebec, for other users
    /// $XDG_RUNTIME_DIR/xebec]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Where the log goes: [file:]PATH, journald:ID or syslog:ID; the error that ends a command is
    /// on stderr in any case
    #[arg(long, global = true, value_name = "TARGET")]
    log: Option<OsString>,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Least severe lines to log
    #[arg(long, global = true, value_enum, default_value_t = Level::Info)]
    log_level: Level,
    /// The same as --log-level debug
    #[arg(long, global = true)]
    debug: bool,
    /// Let systemd make the cgroups; the same as --cgroup-manager systemd
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    /// Who makes the cgroups of new containers
    #[arg(long, global = true, value_enum, value_name = "MANAGER")]
    cgroup_manager: Option<Manager>,
    /// Ignore permission errors on cgroups: true, false or auto
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    rootless: Rootless,
    /// Warn instead of fail when a limit needs a cgroup controller that the host lacks
    #[arg(long, global = true, env = "XEBEC_IGNORE_MISSING_CONTROLLERS",
        value_parser = clap::builder::FalseyValueParser::new())]
    ignore_missing_controllers: bool,
}

/// Values of `--cgroup-manager`, as crun takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Manager {
    Cgroupfs,
    Systemd,
    Disabled,
}

/// Values of `--rootless`, as runc takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rootless {
    Auto,
    True,
    False,
}

impl Globals {
    pub(super) fn open_log(&self) -> Result<Log> {
        let level = if self.debug {
            Level::Debug
        } else {
            self.log_level
        };
        Log::open(self.log.as_deref(), self.log_format, level)
    }

    pub(super) fn open_runtime(self) -> Result<Runtime> {
        let cgroup_manager = match self.cgroup_manager {
            Some(Manager::Systemd) => CgroupManager::Systemd,
            Some(Manager::Disabled) => CgroupManager::Disabled,
            None if self.systemd_cgroup => CgroupManager::Systemd,
            Some(Manager::Cgroupfs) | None => CgroupManager::Cgroupfs,
        };
        let rootless = match self.rootless {
            Rootless::Auto => None,
            Rootless::True => Some(true),
            Rootless::False => Some(false),
        };
        let root = match self.root {
            Some(root) => root,
            None => default_root()?,
        };
        Runtime::open(RuntimeOptions {
            root,
            ignore_missing_controllers: self.ignore_missing_controllers,
            cgroup_manager,
            rootless,
        })
    }
}

/// As runc: whoever is not root of the host keeps state in the session's directory.
fn default_root() -> Result<PathBuf> {
    let session = env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match session {
        Some(session) if !is_root_of_host() => {
            let root = Path::new(&session).join("xebec");
            keep(&root).map_err(|source| Error::File {
                op: "mkdir",
                path: root.clone(),
                source,
            })?;
            Ok(root)
        }
        _ => Ok(PathBuf::from(ROOT)),
    }
}

/// Makes the directory, with the sticky bit by which cleaners of the session's directory know what
/// to leave alone (XDG Base Directory Specification).
fn keep(root: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    fs::set_permissions(root, Permissions::from_mode(0o1700))
}

/// Root of a user namespace is taken for the host's only if its user calls itself so.
fn is_root_of_host() -> bool {
    rustix::process::geteuid().is_root()
        && (maps_every_user(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
            || env::var_os("USER").is_some_and(|user| user == "root"))
}

/// Whether the map is that of the host: one range with every id at its own place.
fn maps_every_user(uid_map: &str) -> bool {
    uid_map
        .split_ascii_whitespace()
        .eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::maps_every_user;

    #[test]
    fn the_hosts_user_namespace_is_known_by_its_map() {
        assert!(maps_every_user("         0          0 4294967295\n"));
        assert!(!maps_every_user("         0       1000          1\n"));
        assert!(!maps_every_user("0 1000 1\n1 100000 65536\n"));
        assert!(!maps_every_user(""));
    }
}
