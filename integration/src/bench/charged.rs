//! Memory that a runtime charges to a container whose init waits for `start`.
//!
//! Only a host with the memory controller can tell: the native host where it has one, otherwise
//! the VM host, whose time means nothing but whose accounting is a kernel's.

use std::time::Duration;

use super::suite::{Absent, OURS, RowSamples, Unit};
use crate::error::{Error, Result};
use crate::hosts::{NativeHost, VmHost, VmOptions};

const NAME: &str = "created: memory charged";
const CONTESTANTS: [&str; 3] = [OURS, "runc", "crun"];

/// Prints `RUNTIME BYTES` for each container it creates, and the kernel's release first.
const SCRIPT: &str = r#"
set -e
uname -r
bundle=$(mktemp -d)
trap 'rm -rf "$bundle"' EXIT
mkdir -p "$bundle/rootfs/bin" "$bundle/rootfs/proc" "$bundle/rootfs/dev" "$bundle/rootfs/sys"
cp /usr/bin/busybox "$bundle/rootfs/bin/true"
cd "$bundle"
xebec spec
jq '.process.terminal = false | .process.args = ["/bin/true"] | del(.linux.cgroupsPath)
    | .linux.resources.memory.limit = 67108864' config.json > new
mv new config.json
for round in 1 2 3 4 5; do
    for runtime in xebec runc crun; do
        id=bench-charged-$runtime-$round
        $runtime create "$id" < /dev/null > log 2>&1 || { cat log >&2; exit 1; }
        pid=$($runtime state "$id" | jq .pid)
        group=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
        echo "$runtime $(cat "$group/memory.current")"
        $runtime delete -f "$id"
    done
done
"#;

/// The row, with how it came about.
pub struct Charged {
    /// The samples; none where they could not be taken.
    pub samples: RowSamples,
    /// Where it was measured, for the report.
    pub how: Option<String>,
    /// Why there are no samples.
    pub absent: Option<Absent>,
}

/// Measures on `host` if it has the memory controller, and in a new machine if not.
///
/// Where neither can, the row stays empty, which keeps no promise, and says why.
pub fn measure(host: NativeHost) -> Charged {
    let measured = output(host).and_then(|(place, text)| {
        let (kernel, samples) = parse(&text)?;
        Ok((format!("{place}, kernel {kernel}"), samples))
    });
    let row = |cells| RowSamples {
        name: NAME.into(),
        unit: Unit::Kibibytes,
        cells,
    };
    match measured {
        Ok((how, cells)) => Charged {
            samples: row(cells),
            how: Some(how),
            absent: None,
        },
        Err(error) => Charged {
            samples: row(CONTESTANTS.map(|name| (name, Vec::new())).to_vec()),
            how: None,
            absent: Some(Absent(format!("{NAME}: {error}"))),
        },
    }
}

/// Where the script ran, and what it printed.
fn output(host: NativeHost) -> Result<(&'static str, String)> {
    let controllers = host.read_file("/sys/fs/cgroup/cgroup.controllers")?;
    if controllers.split_whitespace().any(|it| it == "memory") {
        return Ok(("native host", host.check_sh(SCRIPT)?));
    }
    drop(host);
    let options = VmOptions {
        services: Vec::new(),
        deadline: Duration::from_mins(5),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["sh", "-c", SCRIPT])?;
    if output.success() {
        Ok(("VM host", output.stdout))
    } else {
        Err(Error::Command {
            command: "the script of this row in the VM host".to_owned(),
            status: output.status.to_string(),
            output: output.stderr,
        })
    }
}

type Cells = Vec<(&'static str, Vec<f64>)>;

/// The kernel's release and the samples, in KiB.
fn parse(text: &str) -> Result<(String, Cells)> {
    let bad = |line: &str| Error::invalid("memory charged to a container", line);
    let mut lines = text.lines();
    let kernel = lines.next().ok_or_else(|| bad("nothing was printed"))?;
    let mut cells = CONTESTANTS.map(|name| (name, Vec::new())).to_vec();
    for line in lines {
        let (name, bytes) = line.split_once(' ').ok_or_else(|| bad(line))?;
        let bytes: u32 = bytes.parse().map_err(|_| bad(line))?;
        let cell = cells.iter_mut().find(|(known, _)| *known == name);
        let (_, samples) = cell.ok_or_else(|| bad(line))?;
        samples.push(f64::from(bytes) / 1024.0);
    }
    Ok((kernel.to_owned(), cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_sorted_by_runtime_and_garbage_is_named() {
        let (kernel, cells) =
            parse("7.2.0\nxebec 262144\ncrun 524288\nxebec 1024\n").expect("samples");
        assert_eq!(kernel, "7.2.0");
        assert_eq!(cells[0], (OURS, vec![256.0, 1.0]));
        assert_eq!(cells[1], ("runc", vec![]));
        assert_eq!(cells[2], ("crun", vec![512.0]));
        for text in ["", "7.2.0\nxebec", "7.2.0\nxebec max", "7.2.0\nyouki 1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
