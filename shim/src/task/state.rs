//! What a process may do in which state, in the words of containerd's runc shim: clients and
//! tests match on them.

use serde::{Deserialize, Serialize};
use xebec_proto::task_types::Status;

use crate::error::{Error, Result};

/// Life of a process, init or exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// Made, not started: an init waits for its start, an exec is only registered.
    Created,
    /// Started.
    Running,
    /// Frozen (init only).
    Paused,
    /// Exited, or failed to start.
    Stopped,
    /// Deleted; only a late caller sees it.
    Deleted,
}

impl State {
    /// The status that the task API reports.
    pub(super) fn status(self) -> Status {
        match self {
            State::Created => Status::Created,
            State::Running => Status::Running,
            State::Paused => Status::Paused,
            State::Stopped | State::Deleted => Status::Stopped,
        }
    }
}

/// Operations that depend on the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Operation {
    Start,
    Delete,
    Kill,
    Pause,
    Resume,
    Update,
    Exec,
    Checkpoint,
}

/// Refuses `operation` where `state` does not allow it.
pub(super) fn check(state: State, operation: Operation) -> Result<()> {
    use Operation::{Checkpoint, Delete, Exec, Kill, Pause, Resume, Start, Update};
    use State::{Created, Deleted, Paused, Running, Stopped};
    let refused = |text: &str| Err(Error::FailedPrecondition(text.to_owned()));
    match (state, operation) {
        (Created, Start | Delete | Kill | Update | Exec)
        | (Running, Kill | Pause | Update | Exec | Checkpoint)
        | (Paused, Kill | Resume | Update | Checkpoint)
        | (Stopped, Delete) => Ok(()),
        (Created, Pause) => refused("cannot pause task in created state"),
        (Created, Resume) => refused("cannot resume task in created state"),
        (Created, Checkpoint) => refused("cannot checkpoint a task in created state"),
        (Running, Start) => refused("cannot start a running process"),
        (Running, Delete) => refused("cannot delete a running process"),
        (Running, Resume) => refused("cannot resume a running process"),
        (Paused, Start) => refused("cannot start a paused process"),
        (Paused, Delete) => refused("cannot delete a paused process"),
        (Paused, Pause) => refused("cannot pause a paused container"),
        (Paused, Exec) => refused("cannot exec in a paused state"),
        (Stopped, Start) => refused("cannot start a stopped process"),
        (Stopped, Pause) => refused("cannot pause a stopped container"),
        (Stopped, Resume) => refused("cannot resume a stopped container"),
        (Stopped, Update) => refused("cannot update a stopped container"),
        (Stopped, Exec) => refused("cannot exec in a stopped state"),
        (Stopped, Checkpoint) => refused("cannot checkpoint a stopped process"),
        (Stopped | Deleted, Kill) => Err(Error::NotFound("process already finished".into())),
        (Deleted, Start) => refused("cannot start a deleted process"),
        (Deleted, Pause) => refused("cannot pause a deleted process"),
        (Deleted, Resume) => refused("cannot resume a deleted process"),
        (Deleted, Update) => refused("cannot update a deleted process"),
        (Deleted, Checkpoint) => refused("cannot checkpoint a deleted process"),
        (Deleted, Exec) => refused("cannot exec in a deleted state"),
        (Deleted, Delete) => Err(Error::NotFound("cannot delete a deleted process".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const STATES: [State; 5] = [
        State::Created,
        State::Running,
        State::Paused,
        State::Stopped,
        State::Deleted,
    ];

    #[test]
    fn each_operation_is_allowed_in_exactly_these_states() {
        use State::{Created, Paused, Running, Stopped};
        let table: [(Operation, &[State]); 8] = [
            (Operation::Start, &[Created]),
            (Operation::Delete, &[Created, Stopped]),
            (Operation::Kill, &[Created, Running, Paused]),
            (Operation::Pause, &[Running]),
            (Operation::Resume, &[Paused]),
            (Operation::Update, &[Created, Running, Paused]),
            (Operation::Exec, &[Created, Running]),
            (Operation::Checkpoint, &[Running, Paused]),
        ];
        for (operation, allowed) in table {
            for state in STATES {
                let verdict = check(state, operation);
                assert_eq!(
                    verdict.is_ok(),
                    allowed.contains(&state),
                    "{operation:?} in {state:?}"
                );
            }
        }
    }

    #[test]
    fn refusals_carry_the_code_and_words_that_clients_match_on() {
        for (state, operation, code, text) in [
            (
                State::Running,
                Operation::Delete,
                Code::FailedPrecondition,
                "running process",
            ),
            (
                State::Stopped,
                Operation::Kill,
                Code::NotFound,
                "process already finished",
            ),
            (
                State::Deleted,
                Operation::Delete,
                Code::NotFound,
                "deleted process",
            ),
            (
                State::Paused,
                Operation::Exec,
                Code::FailedPrecondition,
                "paused state",
            ),
        ] {
            let error = check(state, operation).unwrap_err();
            assert_eq!(error.code(), code);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
