//! Socket activation: descriptors that a service manager gave to us are the container's
//! (`sd_listen_fds(3)`).

use std::env;

/// Descriptors from 3 on that are meant for the container's process, and what tells it so.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Activation {
    pub(super) count: u32,
    pub(super) env: Vec<String>,
}

impl Activation {
    /// What this process was given.
    pub(super) fn of_this_process() -> Self {
        Self::from(|name| env::var(name).ok(), std::process::id())
    }

    fn from(variable: impl Fn(&str) -> Option<String>, own_pid: u32) -> Self {
        let number = |name: &str| variable(name)?.parse::<u32>().ok();
        let (count, pid) = (number("LISTEN_FDS"), number("LISTEN_PID"));
        match count {
            Some(count) if count > 0 && pid == Some(own_pid) => Self {
                count,
                // Init of a pid namespace has this pid.
                env: [
                    Some(format!("LISTEN_FDS={count}")),
                    Some("LISTEN_PID=1".to_owned()),
                ]
                .into_iter()
                .chain([variable("LISTEN_FDNAMES").map(|names| format!("LISTEN_FDNAMES={names}"))])
                .flatten()
                .collect(),
            },
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_meant_for_this_process_is_passed_on() {
        let given = |pid: &'static str| {
            move |name: &str| match name {
                "LISTEN_FDS" => Some("2".to_owned()),
                "LISTEN_PID" => Some(pid.to_owned()),
                "LISTEN_FDNAMES" => Some("a:b".to_owned()),
                _ => None,
            }
        };
        let ours = Activation::from(given("77"), 77);
        assert_eq!(ours.count, 2);
        assert_eq!(
            ours.env,
            ["LISTEN_FDS=2", "LISTEN_PID=1", "LISTEN_FDNAMES=a:b"]
        );
        assert_eq!(Activation::from(given("78"), 77), Activation::default());
        assert_eq!(Activation::from(|_| None, 77), Activation::default());
    }
}
