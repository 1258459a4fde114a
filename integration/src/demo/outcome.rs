//! What the runs of the demo came to: a table, and whether the promise was kept.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

/// What the container has to print.
pub const EXPECTED: &str = "ready 204";

/// One way from an image's reference to a container's output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Leg {
    /// What was run, for the table.
    pub name: &'static str,
    /// From the start of the pull to the first byte the container wrote.
    #[serde(rename = "first_output_seconds", serialize_with = "seconds")]
    pub first_output: Duration,
    /// Bytes that came from the registry until the container had ended.
    pub bytes: u64,
    /// What the container wrote.
    pub output: String,
}

fn seconds<S: serde::Serializer>(time: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_f64(time.as_secs_f64())
}

/// All ways, over the same link.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// xebec, lazily.
    pub lazy: Leg,
    /// xebec, with a profile of such a start.
    pub guided: Leg,
    /// overlayfs and runc after a full pull.
    pub full: Leg,
}

impl Outcome {
    /// Everything that is not as promised.
    pub fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for leg in [&self.lazy, &self.guided, &self.full] {
            if leg.output.trim() != EXPECTED {
                broken.push(format!(
                    "{} printed {:?}, not {EXPECTED:?}",
                    leg.name, leg.output
                ));
            }
        }
        if self.lazy.first_output >= self.full.first_output {
            broken.push("the lazy start was not faster than the full pull".to_owned());
        }
        if self.lazy.bytes * 2 >= self.full.bytes {
            broken.push("the lazy start fetched half of the bytes or more".to_owned());
        }
        if self.guided.first_output >= self.lazy.first_output {
            broken.push("the start with a profile was not faster than without".to_owned());
        }
        broken
    }

    /// The table that closes the demo.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<32} {:>20} {:>16}\n",
            "", "time to first output", "bytes fetched"
        );
        for leg in [&self.lazy, &self.guided, &self.full] {
            let _ = writeln!(
                text,
                "{:<32} {:>18.2} s {:>13.1} MB",
                leg.name,
                leg.first_output.as_secs_f64(),
                leg.bytes as f64 / 1e6
            );
        }
        for (name, leg) in [
            ("ratio, lazily", &self.lazy),
            ("ratio, with a profile", &self.guided),
        ] {
            let time = leg.first_output.as_secs_f64() / self.full.first_output.as_secs_f64();
            let bytes = leg.bytes as f64 / self.full.bytes as f64;
            let _ = writeln!(text, "{name:<32} {time:>20.2} {bytes:>16.2}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(name: &'static str, millis: u64, bytes: u64) -> Leg {
        let first_output = Duration::from_millis(millis);
        Leg {
            name,
            first_output,
            bytes,
            output: "ready 204\n".into(),
        }
    }

    fn good() -> Outcome {
        Outcome {
            lazy: leg("lazy", 2000, 20_000_000),
            guided: leg("guided", 1500, 18_000_000),
            full: leg("full", 9000, 90_000_000),
        }
    }

    #[test]
    fn a_faster_start_with_fewer_bytes_and_the_right_output_is_a_success() {
        assert!(good().broken_promises().is_empty());
    }

    #[test]
    fn each_broken_promise_is_named() {
        let mut outcome = good();
        outcome.lazy.output = "ready 203\n".into();
        outcome.lazy.bytes = 45_000_000;
        outcome.lazy.first_output = Duration::from_secs(9);
        outcome.guided.first_output = Duration::from_secs(9);
        assert_eq!(outcome.broken_promises().len(), 4);
    }

    #[test]
    fn the_table_shows_both_legs_and_their_ratio() {
        let table = good().table();
        assert!(
            table.contains("2.00 s") && table.contains("90.0 MB"),
            "{table}"
        );
        assert!(table.lines().last().unwrap().ends_with("0.20"), "{table}");
    }
}
