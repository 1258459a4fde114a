//! The command line: `integration setup`, `host`, `proxy`, `demo`, `bench`, and the hidden steps of hosts.

mod host;
mod pod;
mod proxy;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::bench;
use crate::demo;
use crate::error::Result;
use crate::hosts::{keeper, leash, native, vm};
use crate::order;
use crate::setup::{self, SetupOptions};

/// Test hosts, demo and benchmarks of xebec.
#[derive(Debug, Parser)]
#[command(
    name = "integration",
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make what hosts need, once: packages, root file system, images, release binaries
    #[command(
        after_help = "Examples:\n  integration setup\n  integration setup --vm\n  \
                            integration setup --image python3-numpy --skip-build"
    )]
    Setup(Setup),
    /// Run a command in a container host that is thrown away afterwards
    #[command(subcommand)]
    Host(host::Host),
    /// Forward TCP with a round-trip time and a rate limit; a line on standard input prints and
    /// resets the counters
    #[command(
        after_help = "Example:\n  integration proxy 127.0.0.1:5001 127.0.0.1:5000 --rtt 20 --mbit 100"
    )]
    Proxy(proxy::ProxyArgs),
    /// Run a pod of one container by CRI; each line on standard input runs in it, at the end of
    /// which the pod is stopped and removed
    #[command(
        after_help = "Example:\n  echo id | integration pod --handler xebec 127.0.0.1:5000/busybox:v1 sleep 1000"
    )]
    Pod(pod::PodArgs),
    /// Convert, push and lazily run an image over a slow link, and compare with a full pull
    Demo,
    /// Measure, interleaved with the peers that are on the host
    #[command(after_help = "Examples:\n  integration bench smoke --quick\n  \
                            integration bench all --check --json figures.json")]
    Bench(bench::Args),
    #[command(hide = true)]
    Measure(bench::MeasureArgs),
    /// Write the list of functions that lie side by side in `xebec`; $XEBEC_BIN_DIR has it with its symbols
    #[command(after_help = "Example:\n  make order")]
    Order {
        /// The list
        file: PathBuf,
    },
    #[command(name = order::TRAILS, hide = true)]
    Trails,
    #[command(name = keeper::KEEP, hide = true)]
    Keep,
    #[command(name = native::plan::INIT, hide = true)]
    Init,
    #[command(name = native::ENTER, hide = true)]
    Enter {
        pid: i32,
        directory: PathBuf,
        #[arg(last = true)]
        argv: Vec<OsString>,
    },
    #[command(name = native::enter::CONTINUE, hide = true)]
    Continue {
        directory: PathBuf,
        #[arg(last = true)]
        argv: Vec<OsString>,
    },
    #[command(name = leash::LEASH, hide = true)]
    Leash {
        owner: i32,
        #[arg(last = true)]
        argv: Vec<OsString>,
    },
    #[command(name = vm::guest::GUEST, hide = true)]
    Guest,
}

#[derive(Debug, Args)]
struct Setup {
    /// What all tests need: the VM host, every image of the corpus, cargo-nextest
    #[arg(long)]
    vm: bool,
    /// containerd's own suites of tests, for `make suites`
    #[arg(long)]
    suites: bool,
    /// The programs that benchmarks start beside the product's, for `make bench`
    #[arg(long)]
    benchmarks: bool,
    /// Build only this image of the corpus; may be repeated
    #[arg(long = "image", value_name = "NAME")]
    images: Vec<String>,
    /// Leave the product's release binaries as they are
    #[arg(long)]
    skip_build: bool,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
        Err(error) => {
            eprintln!("integration: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<i32> {
    match command {
        Command::Setup(Setup {
            vm,
            suites,
            benchmarks,
            images,
            skip_build,
        }) => setup::run(&SetupOptions {
            vm,
            suites,
            benchmarks,
            images,
            skip_build,
        })
        .map(|()| 0),
        Command::Host(host) => host::run(host),
        Command::Proxy(arguments) => proxy::run(&arguments).map(|()| 0),
        Command::Pod(arguments) => pod::run(&arguments).map(|()| 0),
        Command::Demo => demo::main(),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::Measure(arguments) => bench::measure(&arguments).map(|()| 0),
        Command::Order { file } => order::main(&file).map(|()| 0),
        Command::Trails => order::trails().map(|()| 0),
        Command::Keep => keeper::keep().map(|()| 0),
        Command::Init => native::init::run().map(|()| 0),
        Command::Enter {
            pid,
            directory,
            argv,
        } => native::enter::run(pid, &directory, &argv),
        Command::Continue { directory, argv } => native::enter::proceed(&directory, &argv),
        Command::Leash { owner, argv } => leash::run(owner, &argv),
        Command::Guest => vm::guest::run().map(|()| 0),
    }
}
