//! Churn by `ctr`: run, exec, kill, delete.

use std::time::{Duration, Instant};

use integration::command::Output;
use integration::ctr::{Ctr, Stack};
use integration::hosts::NativeHost;
use integration::random::Random;

use crate::ledger::Ledger;

/// What a process ends with that was killed.
const KILLED: u32 = 137;

pub(crate) struct Containers<'a> {
    ctr: Ctr<'a>,
    image: &'a str,
    ledger: &'a Ledger,
    random: Random,
    /// Its ids begin with that.
    name: String,
    number: u32,
}

impl<'a> Containers<'a> {
    pub(crate) fn new(
        host: &'a NativeHost,
        image: &'a str,
        ledger: &'a Ledger,
        (name, seed): (String, u64),
    ) -> Self {
        Self {
            ctr: Ctr::new(host),
            image,
            ledger,
            random: Random::new(seed),
            name,
            number: 0,
        }
    }

    /// Containers that come and go.
    pub(crate) fn churn(&mut self, until: Instant) {
        while Instant::now() < until {
            match self.random.below(4) {
                0 => self.run_to_the_end(),
                1 => self.run_until_it_exits(),
                _ => self.run_until_it_is_killed(),
            }
        }
    }

    /// Further processes of a container that stays.
    pub(crate) fn churn_in(&mut self, container: &str, until: Instant) {
        while Instant::now() < until {
            self.exec(container);
        }
    }

    /// An id that was never used, and a status to end with.
    fn next(&mut self) -> (String, u32) {
        self.number += 1;
        let status = 3 + self.random.below(97) as u32;
        (format!("{}-{}", self.name, self.number), status)
    }

    /// `ctr` with the status that it has to end with.
    fn says(&self, argv: &[&str], status: u32) -> Result<Output, String> {
        let output = self.ctr.output(argv).map_err(|error| error.to_string())?;
        if output.status == status as i32 {
            return Ok(output);
        }
        Err(format!("{argv:?}: {output:?} instead of {status}"))
    }

    fn run_argv<'b>(&'b self, flag: &'b str, id: &'b str, script: &'b str) -> Vec<&'b str> {
        let mut argv = Stack::XEBEC.run_arguments()[1..].to_vec();
        argv.extend([flag, self.image, id, "sh", "-c", script]);
        argv
    }

    fn run_to_the_end(&mut self) {
        let (id, status) = self.next();
        let pause = self.random.below(10);
        let script = format!("sleep 0.{pause}; echo {id}; exit {status}");
        let from = Instant::now();
        let argv = self.run_argv("--rm", &id, &script);
        let ran = self
            .ledger
            .once("ctr run --rm", || self.says(&argv, status));
        match ran {
            Some(ran) if ran.stdout.trim_end() == id => {
                self.ledger.exit(&id, &id, Some(status), from);
            }
            Some(ran) => self.ledger.fault(format!("output of {id}: {ran:?}")),
            None => {}
        }
        if self.ledger.is_troubled_since(from) {
            self.clear(&id);
        }
    }

    fn run_until_it_exits(&mut self) {
        let (id, status) = self.next();
        let script = format!(
            "sleep {}.{}; exit {status}",
            self.random.below(3),
            self.random.below(10)
        );
        let from = Instant::now();
        if self.start(&id, &script) {
            self.is_stopped(&id, status, from);
            self.delete(&id, &["tasks", "rm", &id], status);
            self.remove(&id);
        }
    }

    fn run_until_it_is_killed(&mut self) {
        let (id, _) = self.next();
        if !self.start(&id, "exec sleep 100000") {
            return;
        }
        for _ in 0..self.random.below(4) {
            self.exec(&id);
        }
        let from = Instant::now();
        if self.random.below(2) == 0 {
            if self.delete(&id, &["tasks", "rm", "-f", &id], KILLED) {
                self.ledger.exit(&id, &id, Some(KILLED), from);
            }
        } else {
            self.kill(&id);
            self.is_stopped(&id, KILLED, from);
            self.delete(&id, &["tasks", "rm", &id], KILLED);
        }
        self.remove(&id);
    }

    /// Starts a container in the background; clears up if that fails.
    fn start(&self, id: &str, script: &str) -> bool {
        let argv = self.run_argv("-d", id, script);
        let started = self.ledger.once("ctr run -d", || self.says(&argv, 0));
        if started.is_none() {
            self.clear(id);
        }
        started.is_some()
    }

