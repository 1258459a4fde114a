//! In which order functions are laid into `xebec`: those that a container's life needs come first, as
//! they are first called, so that a command touches few pages of its file, and all of them side by side.
//!
//! `integration order` follows the commands by `bench-trail` in a native host; the linker reads the
//! list that comes out of it (`runtime/build.rs`). It needs a `xebec` with its symbols.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::bench::containers::Containers;
use crate::bench::measure::output;
use crate::command;
use crate::error::{Error, Result};
use crate::hosts::{HostOptions, NativeHost, Service};
use crate::paths::Paths;

const TRAIL: &str = "/opt/xebec/bench-trail";
const PROGRAM: &str = "xebec";

/// Length of a hash at the end of a name: `17h`, 16 digits, `E`.
const HASH: usize = 20;

/// Name of the inner command, which prints addresses.
pub const TRAILS: &str = "trails";

/// Writes the list to `file`.
pub fn main(file: &Path) -> Result<()> {
    let paths = Paths::find()?;
    let functions = Functions::of(&paths.binary(PROGRAM)?)?;
    let host = NativeHost::start(HostOptions::with(&[Service::Containerd]))?;
    let trails = command::check(
        &mut host.command(&[paths.program.as_os_str(), TRAILS.as_ref()]),
        4 * command::DEADLINE,
    )?;
    let names = functions.in_order(trails.lines());
    if names.is_empty() {
        return Err(Error::invalid(PROGRAM, "it has no symbols"));
    }
    fs::write(file, names.join("\n") + "\n").map_err(Error::file("write", file))
}

/// Follows the commands of a container's life on the host that this process is in. `create` is left
/// out: it leaves its child behind, and does what `run` does.
pub fn trails() -> Result<()> {
    let containers = Containers::start()?;
    let run = containers.run_command(PROGRAM, "trail-run");
    print(&run)?;
    let id = "trail";
    // Not `output`: the container would hold the other end of its pipe.
    crate::bench::measure::wall_ms(&containers.create(PROGRAM, &["create"], id))?;
    print(&[PROGRAM, "start", id])?;
    print(&[PROGRAM, "exec", id, "/bin/true"])?;
    print(&[PROGRAM, "state", id])?;
    print(&[PROGRAM, "kill", id, "KILL"])?;
    print(&[PROGRAM, "delete", "--force", id])
}

fn print<S: AsRef<str>>(argv: &[S]) -> Result<()> {
    let argv: Vec<_> = std::iter::once(TRAIL)
        .chain(argv.iter().map(AsRef::as_ref))
        .collect();
    print!("{}", output(&argv)?);
    Ok(())
}

/// A name that does not depend on how a program was built: Rust's without its hash.
fn lasting(name: &str) -> &str {
    let hash = name.rfind("17h").filter(|at| name.len() >= at + HASH);
    match hash {
        Some(at) if name.starts_with("_ZN") => &name[..at],
        _ => name,
    }
}

/// The functions of a program by their addresses.
struct Functions(Vec<Function>);

struct Function {
    begin: u64,
    end: u64,
    name: String,
}

impl Functions {
    fn of(program: &Path) -> Result<Self> {
        let mut nm = Command::new("nm");
        nm.args(["--numeric-sort", "--print-size"]).arg(program);
        Ok(Self::parse(&command::check(&mut nm, command::DEADLINE)?))
    }

    /// Address, size, kind and name of each; functions are of the kinds t, w and i.
    fn parse(symbols: &str) -> Self {
        let function = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [address, size, kind, name] = words[..] else {
                return None;
            };
            let begin = u64::from_str_radix(address, 16).ok()?;
            let size = u64::from_str_radix(size, 16).ok()?;
            matches!(kind, "t" | "T" | "w" | "W" | "i").then(|| Function {
                begin,
                end: begin + size,
                name: name.to_owned(),
            })
        };
        Self(symbols.lines().filter_map(function).collect())
    }

    /// The names of those that addresses are in, each once, by the first of its addresses.
    fn in_order<'a>(&self, addresses: impl Iterator<Item = &'a str>) -> Vec<&str> {
        let mut seen = HashSet::new();
        let names = addresses.filter_map(|address| {
            let address = u64::from_str_radix(address, 16).ok()?;
            let after = self.0.partition_point(|function| function.begin <= address);
            let function = self.0[..after].last()?;
            let name = lasting(&function.name);
            (address < function.end && seen.insert(name)).then_some(name)
        });
        names.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_come_in_the_order_of_their_first_instruction() {
        let functions = Functions::parse(
            "0000000000200100 0000000000000010 r data\n\
             0000000000201000 0000000000000020 t _ZN5xebec5first17h0123456789abcdefE\n\
             0000000000201020 0000000000000020 T _RNvCs1_3std6second\n\
             0000000000201040 0000000000000020 t memcpy\n\
             0000000000201080                  T nothing\n",
        );
        let visited = [
            "201024", "201000", "201028", "201040", "201070", "200104", "20101f",
        ];
        let names = functions.in_order(visited.into_iter());
        assert_eq!(names, ["_RNvCs1_3std6second", "_ZN5xebec5first", "memcpy"]);
    }
}
