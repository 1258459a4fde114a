//! containerd's events of tasks, as `ctr events` tells them.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::hosts::NativeHost;

/// How long an event may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// One event of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `/tasks/exit` and others.
    pub topic: String,
    /// The container.
    pub container: String,
    /// The process: the container's id for init, an exec id, or empty where the topic has none.
    pub process: String,
    /// Of an exit.
    pub status: Option<u32>,
    /// When it came here.
    pub at: Instant,
}

/// A subscription; it ends with containerd.
#[derive(Debug)]
pub struct Events {
    process: Child,
    lines: Receiver<(Instant, String)>,
    /// What has come so far.
    seen: Vec<Event>,
}

impl Events {
    /// Subscribes, and returns when events are being delivered.
    pub fn follow(host: &NativeHost) -> Result<Self> {
        let mut process = host.spawn(&["ctr", "events"])?;
        let stdout = process.stdout.take();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout
                .into_iter()
                .flat_map(|out| BufReader::new(out).lines())
            {
                // A broken pipe or a receiver that is gone are the end alike.
                let send = |line| sender.send((Instant::now(), line)).is_err();
                if line.is_err() || line.is_ok_and(send) {
                    return;
                }
            }
        });
        let mut events = Self {
            process,
            lines,
            seen: Vec::new(),
        };
        events.wait_for_subscription(host)?;
        Ok(events)
    }

    /// It says nothing when it listens, so an event of our own tells.
    fn wait_for_subscription(&mut self, host: &NativeHost) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            host.check(&["ctr", "namespaces", "label", "default", "probe=events"])?;
            while let Ok((at, line)) = self.lines.recv_timeout(Duration::from_millis(100)) {
                if line.contains("/namespaces/update") {
                    return Ok(());
                }
                self.seen.extend(parse(&line, at));
            }
        }
        Err(Error::invalid("events of containerd", "none came"))
    }

    /// Waits until `is_enough` holds of what has come; an error after a minute without.
    pub fn wait(&mut self, is_enough: impl Fn(&[Event]) -> bool) -> Result<&[Event]> {
        let end = Instant::now() + PATIENCE;
        while !is_enough(&self.seen) {
            let rest = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(rest) {
                Ok((at, line)) => self.seen.extend(parse(&line, at)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(Error::invalid(
                        "events of containerd",
                        format!("not all came: {:#?}", self.seen),
                    ));
                }
            }
        }
        Ok(&self.seen)
    }

    /// Everything that has come by now, of what was published before this call: an event of our
    /// own, published now, comes after it.
    pub fn all(mut self, host: &NativeHost) -> Result<Vec<Event>> {
        self.wait_for_subscription(host)?;
        Ok(std::mem::take(&mut self.seen))
    }

    /// Everything that came until containerd ended, which it must have.
    pub fn until_the_end(mut self) -> Result<Vec<Event>> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok((at, line)) => self.seen.extend(parse(&line, at)),
                Err(RecvTimeoutError::Disconnected) => return Ok(std::mem::take(&mut self.seen)),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Error::invalid("events of containerd", "they go on"));
                }
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended with containerd.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A line of `ctr events`: date, time, zone, another zone, namespace, topic and JSON.
fn parse(line: &str, at: Instant) -> Option<Event> {
    let start = line.find(" /tasks/")? + 1;
    let (topic, json) = line[start..].split_once(' ')?;
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let process = if value["exec_id"].is_string() {
        text("exec_id")
    } else {
        text("id")
    };
    Some(Event {
        topic: topic.to_owned(),
        container: text("container_id"),
        process,
        status: (topic == "/tasks/exit").then(|| value["exit_status"].as_u64().unwrap_or(0) as u32),
        at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Event> {
        super::parse(line, Instant::now())
    }

    #[test]
    fn an_exit_is_read_with_its_process_and_status() {
        let line = r#"2026-11-27 08:00:00.1 +0000 UTC default /tasks/exit {"container_id":"c","id":"x","pid":7,"exit_status":3,"exited_at":{}}"#;
        let event = parse(line).unwrap();
        assert_eq!(
            (
                &*event.topic,
                &*event.container,
                &*event.process,
                event.status
            ),
            ("/tasks/exit", "c", "x", Some(3))
        );
        let added = r#"… UTC default /tasks/exec-added {"container_id":"c","exec_id":"x"}"#;
        assert_eq!(parse(added).unwrap().process, "x");
        assert_eq!(parse("… /images/create {}"), None);
    }
}
