//! Where the milliseconds of one `run` go: its system calls in order, cut into the chapters of
//! its story, with what tracing itself costs taken off each call alike.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::measure::{output, wall_ms};
use super::stats::Summary;
use crate::error::{Error, Result};

/// A chapter of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// What happens in it.
    pub name: String,
    /// How long it takes, in milliseconds of wall time.
    pub ms: f64,
    /// System calls of all processes that begin in it.
    pub calls: u32,
}

/// How a chapter is recognised.
#[derive(Debug, Clone, Copy)]
enum Begins {
    /// With the trace.
    AtOnce,
    /// With the next call that contains this.
    Call(&'static str),
    /// With the next call of a process that has made none before.
    NewProcess,
}

/// The chapters of `xebec run`, as ARCHITECTURE.md tells them.
const STORY: &[(&str, Begins)] = &[
    ("start of the program, command line", Begins::AtOnce),
    ("config.json: read and planned", Begins::Call("config.json")),
    ("filter from the cache", Begins::Call("@seccomp")),
    ("record, cgroup, device program", Begins::Call("mkdirat(")),
    ("trees of the host", Begins::Call("open_tree(")),
    ("clone3: the namespaces", Begins::Call("clone3(")),
    ("private mounts, keyring, loopback", Begins::NewProcess),
    ("mounts", Begins::Call("fsopen(")),
    ("devices and links", Begins::Call("mknodat(")),
    ("read-only and masked paths", Begins::Call("open_tree(")),
    ("change of root", Begins::Call("pivot_root(")),
    (
        "user, capabilities, filter",
        Begins::Call("PR_CAPBSET_DROP"),
    ),
    ("execve and the program", Begins::Call("execve(")),
    ("end of the namespaces", Begins::Call("exit_group(")),
    ("record and cgroup removed", Begins::Call("waitid(")),
];

/// How many runs are traced; a chapter's figure is the median.
const TRACES: u32 = 9;

/// Traces `command` (given the number of the trace, so that names can differ), which takes
/// `untraced` milliseconds when nobody looks.
pub fn measure(command: impl Fn(u32) -> Vec<String>, untraced: f64) -> Result<Vec<Phase>> {
    let file = tempfile::NamedTempFile::new().map_err(Error::system("create a trace"))?;
    let path = file.path().to_string_lossy().into_owned();
    let mut traces = Vec::new();
    for number in 0..TRACES {
        let mut argv: Vec<String> = ["strace", "-f", "-ttt", "-s", "256", "-o", &path]
            .map(str::to_owned)
            .to_vec();
        argv.extend(command(number));
        wall_ms(&argv)?;
        let text = std::fs::read_to_string(&path).map_err(Error::file("read", file.path()))?;
        traces.push(cut(&text)?);
    }
    Ok(without_tracing(&medians(&traces), untraced))
}

/// The chapters of one trace, tracing included.
fn cut(trace: &str) -> Result<Vec<Phase>> {
    let mut processes = Vec::new();
    let mut phases: Vec<(f64, Phase)> = Vec::new();
    let mut end = 0.0;
    for (process, time, event) in trace.lines().filter_map(parse) {
        end = time;
        let begins = match STORY.get(phases.len()).map(|(_, begins)| *begins) {
            Some(Begins::AtOnce) => true,
            Some(Begins::Call(text)) => is_call(event) && event.contains(text),
            Some(Begins::NewProcess) => !processes.contains(&process),
            None => false,
        };
        if !processes.contains(&process) {
            processes.push(process);
        }
        if begins {
            let name = STORY[phases.len()].0.to_owned();
            let (ms, calls) = (0.0, 0);
            phases.push((time, Phase { name, ms, calls }));
        }
        if let Some((_, phase)) = phases.last_mut() {
            phase.calls += u32::from(is_call(event));
        }
    }
    if let Some((name, begins)) = STORY.get(phases.len()) {
        let reason = format!("{name:?} never began ({begins:?})");
        return Err(Error::invalid("trace of a run", reason));
    }
    let ends: Vec<_> = phases.iter().skip(1).map(|(began, _)| *began).collect();
    Ok(phases
        .into_iter()
        .zip(ends.into_iter().chain([end]))
        .map(|((began, phase), end)| Phase {
            ms: (end - began) * 1e3,
            ..phase
        })
        .collect())
}

/// Process, time in seconds, and what happened.
fn parse(line: &str) -> Option<(&str, f64, &str)> {
    let (process, rest) = line.split_once(' ')?;
    let (time, event) = rest.trim_start().split_once(' ')?;
    Some((process, time.parse().ok()?, event))
}

/// Whether the event is the beginning of a call: not its end, a signal or an exit.
fn is_call(event: &str) -> bool {
    event.starts_with(|first: char| first.is_ascii_lowercase())
}

fn medians(traces: &[Vec<Phase>]) -> Vec<Phase> {
    let of = |index: usize, figure: fn(&Phase) -> f64| {
        let figures: Vec<_> = traces.iter().map(|trace| figure(&trace[index])).collect();
        Summary::of(&figures).map_or(0.0, |summary| summary.median)
    };
    let names = STORY.iter().map(|(name, _)| (*name).to_owned());
    names
        .enumerate()
        .map(|(index, name)| Phase {
            name,
            ms: of(index, |phase| phase.ms),
            calls: of(index, |phase| f64::from(phase.calls)) as u32,
        })
        .collect()
}

/// Takes off what each traced call costs, so that the sum is what an untraced run takes.
fn without_tracing(phases: &[Phase], untraced: f64) -> Vec<Phase> {
    let total: f64 = phases.iter().map(|phase| phase.ms).sum();
    let calls: u32 = phases.iter().map(|phase| phase.calls).sum();
    let cost = (total - untraced).max(0.0) / f64::from(calls.max(1));
    phases
        .iter()
        .map(|phase| Phase {
            ms: (phase.ms - cost * f64::from(phase.calls)).max(0.0),
            ..phase.clone()
        })
        .collect()
}

/// The chapters as a table; nothing when there are none.
pub fn table(phases: &[Phase]) -> String {
    let mut text = String::new();
    for phase in phases {
        let Phase { name, ms, calls } = phase;
        let _ = writeln!(text, "{name:<40} {ms:>8.2} ms {calls:>6} calls");
    }
    text
}

/// How many system calls a command and its children make.
pub fn count(argv: &[String]) -> Result<f64> {
    let file = tempfile::NamedTempFile::new().map_err(Error::system("create a trace"))?;
    let path = file.path().to_string_lossy().into_owned();
    let strace = ["strace", "-f", "-c", "-o", &path].map(str::to_owned);
    output(&[&strace[..], argv].concat())?;
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", file.path()))?;
    total(&text).ok_or_else(|| Error::invalid("summary of strace", text))
}

/// The calls in the last line of `strace -c`: share, seconds, microseconds a call, calls, …
fn total(summary: &str) -> Option<f64> {
    let line = summary.lines().find(|line| line.ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace with one call for each chapter, a millisecond apart.
    fn trace() -> String {
        let mut text = String::new();
        for (index, (_, begins)) in STORY.iter().enumerate() {
            let process = if index < 6 { 10 } else { 11 };
            let call = match begins {
                Begins::Call(call) => call,
                _ => "getpid(",
            };
            let call = if call.contains('(') { "" } else { "open(" }.to_owned() + call;
            let _ = writeln!(text, "{process}    1000.{index:03}000 {call}) = 0");
        }
        text + "10    1000.015500 +++ exited with 0 +++\n"
    }

    #[test]
    fn a_trace_is_cut_where_its_chapters_begin() {
        let phases = cut(&trace()).unwrap();
        assert_eq!(phases.len(), STORY.len());
        assert!(phases.iter().all(|p| p.calls == 1), "{phases:?}");
        assert!((phases[3].ms - 1.0).abs() < 0.01, "{phases:?}");
        assert!((phases[14].ms - 1.5).abs() < 0.01, "{phases:?}");
    }

    #[test]
    fn a_chapter_that_never_begins_is_named() {
        let text = trace().replace("pivot_root", "chroot");
        let error = cut(&text).unwrap_err().to_string();
        assert!(error.contains("change of root"), "{error}");
    }

    #[test]
    fn ends_of_calls_and_signals_are_no_calls() {
        for event in [
            "<... read resumed>, 1) = 1",
            "--- SIGCHLD ---",
            "+++ exited +++",
        ] {
            assert!(!is_call(event), "{event}");
        }
    }

    #[test]
    fn the_cost_of_tracing_is_taken_off_by_calls() {
        let phase = |ms, calls| Phase {
            name: String::new(),
            ms,
            calls,
        };
        let phases = without_tracing(&[phase(6.0, 10), phase(24.0, 40)], 5.0);
        assert!((phases[0].ms - 1.0).abs() < 1e-9 && (phases[1].ms - 4.0).abs() < 1e-9);
    }

    #[test]
    fn the_calls_of_a_summary_are_in_its_last_line() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.006737          16       397        26 total\n";
        assert_eq!(total(text), Some(397.0));
        assert_eq!(total("nothing"), None);
    }
}
