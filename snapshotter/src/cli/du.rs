//! `xebec-snapshotter du`.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ask::DaemonArgs;
use crate::daemon::status::Request;
use crate::error::{Error, Result};
use crate::service::DiskUse;

/// The daemon looks at every file of the store.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  xebec-snapshotter du                       images, layers and sums
  xebec-snapshotter du --format json | jq '.images[] | select(.mounted | not) | .name'
                                             images whose data may be evicted
  xebec-snapshotter du --format json | jq '.disk, .quota'
                                             bytes on disk and how many there may be")]
pub(super) struct Args {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let request = Request {
        du: true,
        ..Request::default()
    };
    let answer = args.daemon.ask(&request, Some(PATIENCE))?;
    let Some(found) = answer.du else {
        return Err(Error::Unusable {
            what: "disk use".to_owned(),
            reason: answer.error.unwrap_or_else(|| "no answer".to_owned()),
        });
    };
    match args.format {
        Format::Json => {
            let json = serde_json::to_string(&found);
            println!(
                "{}",
                json.map_err(|error| Error::Internal(error.to_string()))?
            );
        }
        Format::Text => print!("{}", render(&found, now())),
    }
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn render(found: &DiskUse, now: u64) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{:>10} {:>10} {:>10} {:>10}  {:<8} IMAGE",
        "TOTAL", "LOCAL", "ON DISK", "SHARED", "USED"
    );
    for image in &found.images {
        let _ = writeln!(
            out,
            "{:>10} {:>10} {:>10} {:>10}  {:<8} {}",
            size(image.total),
            size(image.local),
            size(image.disk),
            size(image.shared),
            used(image.mounted, image.used, now),
            image.name
        );
    }
    let _ = writeln!(
        out,
        "\n{:>10} {:>10} {:>10} {:>10}  {:<8} LAYER",
        "TOTAL", "LOCAL", "ON DISK", "IMAGES", "USED"
    );
    for layer in &found.layers {
        let _ = writeln!(
            out,
            "{:>10} {:>10} {:>10} {:>10}  {:<8} {}",
            size(layer.total),
            size(layer.local),
            size(layer.disk),
            layer.images,
            used(layer.mounted, layer.used, now),
            layer.digest
        );
    }
    let quota = found.quota.map_or_else(
        || "no quota".to_owned(),
        |quota| format!("quota {}", size(quota)),
    );
    let _ = writeln!(
        out,
        "\n{:>10} {:>10} {:>10}  in all; {quota}, {} free on the file system",
        size(found.total),
        size(found.local),
        size(found.disk),
        size(found.free)
    );
    out
}

fn used(mounted: bool, at: u64, now: u64) -> String {
    let ago = now.saturating_sub(at);
    match ago {
        _ if mounted => "mounted".to_owned(),
        _ if at == 0 => "never".to_owned(),
        ..60 => format!("{ago}s ago"),
        60..3600 => format!("{}m ago", ago / 60),
        3600..86_400 => format!("{}h ago", ago / 3600),
        _ => format!("{}d ago", ago / 86_400),
    }
}

fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(units.len() as u32);
    let value = bytes as f64 / 1024_f64.powi(power as i32);
    format!("{value:.1} {}", units[power as usize - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{ImageUse, LayerUse};

    #[test]
    fn images_layers_and_sums_are_shown_with_their_last_use() {
        let found = DiskUse {
            images: vec![ImageUse {
                name: "h/app:v1".to_owned(),
                layers: vec!["sha256:1".to_owned()],
                total: 3 << 20,
                local: 2 << 20,
                disk: 5 << 19,
                shared: 512,
                used: 0,
                mounted: true,
            }],
            layers: vec![LayerUse {
                digest: "sha256:1".to_owned(),
                images: 2,
                total: 3 << 20,
                local: 2 << 20,
                disk: 5 << 19,
                used: 1000,
                mounted: false,
            }],
            total: 3 << 20,
            local: 2 << 20,
            disk: 3 << 30,
            quota: Some(20 << 30),
            free: 1 << 40,
        };
        let text = render(&found, 1000 + 7200);
        let squeezed: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for line in [
            "3.0 MiB 2.0 MiB 2.5 MiB 512 B mounted h/app:v1",
            "3.0 MiB 2.0 MiB 2.5 MiB 2 2h ago sha256:1",
            "3.0 MiB 2.0 MiB 3.0 GiB in all; quota 20.0 GiB, 1.0 TiB free on the file system",
        ] {
            assert!(squeezed.iter().any(|one| one == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_time_since_the_last_use_is_short() {
        for (ago, expected) in [(5, "5s ago"), (61, "1m ago"), (90_000, "1d ago")] {
            assert_eq!(used(false, 100_000 - ago, 100_000), expected);
        }
        assert_eq!(used(false, 0, 100_000), "never");
    }
}
