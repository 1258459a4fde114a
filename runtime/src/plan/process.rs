//! `process` → everything the child has to set before `execve`, laid out.

use std::collections::HashSet;
use std::ffi::CString;

use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process, User};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};
use rustix::termios::Winsize;
use rustix::thread::Gid;

use super::capabilities::CapabilityPlan;
use super::scheduling::{AffinityPlan, io_priority, scheduler};
use super::{FieldError, c_string};
use crate::sys::{CStrArray, SchedAttr};

/// A process to be, init or not.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) argv: CStrArray,
    pub(crate) env: CStrArray,
    /// `HOME` is to be looked up in the container's `/etc/passwd`.
    pub(crate) needs_home: bool,
    /// Where to look for the program, in this order.
    pub(crate) program: Program,
    pub(crate) cwd: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<Gid>,
    /// The caller's supplementary groups are kept instead ([`super::KEEP_GROUPS`]).
    pub(crate) keep_groups: bool,
    /// None is for the launch to decide.
    pub(crate) umask: Option<Mode>,
    /// None leaves the process all that its user namespace gives it, as runc does.
    pub(crate) capabilities: Option<CapabilityPlan>,
    pub(crate) no_new_privileges: bool,
    pub(crate) rlimits: Vec<RlimitPlan>,
    pub(crate) oom_score_adj: Option<String>,
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<Winsize>,
    pub(crate) scheduler: Option<SchedAttr>,
    pub(crate) io_priority: Option<i32>,
    /// Only for processes that are added to a container.
    pub(crate) affinity: AffinityPlan,
    pub(crate) labels: LabelPlan,
}

/// A resource limit, and its name in the specification.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RlimitPlan {
    pub(crate) resource: Resource,
    pub(crate) limit: Rlimit,
    pub(crate) name: String,
}

/// What `argv[0]` names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// A path: has a slash.
    Path(CString),
    /// A name: each directory of `PATH` with it.
    Search(Vec<CString>),
}

/// What security modules are told about the process to be.
#[derive(Debug, Default)]
pub(crate) struct LabelPlan {
    /// `exec` and the name of a profile.
    pub(crate) apparmor: Option<Vec<u8>>,
    /// The context of the process, and of its session keyring.
    pub(crate) selinux: Option<Vec<u8>>,
}

impl LabelPlan {
    fn from_spec(process: &Process) -> Self {
        let some = |text: &'_ Option<String>| text.clone().filter(|t| !t.is_empty());
        Self {
            apparmor: some(process.apparmor_profile())
                .map(|profile| format!("exec {profile}").into_bytes()),
            selinux: some(process.selinux_label()).map(String::into_bytes),
        }
    }

    /// Nothing is to be told.
    pub(crate) fn is_empty(&self) -> bool {
        self.apparmor.is_none() && self.selinux.is_none()
    }
}

impl ProcessPlan {
    /// Lays out a process whose document has been checked.
    pub(crate) fn from_spec(process: &Process) -> Result<Self, FieldError> {
        let mut argv = Vec::new();
        for (index, arg) in process.args().iter().flatten().enumerate() {
            argv.push(c_string(&format!("args[{index}]"), arg.as_bytes())?);
        }
        let (env, needs_home, search_path) =
            environment(process.env().as_deref().unwrap_or_default())?;
        let program = find_candidates(process.args().iter().flatten().next(), search_path)?;
        let user = process.user();
        check_user(user)?;
        Ok(Self {
            argv: CStrArray::new(argv, false),
            env,
            needs_home,
            program,
            cwd: c_string("cwd", process.cwd().as_os_str().as_encoded_bytes())?,
            uid: user.uid(),
            gid: user.gid(),
            groups: user
                .additional_gids()
                .iter()
                .flatten()
                .map(|gid| Gid::from_raw(*gid))
                .collect(),
            keep_groups: false,
            umask: user.umask().map(|umask| Mode::from_raw_mode(umask & 0o777)),
            capabilities: process
                .capabilities()
                .as_ref()
                .map(CapabilityPlan::from_spec),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
            oom_score_adj: process.oom_score_adj().map(oom_score).transpose()?,
            terminal: process.terminal().unwrap_or(false),
            console_size: process.console_size().map(|size| Winsize {
                ws_row: size.height() as u16,
                ws_col: size.width() as u16,
                ws_xpixel: 0,
                ws_ypixel: 0,
            }),
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
            io_priority: process
                .io_priority()
                .as_ref()
                .map(io_priority)
                .transpose()?,
            affinity: match process.exec_cpu_affinity() {
                Some(wanted) => AffinityPlan::from_spec(wanted)?,
                None => AffinityPlan::default(),
            },
            labels: LabelPlan::from_spec(process),
        })
    }
}

