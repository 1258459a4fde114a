use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;
use xebec_runtime::{ContainerState, Error, Listing, Result};

use super::Context;

/// Output forms of `list` and `ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec list\n  xebec list --format json | jq -r '.[].id'\n  xebec list --quiet"
)]
pub(super) struct List {
    /// Table for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

impl List {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let Listing { states, damaged } = context.runtime.list()?;
        for error in &damaged {
            context.log.warning(&error.to_string());
        }
        if self.quiet {
            let names = states.iter().flat_map(|state| [state.id.as_str(), "\n"]);
            return print(&names.collect::<String>());
        }
        match self.format {
            Format::Json => print_json(&states, false),
            Format::Table => print(&table(&states)),
        }
    }
}

fn table(states: &[ContainerState]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from)];
    rows.extend(states.iter().map(|state| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_string(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    }));
    align(&rows)
}

/// Columns as wide as their widest cell, at least 12, three blanks apart: runc's layout.
pub(super) fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].len())
            .max()
            .unwrap_or(0)
            .max(9)
            + 3
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(line.concat().trim_end());
        text.push('\n');
    }
    text
}

/// Prints a document, indented for people or on one line.
pub(super) fn print_json(document: &impl Serialize, indented: bool) -> Result<u8> {
    let text = if indented {
        serde_json::to_string_pretty(document)
    } else {
        serde_json::to_string(document)
    };
    let text = text.map_err(|e| Error::Os {
        op: "encode JSON".into(),
        source: e.into(),
    })?;
    print(&format!("{text}\n"))
}

/// Writes to stdout; a reader that has gone away is an error, not a panic.
pub(super) fn print(text: &str) -> Result<u8> {
    print_bytes(text.as_bytes()).map(|()| 0)
}

/// The same for what may be no text.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|source| Error::Os {
            op: "write to stdout".into(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::align;

    #[test]
    fn columns_fit_their_widest_cell() {
        let rows = [["ID", "PID"], ["a-rather-long-name", "1"]].map(|row| row.map(String::from));
        assert_eq!(
            align(&rows),
            "ID                   PID\na-rather-long-name   1\n"
        );
    }
}
