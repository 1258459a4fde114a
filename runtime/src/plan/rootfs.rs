//! `root`, `linux.devices`, masks and sysctls → what has to be done below the root.

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Mount};
use rustix::fs::{FileType, Mode, makedev};

use super::mounts::{MountPlan, MountSource, relative_target};
use super::{FieldError, c_string};

/// The container's file system tree.
#[derive(Debug)]
pub(crate) struct RootfsPlan {
    /// Absolute path on the host.
    pub(crate) path: CString,
    pub(crate) readonly: bool,
    /// Propagation of the root's own tree.
    pub(crate) propagation: (u64, bool),
    pub(crate) mounts: Vec<MountPlan>,
    /// What is taken otherwise than written, for the log.
    pub(crate) warnings: Vec<String>,
    /// Whether `/dev` is the container's own, to be filled with nodes and links.
    pub(crate) own_dev: bool,
    pub(crate) devices: Vec<DevicePlan>,
    /// Nodes are bound from the host, because a user namespace cannot make them.
    pub(crate) bind_devices: bool,
    pub(crate) sysctls: Vec<SysctlPlan>,
    pub(crate) masked: Vec<CString>,
    pub(crate) readonly_paths: Vec<CString>,
    /// The working directory, made when it is missing.
    pub(crate) cwd: CString,
}

/// One device node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DevicePlan {
    /// Relative to the root.
    pub(crate) target: CString,
    /// The node's path on the host.
    pub(crate) host: CString,
    pub(crate) kind: FileType,
    pub(crate) mode: Mode,
    /// Device number; 0 for a FIFO.
    pub(crate) number: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl DevicePlan {
    /// Whether only who has privileges on the host may make such a node.
    pub(crate) fn needs_privilege(&self) -> bool {
        self.kind != FileType::Fifo
    }
}

/// One kernel parameter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SysctlPlan {
    /// Relative to the proc file system: `sys/net/ipv4/ip_forward`.
    pub(crate) file: CString,
    pub(crate) value: Vec<u8>,
}

/// Nodes that every container has (runtime-spec, "Default Devices").
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Nodes of `linux.devices`, and those default ones that it does not name.
pub(crate) fn plan_devices(list: &[LinuxDevice]) -> Result<Vec<DevicePlan>, FieldError> {
    let mut devices = Vec::with_capacity(list.len() + DEFAULT_DEVICES.len());
    for (index, device) in list.iter().enumerate() {
        let field = format!("devices[{index}]");
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => {
                return Err(FieldError::new(&field, "type a is for cgroup rules only"));
            }
        };
        let number = if kind == FileType::Fifo {
            0
        } else {
            let part = |n: i64| {
                u32::try_from(n).map_err(|_| FieldError::new(&field, "device number out of range"))
            };
            makedev(part(device.major())?, part(device.minor())?)
        };
        devices.push(DevicePlan {
            target: relative_target(device.path())?,
            host: c_string(&field, device.path().as_os_str().as_encoded_bytes())?,
            kind,
            mode: Mode::from_raw_mode(device.file_mode().unwrap_or(0o666) & 0o7777),
            number,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    for (path, major, minor) in DEFAULT_DEVICES {
        let target = relative_target(Path::new(path))?;
        if devices.iter().any(|known| known.target == target) {
            continue;
        }
        devices.push(DevicePlan {
            target,
            host: c_string("devices", path.as_bytes())?,
            kind: FileType::CharacterDevice,
            mode: Mode::from_raw_mode(0o666),
            number: makedev(major, minor),
            uid: 0,
            gid: 0,
        });
    }
    Ok(devices)
}

/// Whether `/dev` belongs to the container: not when the host's is bound there.
pub(crate) fn has_own_dev(mounts: &[MountPlan]) -> bool {
    !mounts
        .iter()
        .any(|m| m.target.as_c_str() == c"dev" && matches!(m.source, MountSource::Bind(_)))
}

/// `linux.sysctl` as files below proc.
pub(crate) fn plan_sysctls(linux: &Linux) -> Result<Vec<SysctlPlan>, FieldError> {
    let mut plans = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let field = format!("sysctl[{key}]");
        let file = match key.find(['.', '/']) {
            Some(at) if key.as_bytes()[at] == b'.' => key
                .chars()
                .map(|c| {
                    if c == '.' {
                        '/'
                    } else if c == '/' {
                        '.'
                    } else {
                        c
                    }
                })
                .collect(),
            _ => key.clone(),
        };
        if file.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(FieldError::new(&field, "is no name of a kernel parameter"));
        }
        let file = c_string(&field, format!("sys/{file}").as_bytes())?;
        plans.push(SysctlPlan {
            file,
            value: value.clone().into_bytes(),
        });
    }
    Ok(plans)
}

/// Paths below the root, from `maskedPaths` or `readonlyPaths`.
pub(crate) fn plan_paths(
    field: &str,
    list: Option<&Vec<String>>,
) -> Result<Vec<CString>, FieldError> {
    list.into_iter()
        .flatten()
        .map(|path| relative_target(Path::new(path)).map_err(|e| FieldError::new(field, &e.reason)))
        .collect()
}

/// Destinations that the specification wants absolute.
pub(crate) fn mount_warnings(mounts: &[Mount]) -> Vec<String> {
    mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| !mount.destination().is_absolute())
        .map(|(index, mount)| {
            let destination = mount.destination().display();
            format!(
                "mounts[{index}].destination: {destination} is not absolute and taken as relative \
                 to the root"
            )
        })
        .collect()
}

/// Field name of the mount at `index`, for errors.
pub(crate) fn mount_field(mount: &Mount, index: usize, inner: &FieldError) -> FieldError {
    let destination = mount.destination().display();
    FieldError::new(
        &format!("mounts[{index}].{}", inner.field),
        &format!("{} (destination {destination})", inner.reason),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_devices_are_added_but_never_doubled() {
        let null: LinuxDevice =
            serde_json::from_str(r#"{"path":"/dev/null","type":"c","major":1,"minor":3,"uid":5}"#)
                .expect("valid");
        let devices = plan_devices(&[null]).expect("valid");
        assert_eq!(devices.len(), 6);
        assert_eq!(devices[0].uid, 5);
        assert_eq!(devices[0].number, makedev(1, 3));
    }

    #[test]
    fn a_device_of_type_a_is_refused() {
        let any: LinuxDevice =
            serde_json::from_str(r#"{"path":"/dev/x","type":"a","major":1,"minor":3}"#)
                .expect("valid");
        assert!(plan_devices(&[any]).is_err());
    }

    #[test]
    fn sysctls_become_files_below_proc() {
        let linux: Linux =
            serde_json::from_str(r#"{"sysctl":{"net.ipv4.conf.eth0/1.forwarding":"1"}}"#)
                .expect("valid");
        let plans = plan_sysctls(&linux).expect("valid");
        assert_eq!(
            plans[0].file.as_c_str(),
            c"sys/net/ipv4/conf/eth0.1/forwarding"
        );
        let linux: Linux =
            serde_json::from_str(r#"{"sysctl":{"net/../../x":"1"}}"#).expect("valid");
        assert!(plan_sysctls(&linux).is_err());
    }
}