    fn kill(&self, id: &str) {
        self.ledger.persist("ctr tasks kill", || {
            let done = self.ctr.output(&["tasks", "kill", "-s", "SIGKILL", id]);
            let done = done.map_err(|error| error.to_string())?;
            // An attempt before this one may have done it.
            let is_done = done.success() || done.stderr.contains("already finished");
            is_done.then_some(()).ok_or(format!("{done:?}"))
        });
    }

    fn is_stopped(&self, id: &str, status: u32, from: Instant) {
        let wait = || self.ctr.wait_until_stopped(id);
        if self.ledger.persist("wait for a task", wait).is_some() {
            self.ledger.exit(id, id, Some(status), from);
        }
    }

    /// Deletes a task, of which containerd must tell the status.
    fn delete(&self, id: &str, argv: &[&str], status: u32) -> bool {
        let mut attempts = 0;
        let deleted = self.ledger.persist("ctr tasks rm", || {
            attempts += 1;
            let done = self.ctr.output(argv).map_err(|error| error.to_string())?;
            if done.success() && !done.stderr.contains(&format!("exit code {status}")) {
                let text = format!("status of {id}: {done:?} instead of {status}");
                self.ledger.fault(text);
            }
            // An attempt that was cut off may have come to its end.
            let is_gone = attempts > 1 && done.stderr.contains("not found");
            let is_done = done.success() || is_gone;
            is_done.then_some(()).ok_or(format!("{id}: {done:?}"))
        });
        deleted.is_some()
    }

    /// Removes a container without a task.
    fn remove(&self, id: &str) {
        self.ledger.clear("ctr containers rm", || {
            let removed = self.ctr.output(&["containers", "rm", id]);
            self.is_gone(id, &removed.map_err(|error| error.to_string())?)
        });
    }

    /// Removes whatever a client has left that was cut off.
    fn clear(&self, id: &str) {
        self.ledger.clear("clear up after ctr run", || {
            let output = |argv: &[&str]| self.ctr.output(argv).map_err(|error| error.to_string());
            let mut said = output(&["tasks", "rm", "-f", id])?;
            said.stderr += &output(&["containers", "rm", id])?.stderr;
            output(&[
                "snapshots",
                "--snapshotter",
                Stack::XEBEC.snapshotter,
                "rm",
                id,
            ])?;
            self.is_gone(id, &said)
        });
    }

    /// An error with what the removal said if containerd still knows of task or container.
    fn is_gone(&self, id: &str, said: &Output) -> Result<(), String> {
        for kind in ["tasks", "containers"] {
            let list = self.says(&[kind, "ls", "-q"], 0)?;
            if list.stdout.lines().any(|line| line == id) {
                return Err(format!("{id} is still among the {kind}: {said:?}"));
            }
        }
        Ok(())
    }

    /// A further process, which ends by itself or is killed.
    fn exec(&mut self, container: &str) {
        let (process, status) = self.next();
        let from = Instant::now();
        let is_killed = self.random.below(3) == 0;
        let (status, script) = if is_killed {
            (KILLED, "exec sleep 100000".to_owned())
        } else {
            (
                status,
                format!("sleep 0.{}; exit {status}", self.random.below(3)),
            )
        };
        let argv = [
            "tasks",
            "exec",
            "--exec-id",
            &process,
            container,
            "sh",
            "-c",
            &script,
        ];
        let run = || {
            self.ledger
                .once("ctr tasks exec", || self.says(&argv, status))
        };
        let ran = std::thread::scope(|scope| {
            let running = scope.spawn(run);
            while is_killed && !running.is_finished() {
                self.kill_exec(container, &process);
                std::thread::sleep(Duration::from_millis(50));
            }
            running.join().expect("a client that does not panic")
        });
        if ran.is_some() {
            self.ledger.exit(container, &process, Some(status), from);
        }
        if self.ledger.is_troubled_since(from) {
            self.clear_exec(container, &process);
        }
    }

    /// Tries to, whether it runs yet or not.
    fn kill_exec(&self, container: &str, process: &str) -> String {
        let argv = [
            "tasks",
            "kill",
            "-s",
            "SIGKILL",
            "--exec-id",
            process,
            container,
        ];
        let done = self.ctr.output(&argv);
        done.map_or_else(|error| error.to_string(), |done| done.stderr)
    }

    /// Removes the process of a client that was cut off.
    fn clear_exec(&self, container: &str, process: &str) {
        self.ledger.clear("clear up after ctr tasks exec", || {
            let mut said = self.kill_exec(container, process);
            let argv = ["tasks", "rm", "--exec-id", process, container];
            let removed = self.ctr.output(&argv).map_err(|error| error.to_string())?;
            said += &removed.stderr;
            let is_gone = removed.stderr.contains("does not exist");
            is_gone.then_some(()).ok_or(said)
        });
    }
}
