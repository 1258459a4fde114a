//! `checkpoint list`, `rm`, `prune`, `pin` and `unpin`: the store of checkpoints.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use serde_json::json;
use xebec_checkpoints::store::{Listed, Store};
use xebec_runtime::{Result, rfc3339};

use super::keeping::{LimitArguments, Root};
use super::kept::refused;
use super::list::{Format, align, print, print_json};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec checkpoint list\n  xebec checkpoint list --format json | jq -r '.[].name'"
)]
pub(super) struct List {
    #[command(flatten)]
    root: Root,
    /// Table for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl List {
    pub(super) fn carry_out(self) -> Result<u8> {
        let all = self.root.open()?.list().map_err(|e| refused(&e))?;
        match self.format {
            Format::Json => print_json(&all, false),
            Format::Table => print(&table(&all)),
        }
    }
}

fn table(all: &[Listed]) -> String {
    let titles = ["NAME", "CONTAINER", "CREATED", "SIZE", "OWN", "NOTES"];
    let mut rows = vec![titles.map(String::from)];
    rows.extend(all.iter().map(row));
    align(&rows)
}

fn row(one: &Listed) -> [String; 6] {
    let created = rfc3339(UNIX_EPOCH + Duration::from_secs(one.created));
    let noted = [(one.sealed, "sealed"), (one.pinned, "pinned")];
    let mut notes: Vec<_> = noted
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, note)| note)
        .collect();
    notes.extend(one.damage.as_deref());
    [
        one.name.clone(),
        one.container.clone(),
        format!("{}Z", created.get(..19).unwrap_or_default()),
        one.size.to_string(),
        one.own.to_string(),
        notes.join(", "),
    ]
}

#[derive(Args, Debug)]
pub(super) struct Remove {
    #[command(flatten)]
    root: Root,
    /// Names of checkpoints
    #[arg(required = true)]
    names: Vec<String>,
}

impl Remove {
    pub(super) fn carry_out(self) -> Result<u8> {
        self.root
            .open()?
            .remove(&self.names)
            .map_err(|e| refused(&e))?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec checkpoint prune --keep-count 5 --keep-age 168h\n  xebec checkpoint prune --keep-free 10G --format json"
)]
pub(super) struct Prune {
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    limits: LimitArguments,
    /// Names of what went, or a document with them
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Prune {
    pub(super) fn carry_out(self) -> Result<u8> {
        let store: Store = self.root.open()?;
        let removed = store.prune(self.limits.limits()).map_err(|e| refused(&e))?;
        match self.format {
            Format::Json => print_json(&json!({ "removed": removed }), false),
            Format::Table => {
                let lines = removed.iter().flat_map(|name| [name, "\n"]);
                print(&lines.collect::<String>())
            }
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct Pin {
    #[command(flatten)]
    root: Root,
    /// Name of a checkpoint
    name: String,
}

impl Pin {
    pub(super) fn carry_out(self, pinned: bool) -> Result<u8> {
        self.root
            .open()?
            .set_pinned(&self.name, pinned)
            .map_err(|e| refused(&e))?;
        Ok(0)
    }
}
