//! `process` → everything the child has to set before `execve`, laid out.

use std::collections::HashSet;
use std::ffi::CString;

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimit,
    PosixRlimitType, Process, Scheduler,
};
use rustix::process::{Resource, Rlimit};
use rustix::termios::Winsize;
use rustix::thread::Gid;

use super::capabilities::CapabilityPlan;
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
    pub(crate) umask: u32,
    /// None leaves the process all that its user namespace gives it, as runc does.
    pub(crate) capabilities: Option<CapabilityPlan>,
    pub(crate) no_new_privileges: bool,
    pub(crate) rlimits: Vec<(Resource, Rlimit)>,
    pub(crate) oom_score_adj: Option<String>,
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<Winsize>,
    pub(crate) scheduler: Option<SchedAttr>,
    pub(crate) io_priority: Option<i32>,
    pub(crate) label: Option<LabelPlan>,
}

/// What `argv[0]` names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// A path: has a slash.
    Path(CString),
    /// A name: each directory of `PATH` with it.
    Search(Vec<CString>),
}

/// A security module's label for the next `execve`, and the file below `/proc/self` it goes to.
#[derive(Debug)]
pub(crate) struct LabelPlan {
    pub(crate) file: CString,
    pub(crate) value: Vec<u8>,
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
                .filter(|gid| **gid != u32::MAX)
                .map(|gid| Gid::from_raw(*gid))
                .collect(),
            umask: user.umask().unwrap_or(0o022),
            capabilities: process
                .capabilities()
                .as_ref()
                .map(CapabilityPlan::from_spec),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
            oom_score_adj: process.oom_score_adj().map(|adj| adj.to_string()),
            terminal: process.terminal().unwrap_or(false),
            console_size: process.console_size().map(|size| Winsize {
                ws_row: size.height() as u16,
                ws_col: size.width() as u16,
                ws_xpixel: 0,
                ws_ypixel: 0,
            }),
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority().as_ref().map(io_priority),
            label: label(process)?,
        })
    }
}

/// Lays the environment out; whether `HOME` is still to be found, and `PATH`.
fn environment(env: &[String]) -> Result<(CStrArray, bool, Option<&str>), FieldError> {
    if let Some(index) = env.iter().position(|v| !v.contains('=')) {
        let reason = "invalid environment variable: missing '='";
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

/// Class and level in one number (`ioprio_set(2)`).
fn io_priority(wanted: &LinuxIOPriority) -> i32 {
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    class << 13 | (wanted.priority() as i32 & 0x1fff)
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

fn rlimits(list: &[PosixRlimit]) -> Result<Vec<(Resource, Rlimit)>, FieldError> {
    let mut limits: Vec<(Resource, Rlimit)> = Vec::with_capacity(list.len());
    let value = |v: u64| (v != u64::MAX).then_some(v);
    for limit in list {
        let resource = resource(limit.typ());
        if limits.iter().any(|(known, _)| *known == resource) {
            return Err(FieldError::new(
                "rlimits",
                &format!("{} is given twice", limit.typ()),
            ));
        }
        limits.push((
            resource,
            Rlimit {
                current: value(limit.soft()),
                maximum: value(limit.hard()),
            },
        ));
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

fn scheduler(wanted: &Scheduler) -> Result<SchedAttr, FieldError> {
    let policy = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(FieldError::new(
                "scheduler.policy",
                "SCHED_ISO is not in Linux",
            ));
        }
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    Ok(SchedAttr {
        size: 0,
        policy,
        flags: wanted
            .flags()
            .iter()
            .flatten()
            .map(flag)
            .fold(0, |all, bit| all | bit),
        nice: wanted.nice().unwrap_or(0),
        priority: wanted.priority().unwrap_or(0) as u32,
        runtime: wanted.runtime().unwrap_or(0),
        deadline: wanted.deadline().unwrap_or(0),
        period: wanted.period().unwrap_or(0),
    })
}

fn label(process: &Process) -> Result<Option<LabelPlan>, FieldError> {
    let some = |text: &'_ Option<String>| text.clone().filter(|t| !t.is_empty());
    let apparmor = some(process.apparmor_profile()).filter(|p| p != "unconfined");
    Ok(match (apparmor, some(process.selinux_label())) {
        (Some(_), Some(_)) => {
            let reason = "apparmorProfile and selinuxLabel exclude each other";
            return Err(FieldError::new("selinuxLabel", reason));
        }
        (Some(profile), None) => Some(LabelPlan {
            file: c"attr/apparmor/exec".to_owned(),
            value: format!("exec {profile}").into_bytes(),
        }),
        (None, Some(label)) => Some(LabelPlan {
            file: c"attr/exec".to_owned(),
            value: label.into_bytes(),
        }),
        (None, None) => None,
    })
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
        assert_eq!((plan.uid, plan.gid, plan.umask), (7, 8, 63));
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
        assert_eq!(limits, [(Resource::Nofile, expected)]);
        let twice = plan(&format!("{head}[{one},{one}]}}"));
        assert_eq!(twice.map_err(|e| e.field).err().as_deref(), Some("rlimits"));
    }

    #[test]
    fn a_zero_byte_is_refused_with_the_argument_it_is_in() {
        let bad = plan(r#"{"user":{"uid":0,"gid":0},"cwd":"/","args":["a","b\u0000c"]}"#);
        assert_eq!(bad.map_err(|e| e.field).err().as_deref(), Some("args[1]"));
    }
}
