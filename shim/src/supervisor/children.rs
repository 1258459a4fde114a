//! The supervisor's children: those it watches, whose ends it tells and whose zombies it keeps
//! until the worker has dealt with them, and orphans, which it collects.
//!
//! A watched child's pid cannot be reused before it is forgotten, so the worker may signal it by
//! pid at any time, and its exit status survives in the kernel.

use std::collections::BTreeMap;

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus};

use super::message::Exit;
use crate::{log, sys};

/// Status for a process whose real one cannot be known.
pub const UNKNOWN_STATUS: u32 = 255;

/// The watched children and how those that have died ended.
#[derive(Debug, Default)]
pub(super) struct Children(BTreeMap<i32, Option<Exit>>);

impl Children {
    /// From now on the end of `pid` is told.
    pub(super) fn watch(&mut self, pid: i32) {
        self.0.entry(pid).or_default();
    }

    /// Lets go of `pid`; if it is dead it is collected.
    pub(super) fn forget(&mut self, pid: i32) {
        self.0.remove(&pid);
        collect(pid);
    }

    /// Those that are watched.
    pub(super) fn pids(&self) -> Vec<i32> {
        self.0.keys().copied().collect()
    }

    /// Those that are watched and not dead.
    pub(super) fn living(&self) -> Vec<i32> {
        let living = self.0.iter().filter(|(_, exit)| exit.is_none());
        living.map(|(pid, _)| *pid).collect()
    }

    /// The known ends.
    pub(super) fn exits(&self) -> impl Iterator<Item = (i32, Exit)> {
        self.0
            .iter()
            .filter_map(|(pid, exit)| Some((*pid, (*exit)?)))
    }

    /// Those of the watched that have died since the last call.
    pub(super) fn died(&mut self) -> Vec<(i32, Exit)> {
        let living = self.0.iter_mut().filter(|(_, exit)| exit.is_none());
        let mut died = Vec::new();
        for (pid, exit) in living {
            if let Some(status) = peek(*pid) {
                let now = Exit::now(status);
                *exit = Some(now);
                died.push((*pid, now));
            }
        }
        died
    }

    /// Collects dead children that are neither watched nor `taken` care of elsewhere. Must not be
    /// called while a child may still be somebody's without being watched yet.
    pub(super) fn collect_orphans(&self, taken: impl Fn(i32) -> bool) {
        let is_orphan = |pid: &i32| !self.0.contains_key(pid) && !taken(*pid);
        // A watched zombie hides those behind it until it is forgotten.
        while let Some(pid) = sys::dead_child().filter(is_orphan) {
            if !collect(pid) {
                return;
            }
        }
    }
}

/// The status of a child that has died, which stays a zombie.
fn peek(pid: i32) -> Option<u32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        match rustix::process::waitid(WaitId::Pid(Pid::from_raw(pid)?), options) {
            Ok(status) => return status.map(|status| code(&status)),
            Err(Errno::INTR) => {}
            Err(error) => {
                log::error(format_args!("wait for process {pid}: {error}"));
                return Some(UNKNOWN_STATUS);
            }
        }
    }
}

/// Collects a zombie; false if there was none.
fn collect(pid: i32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    Pid::from_raw(pid).is_some_and(|pid| {
        matches!(
            rustix::process::waitid(WaitId::Pid(pid), options),
            Ok(Some(_))
        )
    })
}

/// Exit code, or 128 + signal.
pub(super) fn code(status: &WaitIdStatus) -> u32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code as u32,
        (None, Some(signal)) => 128 + signal as u32,
        (None, None) => UNKNOWN_STATUS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn exit_of(script: &str) -> u32 {
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = child.id() as i32;
        let mut children = Children::default();
        children.watch(pid);
        let exit = loop {
            if let [(dead, exit)] = children.died()[..] {
                assert_eq!(dead, pid);
                break exit;
            }
            std::thread::yield_now();
        };
        assert!(children.died().is_empty(), "the same end was told twice");
        assert_eq!(children.exits().collect::<Vec<_>>(), [(pid, exit)]);
        children.forget(pid);
        assert!(child.wait().is_err(), "the zombie was not collected");
        exit.status
    }

    #[test]
    fn exit_codes_and_signals_become_one_status_and_the_zombie_stays_until_it_is_forgotten() {
        assert_eq!(exit_of("exit 0"), 0);
        assert_eq!(exit_of("exit 42"), 42);
        assert_eq!(exit_of("kill -KILL $$"), 137);
        assert_eq!(exit_of("kill -TERM $$"), 143);
    }
}
