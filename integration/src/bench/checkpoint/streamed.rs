//! A clone of a template that is in a registry: what has come over the line when it answers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::super::measure::output;
use super::super::suite::{Task, Unit};
use super::apps::{App, text};
use super::{Fixtures, SETTLE, task_of};
use crate::error::{Error, Result};
use crate::proxy::{Proxy, Shape};

const OURS: &str = "xebec";
/// All of the pages that the template has.
const PAGES: &str = "pages";
/// Where the host's registry listens.
const REGISTRY: u16 = 5000;
const IMAGE: &str = "warm:node";
/// The line: round trip in milliseconds, Mbit/s.
const LINE: (u64, f64) = (2, 1000.0);
const APP: App = App::Node;
/// A server of pages without clones ends after a second, and holds what it has served until then.
const PATIENCE: Duration = Duration::from_secs(10);

impl Fixtures {
    /// Kibibytes that have come from the registry when a clone answers for the first time.
    fn fetched(&self) -> Result<Vec<f64>> {
        let templates = text(self.template(APP)?);
        let pulled = self.directory.path().join("pulled");
        let of = |root: &str, words: &[&str]| {
            output(&[&["xebec", "template", "--template-root", root], words].concat())
        };
        if !pulled.exists() {
            let image = format!("127.0.0.1:{REGISTRY}/{IMAGE}");
            of(&templates, &["push", APP.name(), &image])?;
            fs::create_dir(&pulled).map_err(Error::file("create", &pulled))?;
        }
        let root = text(&pulled);
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let line = Proxy::start(at(0), at(REGISTRY), Shape::new(LINE.0, LINE.1))?;
        let image = format!("{}/{IMAGE}", line.address());
        of(&root, &["pull", &image, APP.name()])?;
        let container = self.container(OURS, APP, "streamed");
        let asked = self
            .network
            .ask_while(|| container.clone_of(&pulled, (APP.name(), "uffd")));
        let fetched = line.counters().down as f64 / 1024.0;
        container.delete()?;
        let end = Instant::now() + PATIENCE;
        loop {
            match of(&root, &["rm", APP.name()]) {
                Err(_) if Instant::now() < end => sleep(SETTLE),
                removed => break drop(removed?),
            }
        }
        asked?;
        Ok(vec![fetched])
    }

    /// Kibibytes of pages of the template.
    fn pages(&self) -> Result<Vec<f64>> {
        let images = self.template(APP)?.join(APP.name()).join("eager");
        let mut total = 0.0;
        for entry in fs::read_dir(&images).map_err(Error::file("list", &images))? {
            let entry = entry.map_err(Error::file("list", &images))?;
            if entry.file_name().to_string_lossy().starts_with("pages-") {
                let path = entry.path();
                total += size(&path)? / 1024.0;
            }
        }
        Ok(vec![total])
    }
}

fn size(path: &Path) -> Result<f64> {
    let facts = fs::metadata(path).map_err(Error::file("stat", path))?;
    Ok(facts.len() as f64)
}

/// The row of streamed memory.
pub(super) fn streamed(fixtures: &Fixtures) -> Vec<Task<'_>> {
    let row = || "streamed: node".to_owned();
    let mut tasks = vec![
        task_of(row(), (OURS, OURS), Unit::Kibibytes, |_| fixtures.fetched()),
        task_of(row(), (PAGES, OURS), Unit::Kibibytes, |_| fixtures.pages()),
    ];
    for task in &mut tasks {
        task.every = 5;
        task.warms_up = false;
    }
    tasks
}
