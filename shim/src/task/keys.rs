//! The keys under which the supervisor keeps the worker's records. What belongs to a container
//! lies below its key, what belongs to a process below that one's.

use crate::supervisor::message::Change;

/// The sandbox. Nothing of a container begins with a slash.
pub(crate) const SANDBOX: &str = "/sandbox";

/// Everything of a container.
pub(crate) fn container(id: &str) -> String {
    format!("{id}/")
}

/// Everything of a process; init's exec id is empty.
pub(crate) fn process(id: &str, exec_id: &str) -> String {
    format!("{id}/p/{exec_id}/")
}

/// One of a process' streams.
pub(crate) fn stream(id: &str, exec_id: &str, name: &str) -> String {
    format!("{id}/p/{exec_id}/{name}")
}

/// Name of the pid among the streams of a process whose launch was under way.
pub(super) const PID: &str = "pid";

/// The pid of a process, once it has one.
pub(crate) fn pid(id: &str, exec_id: &str) -> String {
    stream(id, exec_id, PID)
}

/// So many out-of-memory kills of a container have been told.
pub(crate) fn oom_kills(id: &str, kills: u64) -> Change {
    Change::Put {
        key: format!("{id}/oom"),
        record: kills.to_string(),
        fds: None,
    }
}

/// What a key names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key<'k> {
    Sandbox,
    Container(&'k str),
    OomKills(&'k str),
    Process(&'k str, &'k str),
    Stream(&'k str, &'k str, &'k str),
}

/// Takes a key apart. Ids have no slashes.
pub(super) fn parse(key: &str) -> Option<Key<'_>> {
    match key.split('/').collect::<Vec<_>>()[..] {
        ["", "sandbox"] => Some(Key::Sandbox),
        [id, ""] => Some(Key::Container(id)),
        [id, "oom"] => Some(Key::OomKills(id)),
        [id, "p", exec_id, ""] => Some(Key::Process(id, exec_id)),
        [id, "p", exec_id, name] => Some(Key::Stream(id, exec_id, name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_and_nested() {
        assert_eq!(parse(&container("c")), Some(Key::Container("c")));
        let Change::Put { key, record, .. } = oom_kills("c", 3) else {
            panic!("no record");
        };
        assert_eq!((parse(&key), &*record), (Some(Key::OomKills("c")), "3"));
        for exec_id in ["", "x"] {
            let process = process("c", exec_id);
            assert_eq!(parse(&process), Some(Key::Process("c", exec_id)));
            let stream = stream("c", exec_id, "out");
            assert_eq!(parse(&stream), Some(Key::Stream("c", exec_id, "out")));
            assert!(stream.starts_with(&process) && process.starts_with(&container("c")));
        }
        assert_eq!(parse(SANDBOX), Some(Key::Sandbox));
        assert_eq!(parse("c/x/y"), None);
    }
}