impl ProcessPlan {
    /// Gives its terminal another size than the configuration's.
    pub(crate) fn resize(&mut self, size: Option<(u16, u16)>) {
        if let Some((rows, columns)) = size {
            self.console_size = Some(Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            });
        }
    }
}

/// Ids that no user namespace can map, said as runc says it.
fn check_user(user: &User) -> Result<(), FieldError> {
    let refuse = |field: &str, reason: String| Err(FieldError::new(field, &reason));
    let (uid, gid) = (user.uid(), user.gid());
    if uid == u32::MAX {
        let reason = format!("cannot setuid to unmapped uid {uid} in user namespace");
        return refuse("user.uid", reason);
    }
    if gid == u32::MAX {
        let reason = format!("cannot setgid to unmapped gid {gid} in user namespace");
        return refuse("user.gid", reason);
    }
    let groups = user.additional_gids().iter().flatten();
    match groups.into_iter().position(|gid| *gid == u32::MAX) {
        Some(index) => {
            let reason = format!("cannot set additional gid {} in user namespace", u32::MAX);
            refuse(&format!("user.additionalGids[{index}]"), reason)
        }
        None => Ok(()),
    }
}

/// The kernel's range (`proc_pid_oom_score_adj(5)`).
fn oom_score(adjustment: i32) -> Result<String, FieldError> {
    if !(-1000..=1000).contains(&adjustment) {
        let reason = format!("{adjustment} is not from -1000 to 1000");
        return Err(FieldError::new("oomScoreAdj", &reason));
    }
    Ok(adjustment.to_string())
}

/// Lays the environment out; whether `HOME` is still to be found, and `PATH`.
fn environment(env: &[String]) -> Result<(CStrArray, bool, Option<&str>), FieldError> {
    for (index, variable) in env.iter().enumerate() {
        let reason = match variable.find('=') {
            None => "invalid environment variable: missing '='",
            Some(0) => "invalid environment variable: name cannot be empty",
            Some(_) => continue,
        };
        return Err(FieldError::new(&format!("env[{index}]"), reason));
    }
    let env = deduplicated(env);
    let variable = |name: &str| {
        let mut pairs = env.iter().filter_map(|v| v.split_once('='));
        pairs.find_map(|(n, value)| (n == name).then_some(value))
    };
    let needs_home = variable("HOME").is_none_or(str::is_empty);
    let mut strings = Vec::with_capacity(env.len());
    for variable in env.iter().filter(|v| **v != "HOME=") {
        strings.push(c_string("env", variable.as_bytes())?);
    }
    let search_path = variable("PATH");
    Ok((CStrArray::new(strings, needs_home), needs_home, search_path))
}

/// The last word on each variable, in order of appearance.
fn deduplicated(env: &[String]) -> Vec<&str> {
    let mut seen = HashSet::with_capacity(env.len());
    let mut kept: Vec<&str> = env
        .iter()
        .rev()
        .map(String::as_str)
        .filter(|v| seen.insert(v.split_once('=').map_or(*v, |(name, _)| name)))
        .collect();
    kept.reverse();
    kept
}

fn find_candidates(
    name: Option<&String>,
    search_path: Option<&str>,
) -> Result<Program, FieldError> {
    let name = name.map(String::as_str).unwrap_or_default();
    if name.contains('/') {
        return Ok(Program::Path(c_string("args[0]", name.as_bytes())?));
    }
    // An empty or relative entry would search the container's working directory: never done.
    let directories = search_path
        .unwrap_or_default()
        .split(':')
        .filter(|d| d.starts_with('/'));
    let candidates = directories.map(|dir| c_string("args[0]", format!("{dir}/{name}").as_bytes()));
    Ok(Program::Search(if name.is_empty() {
        Vec::new()
    } else {
        candidates.collect::<Result<_, _>>()?
    }))
}

