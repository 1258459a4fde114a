//! The hooks that the container's own process runs.

use std::ffi::CStr;
use std::os::fd::{OwnedFd, RawFd};

use rustix::io::Errno;

use super::one::{self, HookFiles, Outcome};
use super::{explain, fill};
use crate::error::{At as _, ChildFailure, Error, Failure, Result, Step};
use crate::plan::HookPlan;
use crate::state::ContainerState;
use crate::sys::CStrArray;

/// Files for these hooks; the parent fills in the states and reads what a hook had to say.
#[derive(Debug)]
pub(crate) struct ChildHookIo {
    creating: HookFiles,
    starting: HookFiles,
    /// Number and end of the hook that failed.
    verdict: OwnedFd,
}

/// Hooks of one kind, with where they run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildHooks<'p> {
    pub(crate) step: Step,
    pub(crate) list: &'p [HookPlan],
    pub(crate) directory: &'p CStr,
    /// What a hook without an environment of its own inherits, complete now.
    pub(crate) env: Option<&'p CStrArray>,
}

impl ChildHookIo {
    /// Empty ones.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            creating: HookFiles::new()?,
            starting: HookFiles::new()?,
            verdict: super::memory_file()?,
        })
    }

    /// A second set of descriptors of the same files, for the parent.
    pub(crate) fn share(&self) -> Result<Self> {
        Ok(Self {
            creating: self.creating.share()?,
            starting: self.starting.share()?,
            verdict: self.verdict.try_clone().map_err(Error::os("dup"))?,
        })
    }

    /// The numbers of what is needed after creation, to be kept when others are closed.
    pub(in super::super) fn raw_fds(&self) -> [RawFd; 5] {
        use std::os::fd::AsRawFd as _;
        let [state, output, errors, reason] = self.starting.raw_fds();
        [state, output, errors, reason, self.verdict.as_raw_fd()]
    }

    /// Puts the states in place, once the pid is known.
    pub(crate) fn fill(&self, creating: &ContainerState, starting: &ContainerState) -> Result<()> {
        fill(&self.creating.state, creating)?;
        fill(&self.starting.state, starting)
    }

    /// Turns the news that a hook has failed into what it had to say.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let Error::Init(ChildFailure { step, detail, .. }) = &error else {
            return error;
        };
        let (kind, files) = match step {
            Step::CreateContainerHook => ("createContainer", &self.creating),
            Step::StartContainerHook => ("startContainer", &self.starting),
            _ => return error,
        };
        let told = self
            .read_verdict()
            .and_then(|(index, outcome)| Some((index, explain(outcome, detail, files)?)));
        match told {
            Some((index, reason)) => Error::Hook {
                kind,
                index,
                reason,
            },
            None => error,
        }
    }

    fn write_verdict(&self, index: usize, outcome: Outcome) {
        let (kind, value) = match outcome {
            Outcome::Exited(code) => (0, code),
            Outcome::Killed(signal) => (1, signal),
            Outcome::TimedOut(limit) => (2, limit),
            Outcome::NotExecuted(errno) => (3, errno),
        };
        let mut bytes = [0; 12];
        for (place, word) in bytes.chunks_exact_mut(4).zip([index as i32, kind, value]) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        // Without it the parent reports the failure with fewer words.
        let _ = rustix::io::pwrite(&self.verdict, &bytes, 0);
    }

    fn read_verdict(&self) -> Option<(usize, Outcome)> {
        let mut bytes = [0; 12];
        if rustix::io::pread(&self.verdict, &mut bytes, 0) != Ok(bytes.len()) {
            return None;
        }
        let word = |at: usize| {
            let word = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(i32::from_ne_bytes(word))
        };
        let outcome = match (word(4)?, word(8)?) {
            (0, code) => Outcome::Exited(code),
            (1, signal) => Outcome::Killed(signal),
            (2, limit) => Outcome::TimedOut(limit),
            (_, errno) => Outcome::NotExecuted(errno),
        };
        Some((usize::try_from(word(0)?).ok()?, outcome))
    }
}

impl HookFiles {
    fn share(&self) -> Result<Self> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(Error::os("dup"));
        Ok(Self {
            state: copy(&self.state)?,
            output: copy(&self.output)?,
            errors: copy(&self.errors)?,
            reason: copy(&self.reason)?,
        })
    }
}

/// Runs hooks from the child, without allocating; the first that fails is reported by its path.
pub(in super::super) fn run_child_hooks<'p>(
    hooks: ChildHooks<'p>,
    io: Option<&ChildHookIo>,
) -> std::result::Result<(), Failure<'p>> {
    let Some(io) = io else { return Ok(()) };
    let files = if hooks.step == Step::CreateContainerHook {
        &io.creating
    } else {
        &io.starting
    };
    for (index, hook) in hooks.list.iter().enumerate() {
        let path = hook.path.to_bytes();
        let env = hooks.env.filter(|_| hook.inherits).unwrap_or(&hook.env);
        let outcome = one::run(hook, files, hooks.directory, env).at(hooks.step, path)?;
        if outcome != Outcome::Exited(0) {
            io.write_verdict(index, outcome);
            return Err(Errno::CANCELED).at(hooks.step, path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_as_it_was_written() {
        let io = ChildHookIo::new().expect("memory files");
        assert_eq!(io.read_verdict(), None);
        for outcome in [
            Outcome::Exited(3),
            Outcome::Killed(9),
            Outcome::TimedOut(5),
            Outcome::NotExecuted(libc::ENOENT),
        ] {
            io.write_verdict(4, outcome);
            assert_eq!(io.read_verdict(), Some((4, outcome)));
        }
    }
}
