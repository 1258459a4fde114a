//! What a caller may ask of a checkpoint or a restore; runc's and crun's flags.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::state::ContainerId;

/// What CRIU does about cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupsMode {
    /// What is fastest and loses nothing: the runtime makes the container's cgroup, and CRIU is
    /// troubled only by a container that has made cgroups of its own.
    #[default]
    Auto,
    /// Cgroups that do not exist are made, properties of others stay.
    Soft,
    /// Properties are always set.
    Full,
    /// Cgroups may not exist.
    Strict,
    /// Cgroups are none of CRIU's business.
    Ignore,
}

impl FromStr for CgroupsMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "" => Self::Auto,
            "soft" => Self::Soft,
            "full" => Self::Full,
            "strict" => Self::Strict,
            "ignore" => Self::Ignore,
            _ => {
                return Err(Error::InvalidArgument(
                    "invalid manage-cgroups-mode value".into(),
                ));
            }
        })
    }
}

/// How the network stands still while TCP connections are dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkLock {
    /// By rules of iptables, CRIU's default.
    Iptables,
    /// By rules of nftables.
    Nftables,
    /// Not at all.
    Skip,
}

impl FromStr for NetworkLock {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "iptables" => Self::Iptables,
            "nftables" => Self::Nftables,
            "skip" => Self::Skip,
            _ => {
                return Err(Error::InvalidArgument(format!(
                    "invalid network-lock value {text:?}: iptables, nftables or skip"
                )));
            }
        })
    }
}

/// A `criu page-server` that gets the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageServer {
    /// Its IP address.
    pub address: String,
    /// Its TCP port.
    pub port: u16,
}

impl FromStr for PageServer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            let example = "use --page-server ADDRESS:PORT to specify page server";
            Error::InvalidArgument(example.into())
        };
        let (address, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        if address.is_empty() {
            return Err(refuse());
        }
        Ok(Self {
            address: address.trim_matches(['[', ']']).to_owned(),
            port: port.parse().map_err(|_| refuse())?,
        })
    }
}

impl fmt::Display for PageServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

/// What checkpoints and restores have in common.
#[derive(Clone, Debug)]
pub struct CriuOptions {
    /// CRIU's program; a bare name is looked for in `PATH`.
    pub program: PathBuf,
    /// Directory of the images.
    pub image_path: PathBuf,
    /// Directory of logs and statistics; that of the images unless given.
    pub work_path: Option<PathBuf>,
    /// Keep established TCP connections.
    pub tcp_established: bool,
    /// Close established TCP connections.
    pub tcp_close: bool,
    /// Allow unix sockets whose peer is outside the container.
    pub ext_unix_sk: bool,
    /// Allow a session or terminal that is the caller's.
    pub shell_job: bool,
    /// Keep file locks.
    pub file_locks: bool,
    /// Dump, or restore, files that have been deleted by links.
    pub link_remap: bool,
    /// Dump without memory, or restore without it, which a page server hands over later.
    pub lazy_pages: bool,
    /// Punch holes into parent images for pages that are there more than once.
    pub auto_dedup: bool,
    /// What CRIU does about cgroups.
    pub cgroups: CgroupsMode,
    /// `CLONE_NEW*` bits of namespaces whose content is left alone.
    pub empty_namespaces: u32,
    /// How the network is locked; unless given, as CRIU does it where connections are kept, and not
    /// at all otherwise.
    pub network_lock: Option<NetworkLock>,
    /// The directory of the images is one of memory alone, and the caller encrypts what is in it
    /// before it writes it anywhere.
    pub sealed: bool,
    /// A program that calls [`crate::stand_in_for_tar`] when it is executed as `tar`: CRIU finds it
    /// before the host's.
    pub tar: Option<PathBuf>,
    /// CRIU's log tells each step, and not only what is amiss.
    pub verbose: bool,
}

impl CriuOptions {
    /// Every option off.
    pub fn new(image_path: impl Into<PathBuf>) -> Self {
        Self {
            program: PathBuf::from("criu"),
            image_path: image_path.into(),
            work_path: None,
            tcp_established: false,
            tcp_close: false,
            ext_unix_sk: false,
            shell_job: false,
            file_locks: false,
            link_remap: false,
            lazy_pages: false,
            auto_dedup: false,
            cgroups: CgroupsMode::Auto,
            empty_namespaces: 0,
            network_lock: None,
            sealed: false,
            tar: None,
            verbose: false,
        }
    }
}

/// A running container that is to become a file.
#[derive(Debug)]
pub struct CheckpointRequest {
    /// The container.
    pub id: ContainerId,
    /// How.
    pub criu: CriuOptions,
    /// Images of an earlier checkpoint, relative to those of this one: only what has changed since
    /// is written.
    pub parent_path: Option<PathBuf>,
    /// Dump the memory alone, and let the container go on.
    pub pre_dump: bool,
    /// Let the container go on.
    pub leave_running: bool,
    /// Leave out TCP connections that are not established yet.
    pub tcp_skip_in_flight: bool,
    /// Who gets the memory.
    pub page_server: Option<PageServer>,
    /// Gets a zero byte when the server of lazy pages is ready, and is closed then.
    pub status: Option<OwnedFd>,
}

/// How a container is made of a checkpoint.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// What checkpoints know, too.
    pub criu: CriuOptions,
    /// LSM profile in the place of the one that was dumped, as `apparmor:NAME` or `selinux:LABEL`.
    pub lsm_profile: Option<String>,
    /// SELinux context of mounts in the place of the one that was dumped.
    pub lsm_mount_context: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_is_an_address_and_a_port() {
        let server = |text: &str| text.parse::<PageServer>();
        assert_eq!(server("127.0.0.1:27").expect("valid").port, 27);
        assert_eq!(server("[::1]:27").expect("valid").address, "::1");
        for bad in ["", "127.0.0.1", ":27", "host:", "host:port", "host:70000"] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_have_runcs_names() {
        assert_eq!("".parse::<CgroupsMode>().expect("valid"), CgroupsMode::Auto);
        assert_eq!(
            "soft".parse::<CgroupsMode>().expect("valid"),
            CgroupsMode::Soft
        );
        assert!("Soft".parse::<CgroupsMode>().is_err());
        assert_eq!(
            "skip".parse::<NetworkLock>().expect("valid"),
            NetworkLock::Skip
        );
        assert!("none".parse::<NetworkLock>().is_err());
    }
}
