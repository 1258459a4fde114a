use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
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
                    self.print("stats", Some(metrics::document(&cgroup.stats()?)))?
                }
            };
        }
    }

    fn print(&self, kind: &str, data: Option<Value>) -> Result<u8> {
        let mut event = json!({"type": kind, "id": self.id});
        if let (Some(data), Some(members)) = (data, event.as_object_mut()) {
            members.insert("data".to_owned(), data);
        }
        print_json(&event, false)
    }
}
