//! Clones of a server that is warm, beside what else would bring one: a restore with all of its
//! memory, and a start from nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;

use super::super::containers::RUNTIMES;
use super::super::suite::{Task, Unit};
use super::apps::{APPS, App};
use super::{Fixtures, SETTLE, task, task_of};
use crate::error::{Error, Result};

/// Clones whose memory is weighed together.
const TOGETHER: usize = 8;
/// What a start from nothing by runc is called beside its restore.
const COLD: &str = "runc cold";
/// What as many clones with memory of their own are called.
const EAGER: &str = "eager";
const OURS: &str = "xebec";

impl Fixtures {
    /// The template of a server, made when it is first asked for.
    pub(super) fn template(&self, app: App) -> Result<&Path> {
        let templates = self.templates.as_path();
        if templates.join(app.name()).exists() {
            return Ok(templates);
        }
        let container = self.container(OURS, app, "warm");
        let made = self.network.ask_while(|| container.run()).and_then(|_| {
            sleep(SETTLE);
            container.make_template(templates, app.name())
        });
        container.delete()?;
        made.map(|()| templates)
    }

    /// Milliseconds from the command to a clone's first answer.
    fn clone(&self, app: App, memory: &str) -> Result<Vec<f64>> {
        let templates = self.template(app)?;
        let container = self.container(OURS, app, memory);
        let start = || container.clone_of(templates, (app.name(), memory));
        Ok(vec![self.first_answer(&container, start)?])
    }

    /// Kibibytes of memory that eight clones have together, each with its share of what is shared.
    fn weigh(&self, app: App, memory: &str) -> Result<Vec<f64>> {
        let name = format!("{}-apart", app.name());
        let templates = &self.templates;
        let apart = |number: usize| {
            let mut container = self.container(OURS, app, &format!("{memory}-{number}"));
            container.bundle = &self.apart;
            container
        };
        if !templates.join(&name).exists() {
            let container = apart(0);
            let made = container.run().and_then(|()| {
                container.network()?.ask()?;
                sleep(SETTLE);
                container.make_template(templates, &name)
            });
            container.delete()?;
            made?;
        }
        let clones: Vec<_> = (1..=TOGETHER).map(apart).collect();
        let weighed = clones.iter().try_for_each(|clone| {
            clone.clone_of(templates, (&name, memory))?;
            clone.network()?.ask().map(drop)
        });
        let total = weighed.and_then(|()| clones.iter().map(|clone| pss(clone.pid()?)).sum());
        for clone in &clones {
            clone.delete()?;
        }
        Ok(vec![total?])
    }
}

/// The proportional share of memory of a process, in KiB.
fn pss(pid: u32) -> Result<f64> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| Error::invalid("smaps_rollup", text))
}

/// All rows of clones.
pub(super) fn clones(fixtures: &Fixtures) -> Vec<Task<'_>> {
    let mut tasks = Vec::new();
    for app in APPS {
        for memory in ["share", "uffd"] {
            let row = || format!("clone {memory}: {}", app.name());
            tasks.push(task(row(), OURS, move |_| fixtures.clone(app, memory)));
            for &runtime in RUNTIMES.iter().filter(|runtime| **runtime != OURS) {
                tasks.push(task(row(), runtime, move |_| {
                    fixtures.restore(runtime, app)
                }));
            }
            let cold = move |_| fixtures.cold("runc", app);
            tasks.push(task_of(row(), (COLD, "runc"), Unit::Milliseconds, cold));
        }
    }
    for (contestant, memory) in [(OURS, "share"), (EAGER, "eager")] {
        let row = format!("{TOGETHER} clones: PSS");
        let weigh = move |_| fixtures.weigh(App::Node, memory);
        let mut task = task_of(row, (contestant, OURS), Unit::Kibibytes, weigh);
        task.every = 5;
        task.warms_up = false;
        tasks.push(task);
    }
    tasks
}
