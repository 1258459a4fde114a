//! `integration bench` and the hidden `integration measure` that it starts inside the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::rand::GetRandomFlags;

use super::report::Report;
use super::suite::{Random, Run};
use super::targets::Targets;
use super::{Bench, charged, plot, select, targets};
use crate::command;
use crate::error::{Error, Result};
use crate::hosts::{HostOptions, NativeHost};
use crate::paths::Paths;
use crate::progress::Step;

/// `integration bench NAME`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which benchmark: runtime, smoke, shim, snapshotter, checkpoint, or `all` for every one that exists
    pub name: String,
    /// Print the promises of SPECIFICATION.md that were missed and exit with 1 if there are any
    #[arg(long)]
    pub check: bool,
    /// Write everything that was measured to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the times into this file as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Take few samples: a look at the order of magnitude
    #[arg(long)]
    pub quick: bool,
    /// Measure only this part, of a benchmark that has parts
    #[arg(long, value_name = "PART")]
    pub part: Option<String>,
}

/// `integration measure NAME`, inside the host; its report goes to standard output as JSON.
#[derive(Debug, clap::Args)]
pub struct MeasureArgs {
    /// Which benchmark
    pub name: String,
    /// How many rounds to run
    #[arg(long)]
    pub rounds: u32,
    /// Only this part
    #[arg(long)]
    pub part: Option<String>,
    /// Seed of the order of measurements
    #[arg(long)]
    pub seed: u64,
}

/// Measures one suite on the host that this process is in.
pub fn measure(args: &MeasureArgs) -> Result<()> {
    let [bench] = select(&args.name)?[..] else {
        return Err(Error::invalid("measure", "one benchmark at a time"));
    };
    let targets = targets::specified().map_err(|e| Error::invalid("target", e))?;
    let measured = (bench.run)(
        args.rounds,
        args.part.as_deref(),
        &mut Random::new(args.seed),
    )?;
    let mut report = Report::new(bench.name, measured.samples, &targets);
    report.versions = measured.versions;
    report.phases = measured.phases;
    report.seed = args.seed;
    report.kernel = first_word("/proc/sys/kernel/osrelease")?;
    report.load = first_word("/proc/loadavg")?.parse().unwrap_or(f64::NAN);
    let json = serde_json::to_string(&report).map_err(|e| Error::invalid("report", e))?;
    println!("{json}");
    Ok(())
}

fn first_word(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).map_err(Error::file("read", Path::new(path)))?;
    Ok(text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// Starts a native host, runs the suites in it, and reports.
pub fn main(args: &Args) -> Result<i32> {
    let benches = select(&args.name)?;
    if let Some(part) = &args.part {
        check_part(&benches, part)?;
    }
    let reports: Vec<_> = benches
        .into_iter()
        .map(|bench| run(bench, args).unwrap_or_else(|error| nothing_of(bench, &error)))
        .collect();
    for report in &reports {
        println!("{}", report.table());
    }
    if let Some(path) = &args.json {
        let json =
            serde_json::to_string_pretty(&reports).map_err(|e| Error::invalid("report", e))?;
        fs::write(path, json + "\n").map_err(Error::file("write", path))?;
    }
    if let Some(path) = &args.plot {
        plot::draw(&reports, path)?;
    }
    if !args.check {
        return Ok(i32::from(reports.iter().any(|r| !r.failed.is_empty())));
    }
    let missed: Vec<_> = reports.iter().flat_map(Report::missed).collect();
    for line in &missed {
        println!("missed: {line}");
    }
    println!(
        "{} of the promises of SPECIFICATION.md were missed",
        missed.len()
    );
    Ok(i32::from(!missed.is_empty()))
}

/// Refuses a part that one of the benches does not have.
fn check_part(benches: &[&Bench], part: &String) -> Result<()> {
    for bench in benches {
        let known = (bench.parts)();
        if !known.contains(part) {
            let reason = format!("{} has these parts: {}", bench.name, known.join(", "));
            return Err(Error::invalid(format!("--part {part}"), reason));
        }
    }
    Ok(())
}

/// The report of a bench that could not be run at all.
fn nothing_of(bench: &Bench, error: &Error) -> Report {
    let mut nothing = Run::default();
    nothing.fail(bench.name, error);
    Report::new(bench.name, nothing, &Targets::new())
}

fn run(bench: &Bench, args: &Args) -> Result<Report> {
    let step = Step::begin(format!("bench {} on a native host", bench.name));
    let paths = Paths::find()?;
    bench.needs.make(&paths)?;
    let mut options = HostOptions::with(bench.services);
    options.tools = bench.needs.tools.to_vec();
    let host = NativeHost::start(options)?;
    let rounds = if args.quick {
        bench.rounds.1
    } else {
        bench.rounds.0
    };
    let mut argv = vec![
        paths.program.into_os_string(),
        "measure".into(),
        bench.name.into(),
        "--rounds".into(),
        rounds.to_string().into(),
        "--seed".into(),
        seed()?.to_string().into(),
    ];
    if let Some(part) = &args.part {
        argv.extend(["--part".into(), part.into()]);
    }
    let mut command = host.command(&argv);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command
        .output()
        .map_err(Error::system("start the measurement"))?;
    if !output.status.success() {
        return Err(Error::Command {
            command: command::show(&command),
            status: output.status.to_string(),
            output: "what failed stands above".to_owned(),
        });
    }
    let mut report: Report =
        serde_json::from_slice(&output.stdout).map_err(|e| Error::invalid("report", e))?;
    if bench.charged {
        let targets = targets::specified().map_err(|e| Error::invalid("target", e))?;
        report.add(charged::measure(host), &targets);
    }
    step.done(&format!("{rounds} rounds"));
    Ok(report)
}

fn seed() -> Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(Error::system("draw a seed"))?;
    Ok(u64::from_ne_bytes(bytes))
}
