use std::process::Command;

use clap::Args;
use xebec_runtime::{Error, Result};

use super::Context;
use super::list::{Format, print, print_json};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec ps web\n  xebec ps --format json web\n  xebec ps web -o pid,comm"
)]
pub(super) struct Ps {
    /// Table of ps(1) for people, pids as JSON for programs
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Name of the container
    id: String,
    /// Options for ps(1); its output must have a PID column
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        default_value = "-ef"
    )]
    options: Vec<String>,
}

impl Ps {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let pids = context.runtime.pids(&self.id.parse()?)?;
        if self.format == Format::Json {
            return print_json(&pids, false);
        }
        let output = Command::new("ps")
            .args(&self.options)
            .output()
            .map_err(|source| Error::Os {
                op: "run ps".into(),
                source,
            })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::InvalidArgument(format!("ps: {}", said.trim())));
        }
        print(&only(&String::from_utf8_lossy(&output.stdout), &pids)?)
    }
}

/// The header of ps's table and the lines whose PID column names one of `pids`.
fn only(table: &str, pids: &[i32]) -> Result<String> {
    let header = table.lines().next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|title| title == "PID")
        .ok_or_else(|| Error::InvalidArgument("couldn't find PID field in ps output".into()))?;
    let wanted = |line: &&str| {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|cell| cell.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let mut text = format!("{header}\n");
    for line in table.lines().skip(1).filter(wanted) {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::only;

    #[test]
    fn only_lines_of_the_containers_pids_are_kept() {
        let table = "UID  PID CMD\nroot  1 init\nroot 12 sh 1\n";
        assert_eq!(
            only(table, &[12]).ok().as_deref(),
            Some("UID  PID CMD\nroot 12 sh 1\n")
        );
    }

    #[test]
    fn a_table_without_pids_is_refused() {
        assert!(only("CMD\ninit\n", &[1]).is_err());
    }
}
