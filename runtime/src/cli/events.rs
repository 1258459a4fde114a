use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use xebec_runtime::cgroup::{Cgroup, Event};
use xebec_runtime::{Error, Result, Status};

use super::list::print_json;
use super::{Context, duration, metrics};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec events --stats web | jq .data.memory.usage\n  xebec events --interval 1s web"
)]
pub(super) struct Events {
    /// Time between two statistics, such as 5s, 500ms or 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    interval: String,
    /// Print the statistics once
    #[arg(long)]
    stats: bool,
    /// Name of the container
    id: String,
}

impl Events {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let interval = duration::parse(&self.interval)
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| {
                Error::InvalidArgument("duration interval must be greater than 0".into())
            })?;
        let id = self.id.parse()?;
        if context.runtime.state(&id)?.status == Status::Stopped {
            return Err(Error::Status(format!(
                "container with id {id} is not running"
            )));
        }
        let cgroup = context.runtime.cgroup(&id)?;
        if self.stats {
            return self.print("stats", Some(metrics::document(&cgroup.stats()?)));
        }
        self.follow(&cgroup, interval)
    }

    /// Statistics at every tick and out-of-memory kills in between, until the last process is gone.
    fn follow(&self, cgroup: &Cgroup, interval: Duration) -> Result<u8> {
        let mut watch = cgroup.watch()?;
        let mut tick = Instant::now() + interval;
        loop {
            match watch.next(tick)? {
                Event::OutOfMemory => self.print("oom", None)?,
                Event::Empty => return Ok(0),
                Event::Deadline => {
                    tick += interval;
                    match cgroup.stats() {
                        // Removed since the watch has looked.
                        Err(_) if !cgroup.exists() => return Ok(0),
                        stats => self.print("stats", Some(metrics::document(&stats?)))?,
                    }
                }
            };
        }
    }

    fn print(&self, kind: &'static str, data: Option<Value>) -> Result<u8> {
        let id = &self.id;
        print_json(&Line { kind, id, data }, false)
    }
}

/// One event. Its members have runc's order, by which scripts look for them.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_is_the_line_that_scripts_look_for() {
        let line = Line {
            kind: "oom",
            id: "web",
            data: None,
        };
        let text = serde_json::to_string(&line).expect("JSON");
        assert_eq!(text, r#"{"type":"oom","id":"web"}"#);
    }
}
