//! `xebec-snapshotter status`.

use std::fmt::Write as _;
use std::time::Duration;

use super::ask::DaemonArgs;
use crate::daemon::status::Report;
use crate::error::Result;
use crate::fetch::{BreakerState, HostHealth};
use crate::service::LayerState;
use crate::store::Sealing;

/// The daemon answers from memory and its database; longer means that it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (report, text): (Report, _) = args.daemon.ask_text("", Some(PATIENCE))?;
    match args.format {
        Format::Json => println!("{text}"),
        Format::Text => print!("{}", render(&report)),
    }
    Ok(())
}

fn render(report: &Report) -> String {
    let mut out = String::new();
    let Report {
        version,
        pid,
        root,
        fs_verity,
        snapshots,
        layers,
        mounts,
        registries,
        ..
    } = report;
    let lazy = snapshots
        .iter()
        .filter(|snapshot| snapshot.layer.is_some())
        .count();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "xebec-snapshotter {version}, pid {pid}, root {}{}",
        root.display(),
        match fs_verity {
            Sealing::On => "; complete files are sealed (fs-verity)",
            Sealing::Off | Sealing::Absent => "",
        }
    );
    let _ = writeln!(
        out,
        "\nsnapshots: {}, {lazy} of them lazy layers",
        snapshots.len()
    );
    for snapshot in snapshots {
        let layer = snapshot
            .layer
            .as_deref()
            .map_or(String::new(), |it| format!("  lazy {it}"));
        let _ = writeln!(
            out,
            "  {:<9}  {}{layer}",
            snapshot.kind.as_str(),
            snapshot.name
        );
    }
    let _ = writeln!(out, "\nlazy layers: {}", layers.len());
    for layer in layers {
        let LayerState {
            local_bytes,
            data_bytes,
            inodes,
            ..
        } = layer.state;
        let (here, all) = (mib(local_bytes), mib(data_bytes));
        let _ = writeln!(
            out,
            "  {}  {here:.1} of {all:.1} MiB here, {inodes} inodes",
            layer.digest
        );
    }
    let _ = writeln!(out, "\nlazy mounts: {}", mounts.len());
    for mount in mounts {
        let _ = writeln!(out, "  {}", mount.path.display());
        for user in &mount.used_by {
            let _ = writeln!(out, "    {user}");
        }
    }
    render_registries(&mut out, registries);
    out
}

fn render_registries(out: &mut String, registries: &[HostHealth]) {
    let _ = writeln!(out, "\nregistries: {}", registries.len());
    for HostHealth {
        host,
        state,
        failures,
        wrong,
    } in registries
    {
        let state = match state {
            BreakerState::Closed => "answers",
            BreakerState::HalfOpen => "is probed",
            BreakerState::Open => "does not answer",
        };
        let _ = write!(out, "  {host}  {state}, {failures} failures in a row");
        let _ = match wrong {
            0 => writeln!(out),
            times => writeln!(out, ", wrong bytes {times} times"),
        };
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::{LayerLine, MountLine, SnapshotLine};
    use crate::snapshots::record::{Kind, Timestamp};

    #[test]
    fn a_report_says_what_is_lazy_and_who_uses_it() {
        let report = Report {
            version: "0.1.0".into(),
            pid: 7,
            since: Timestamp {
                seconds: 0,
                nanos: 0,
            },
            root: "/r".into(),
            fs_verity: Sealing::On,
            snapshots: vec![SnapshotLine {
                name: "sha256:chain".into(),
                parent: None,
                kind: Kind::Committed,
                layer: Some("sha256:blob".into()),
            }],
            layers: vec![LayerLine {
                digest: "sha256:blob".into(),
                state: LayerState {
                    local_bytes: 3 << 20,
                    data_bytes: 5 << 20,
                    blob_bytes: 2 << 20,
                    inodes: 12,
                },
            }],
            mounts: vec![MountLine {
                path: "/r/m".into(),
                used_by: vec!["default/1/c".into()],
            }],
            registries: vec![HostHealth {
                host: "h:5000".into(),
                state: BreakerState::Open,
                failures: 4,
                wrong: 1,
            }],
        };
        let text = render(&report);
        for part in [
            "pid 7",
            "1 of them lazy",
            "3.0 of 5.0 MiB here, 12 inodes",
            "/r/m\n    default/1/c",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