fn rlimits(list: &[PosixRlimit]) -> Result<Vec<RlimitPlan>, FieldError> {
    let mut limits: Vec<RlimitPlan> = Vec::with_capacity(list.len());
    let value = |v: u64| (v != u64::MAX).then_some(v);
    for (index, limit) in list.iter().enumerate() {
        let refuse = |reason: &str| {
            let reason = format!("{} {reason}", limit.typ());
            Err(FieldError::new(&format!("rlimits[{index}]"), &reason))
        };
        let resource = resource(limit.typ());
        if limits.iter().any(|known| known.resource == resource) {
            return refuse("is given twice");
        }
        if limit.soft() > limit.hard() {
            return refuse("has a soft limit above its hard limit");
        }
        limits.push(RlimitPlan {
            resource,
            limit: Rlimit {
                current: value(limit.soft()),
                maximum: value(limit.hard()),
            },
            name: limit.typ().to_string(),
        });
    }
    Ok(limits)
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<ProcessPlan, FieldError> {
        let process: Process = serde_json::from_str(json).expect("well formed");
        ProcessPlan::from_spec(&process)
    }

    #[test]
    fn a_name_is_searched_in_the_absolute_entries_of_its_own_path_variable() {
        let plan = plan(
            r#"{"user":{"uid":0,"gid":0},"cwd":"/","args":["sh","-c"],
                "env":["PATH=/first","A=1","PATH=/bin::.:/usr/bin","HOME="]}"#,
        )
        .expect("valid");
        let expected = vec![c"/bin/sh".to_owned(), c"/usr/bin/sh".to_owned()];
        assert_eq!(plan.program, Program::Search(expected));
        let env: Vec<&std::ffi::CStr> = plan.env.strings().iter().map(AsRef::as_ref).collect();
        assert_eq!(env, [c"A=1", c"PATH=/bin::.:/usr/bin"]);
        assert!(plan.needs_home);
    }

    #[test]
    fn a_path_is_not_searched_and_a_given_home_is_kept() {
        let plan = plan(
            r#"{"user":{"uid":7,"gid":8,"additionalGids":[9],"umask":63},"cwd":"/",
                "args":["./run"],"env":["HOME=/h"]}"#,
        )
        .expect("valid");
        assert_eq!(plan.program, Program::Path(c"./run".to_owned()));
        assert!(!plan.needs_home);
        assert_eq!(
            (plan.uid, plan.gid, plan.umask),
            (7, 8, Some(Mode::from_raw_mode(63)))
        );
    }

    #[test]
    fn rlimits_are_translated_and_doubles_refused() {
        let head = r#"{"user":{"uid":0,"gid":0},"cwd":"/","args":["a"],"rlimits":"#;
        let one = r#"{"type":"RLIMIT_NOFILE","soft":1024,"hard":18446744073709551615}"#;
        let limits = plan(&format!("{head}[{one}]}}")).expect("valid").rlimits;
        let expected = Rlimit {
            current: Some(1024),
            maximum: None,
        };
        assert_eq!(limits.len(), 1);
        assert_eq!(
            (limits[0].resource, limits[0].limit),
            (Resource::Nofile, expected)
        );
        let inverted = r#"{"type":"RLIMIT_CORE","soft":2,"hard":1}"#;
        for bad in [one, inverted] {
            let refused = plan(&format!("{head}[{one},{bad}]}}")).map_err(|e| e.field);
            assert_eq!(refused.err().as_deref(), Some("rlimits[1]"), "{bad}");
        }
    }

    #[test]
    fn what_is_out_of_range_names_its_field() {
        let table = [
            (r#""user":{"uid":4294967295,"gid":0}"#, "user.uid"),
            (r#""user":{"uid":0,"gid":4294967295}"#, "user.gid"),
            (
                r#""user":{"uid":0,"gid":0,"additionalGids":[1,4294967295]}"#,
                "user.additionalGids[1]",
            ),
            (
                r#""user":{"uid":0,"gid":0},"oomScoreAdj":1001"#,
                "oomScoreAdj",
            ),
            (r#""user":{"uid":0,"gid":0},"env":["A=1","B"]"#, "env[1]"),
            (r#""user":{"uid":0,"gid":0},"env":["=1"]"#, "env[0]"),
        ];
        for (fields, field) in table {
            let bad = plan(&format!(r#"{{"cwd":"/","args":["a"],{fields}}}"#));
            assert_eq!(
                bad.map_err(|e| e.field).err().as_deref(),
                Some(field),
                "{fields}"
            );
        }
    }

    #[test]
    fn a_zero_byte_is_refused_with_the_argument_it_is_in() {
        let bad = plan(r#"{"user":{"uid":0,"gid":0},"cwd":"/","args":["a","b\u0000c"]}"#);
        assert_eq!(bad.map_err(|e| e.field).err().as_deref(), Some("args[1]"));
    }
}
