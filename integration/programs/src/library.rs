//! The runtime as a library in one process, the way the shim's spawner uses it: no thread, no
//! start of a program, null streams.
//!
//! `bench-library prepare BUNDLE DIRECTORY` writes the bundle's compiled programs for the floor;
//! `bench-library serve ROOT BUNDLE` answers lines on standard input with figures in
//! milliseconds: `container ID` makes, starts, awaits and deletes a container, `seccomp DIRECTORY`
//! compiles the bundle's profile with an empty cache there and then takes it from the cache.

use std::error::Error;
use std::fs;
use std::io::{BufRead, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use xebec_runtime::cgroup::devices;
use xebec_runtime::seccomp::{Cache, compile};
use xebec_runtime::{CreateRequest, Runtime, RuntimeOptions, Stdio};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["prepare", bundle, directory] => prepare(Path::new(bundle), Path::new(directory)),
        ["serve", root, bundle] => serve(Path::new(root), Path::new(bundle)),
        _ => Err("prepare BUNDLE DIRECTORY | serve ROOT BUNDLE".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-library: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_spec(bundle: &Path) -> Result<Spec> {
    Ok(serde_json::from_slice(&fs::read(
        bundle.join("config.json"),
    )?)?)
}

fn profile(spec: &Spec) -> Result<&LinuxSeccomp> {
    let linux = spec.linux().as_ref();
    let profile = linux.and_then(|linux| linux.seccomp().as_ref());
    profile.ok_or_else(|| "the bundle has no seccomp profile".into())
}

/// `filter` and `devices` as the kernel takes them.
fn prepare(bundle: &Path, directory: &Path) -> Result<()> {
    let spec = read_spec(bundle)?;
    let filter = compile(profile(&spec)?)?;
    let mut bytes = Vec::new();
    for insn in &filter.insns {
        bytes.extend(insn.code.to_ne_bytes());
        bytes.extend([insn.jt, insn.jf]);
        bytes.extend(insn.k.to_ne_bytes());
    }
    fs::write(directory.join("filter"), &bytes)?;
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    bytes.clear();
    for insn in devices::compile(rules.unwrap_or_default())?.instructions() {
        bytes.extend([insn.code, insn.dst | insn.src << 4]);
        bytes.extend(insn.off.to_ne_bytes());
        bytes.extend(insn.imm.to_ne_bytes());
    }
    Ok(fs::write(directory.join("devices"), &bytes)?)
}

fn serve(root: &Path, bundle: &Path) -> Result<()> {
    let spec = read_spec(bundle)?;
    let runtime = Runtime::open(RuntimeOptions {
        root: root.to_owned(),
        ignore_missing_controllers: true,
        ..RuntimeOptions::default()
    })?;
    for line in stdin().lock().lines() {
        let line = line?;
        let figures = match line.split_once(' ') {
            Some(("container", id)) => vec![container(&runtime, id, bundle)?],
            Some(("seccomp", directory)) => seccomp(profile(&spec)?, Path::new(directory))?,
            _ => return Err(format!("unknown request {line:?}").into()),
        };
        let figures: Vec<_> = figures.iter().map(f64::to_string).collect();
        let mut answer = stdout().lock();
        writeln!(answer, "{}", figures.join(" "))?;
        answer.flush()?;
    }
    Ok(())
}

fn container(runtime: &Runtime, id: &str, bundle: &Path) -> Result<f64> {
    let id = id.parse()?;
    let began = Instant::now();
    let request = CreateRequest {
        stdio: Stdio::Fds {
            stdin: None,
            stdout: None,
            stderr: None,
        },
        ..CreateRequest::new(id, bundle)
    };
    let id = request.id.clone();
    let launched = runtime.create(request)?;
    runtime.start(&id)?;
    let ended = waitid(WaitId::PidFd(launched.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    runtime.delete(&id, false)?;
    let elapsed = milliseconds(began);
    match ended.and_then(|status| status.exit_status()) {
        Some(0) => Ok(elapsed),
        other => Err(format!("the container ended with {other:?}").into()),
    }
}

fn seccomp(profile: &LinuxSeccomp, directory: &Path) -> Result<Vec<f64>> {
    let cache = Cache::open(directory);
    let mut figures = Vec::new();
    for _ in ["compiled", "cached"] {
        let began = Instant::now();
        cache.get_or_compile(profile)?;
        figures.push(milliseconds(began));
    }
    fs::remove_dir_all(directory)?;
    Ok(figures)
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}
