//! Device rules: parsed, checked, and the ones every container gets.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::cgroup::error::{CgroupError, Result};

/// Kinds of access, with the bits of `BPF_DEVCG_ACC_*`.
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL: u8 = MKNOD | READ | WRITE;

/// The two kinds of device nodes, with the values of `BPF_DEVCG_DEV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Block = 1,
    Char = 2,
}

/// One rule; `None` matches anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) kind: Option<Kind>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    /// Never empty.
    pub(super) access: u8,
}

impl Rule {
    /// Checks one entry of `linux.resources.devices`; negative numbers are wildcards and letters
    /// that stand for no access mean nothing, as in runc. None for a rule without any access.
    pub(super) fn from_spec(index: usize, rule: &LinuxDeviceCgroup) -> Result<Option<Self>> {
        let invalid = |reason: String| CgroupError::Invalid {
            field: format!("linux.resources.devices[{index}]"),
            reason,
        };
        let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(Kind::Block),
            LinuxDeviceType::C => Some(Kind::Char),
            other => {
                return Err(invalid(format!(
                    "invalid cgroup device type {:?}",
                    other.as_str()
                )));
            }
        };
        let number = |name: &str, number: Option<i64>| match number {
            None | Some(..0) => Ok(None),
            Some(n) => u32::try_from(n)
                .map(Some)
                .map_err(|_| invalid(format!("{name} {n} is no device number"))),
        };
        let letters = rule.access().as_deref().unwrap_or_default();
        if letters.is_empty() {
            return Err(invalid(format!(
                "device access at {index} field cannot be empty"
            )));
        }
        let bit = |letter| match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        };
        let rule = Self {
            allow: rule.allow(),
            kind,
            major: number("major", rule.major())?,
            minor: number("minor", rule.minor())?,
            access: letters
                .chars()
                .fold(0, |access, letter| access | bit(letter)),
        };
        Ok((rule.access != 0).then_some(rule))
    }

    /// Whether the rule matches every access to every device.
    pub(super) fn is_universal(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }
}

/// Devices that every container may use: any node may be made, and the nodes of the runtime
/// spec's default devices may be used.
pub(super) const DEFAULTS: [Rule; 10] = [
    allow(Kind::Char, None, None, MKNOD),
    allow(Kind::Block, None, None, MKNOD),
    // null, random, full, tty, zero, urandom
    allow(Kind::Char, Some(1), Some(3), ALL),
    allow(Kind::Char, Some(1), Some(8), ALL),
    allow(Kind::Char, Some(1), Some(7), ALL),
    allow(Kind::Char, Some(5), Some(0), ALL),
    allow(Kind::Char, Some(1), Some(5), ALL),
    allow(Kind::Char, Some(1), Some(9), ALL),
    // The pseudo-terminals (console among them) and their multiplexer.
    allow(Kind::Char, Some(136), None, ALL),
    allow(Kind::Char, Some(5), Some(2), ALL),
];
