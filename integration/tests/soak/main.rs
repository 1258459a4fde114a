//! Soak: pods and containers come and go at random, while containerd is killed and restarted and
//! the shims' workers are killed. Only calls that were cut off may fail, no exit is lost or told
//! twice, and nothing is left in the end.
//!
//! `XEBEC_SOAK_SECONDS` makes it longer, `XEBEC_SOAK_SEED` makes other choices; each run prints its
//! seed, and `make soak` takes a new one.

mod containers;
mod judge;
mod ledger;
mod pods;
mod storm;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use integration::cri::{Cri, Pod};
use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::{Descriptors, Inventory};
use integration::random::{Random, setting};

use containers::Containers;
use judge::{Exit, Session, judge};
use ledger::Ledger;
use pods::Pods;
use storm::{Storm, WORKER};

/// Length and choices of a run where nothing else is said.
const SECONDS: u64 = 20;
const SEED: u64 = 1;
/// How long everyone acts before the storm, so that what is made once is there.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long the last connections may take to close.
const SETTLE: Duration = Duration::from_mins(1);
/// The two names by which CRI knows our shim.
const HANDLERS: [&str; 2] = ["xebec", "xebec-as-runc"];
/// A container that is there all the time.
const WITNESS: &str = "witness";
/// The name of a supervisor's process.
const SUPERVISOR: &str = "containerd-shim";
/// Where containerd keeps bundles.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/";
/// What is empty when no shim is there: sockets and bundles.
const PLACES: &str = "cd /run/containerd; ls s io.containerd.runtime.v2.task/* \
                      /var/lib/containerd/io.containerd.runtime.v2.task/*";

/// The host, and who acts on it.
struct Scene<'a> {
    host: &'a NativeHost,
    image: &'a str,
    /// A pod that is there all the time.
    pod: &'a Pod,
}

impl Scene<'_> {
    fn socket(&self) -> PathBuf {
        self.host.path(Service::CONTAINERD_SOCKET)
    }

    /// Everyone acts until then, and `meanwhile` happens; `act` begins the names of all.
    fn play(
        &self,
        act: &str,
        ledger: &Ledger,
        (random, until): (&mut Random, Instant),
        meanwhile: impl FnOnce(&mut Random),
    ) {
        let mut part = |name: &str| (format!("{act}-{name}"), random.next());
        let containers = |part| Containers::new(self.host, self.image, ledger, part);
        let socket = self.socket();
        let pods = |part| Pods::new(&socket, self.image, ledger, part);
        let [mut one, mut two, mut execs] = ["one", "two", "exec"].map(|it| containers(part(it)));
        let [mut some, mut inside] = ["pod", "inside"].map(|it| pods(part(it)));
        thread::scope(|scope| {
            scope.spawn(|| one.churn(until));
            scope.spawn(|| two.churn(until));
            scope.spawn(|| execs.churn_in(WITNESS, until));
            scope.spawn(|| some.churn(until));
            scope.spawn(|| inside.churn_in(self.pod, until));
            meanwhile(random);
        });
    }
}

fn host(logs: &Path) -> (NativeHost, String) {
    if logs.exists() {
        std::fs::remove_dir_all(logs).unwrap();
    }
    let options = HostOptions {
        keep_logs: Some(logs.to_owned()),
        ..HostOptions::default()
    };
    let host = NativeHost::start(options).expect("a native host starts");
    host.push("pause").unwrap();
    let image = host.push("busybox").unwrap();
    Ctr::new(&host).pull(&image, "xebec").unwrap();
    (host, image)
}

/// Descriptors of containerd, supervisors and workers.
fn descriptors(host: &NativeHost) -> [(&'static str, Descriptors); 3] {
    ["containerd", SUPERVISOR, WORKER].map(|name| (name, Descriptors::of(host, name).unwrap()))
}

#[test]
fn nothing_is_lost_doubled_or_left_while_containerd_and_workers_are_killed() {
    let mut random = Random::new(setting("XEBEC_SOAK_SEED").unwrap_or(SEED));
    let seconds = setting("XEBEC_SOAK_SECONDS").unwrap_or(SECONDS);
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak");
    println!("XEBEC_SOAK_SEED={} logs {}", random.seed(), logs.display());
    let (host, image) = host(&logs);
    let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();
    for handler in HANDLERS {
        cri.pull(&image, handler).unwrap();
    }
    let ctr = Ctr::new(&host);
    let sleep = ["sleep", "100000"];
    ctr.start(Stack::XEBEC, &image, WITNESS, &sleep).unwrap();
    let pod = cri.run_pod("lasting", HANDLERS[0]).unwrap();
    let scene = Scene {
        host: &host,
        image: &image,
        pod: &pod,
    };

    let ledger = Ledger::default();
    let mut storm = Storm::new(&host, &ledger);
    storm.restart_containerd(&mut random, true);
    // What containerd does after its start is over then.
    thread::sleep(Duration::from_secs(5));
    let until = Instant::now() + WARM_UP;
    scene.play("calm", &ledger, (&mut random, until), |_| {});
    let before = Inventory::of(&host).unwrap();
    let held = descriptors(&host);

    let until = Instant::now() + Duration::from_secs(seconds);
    let rage = |random: &mut Random| storm.rage(random, until);
    scene.play("storm", &ledger, (&mut random, until), rage);
    println!("{}", ledger.summary());
    workers_come_back(&host);

    // The snapshotter keeps a tree that was removed while it was mounted until the next removal.
    let last = ctr.run(Stack::XEBEC, &image, "last", &["true"]).unwrap();
    assert!(last.success(), "{last:?}");
    nothing_stays(&host, &before, &held);
    let from = Instant::now();
    ctr.remove(WITNESS).expect("the witness has lived on");
    ledger.exit(WITNESS, WITNESS, Some(137), from);
    cri.remove_pod(&pod).expect("the pod has lived on");
    ledger.exit(&pod.id, &pod.id, None, from);
    no_shim_stays(&host);
    let sessions = storm.end();
    let (faults, exits) = ledger.close();
    assert!(faults.is_empty(), "{} faults: {faults:#?}", faults.len());
    every_exit_was_told_once(&sessions, &exits);
}

/// Each shim has a worker again, whose predecessors' early deaths may have had it wait.
fn workers_come_back(host: &NativeHost) {
    let end = Instant::now() + SETTLE;
    let number = |name| host.processes(name).unwrap().len();
    while number(WORKER) < number(SUPERVISOR) {
        assert!(Instant::now() < end, "a shim stays without a worker");
        thread::sleep(Duration::from_millis(200));
    }
}

/// The witness and the pod are as they were, and nothing else is there.
fn nothing_stays(host: &NativeHost, before: &Inventory, held: &[(&str, Descriptors)]) {
    let left = before
        .wait_until_restored_but(host, is_containerds)
        .unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
    let end = Instant::now() + SETTLE;
    loop {
        let now = descriptors(host);
        let added = |((name, now), (_, then)): (&(&str, Descriptors), &(&str, Descriptors))| {
            let added = now.added_since(then);
            (!added.is_empty()).then(|| format!("{name}: {added:?}"))
        };
        let added: Vec<_> = now.iter().zip(held).filter_map(added).collect();
        if added.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "descriptors stay open: {added:#?}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Fifos are made and removed by the client, which does not always come to that when its daemon is
/// cut off. A bundle that containerd removes gets a hidden name first, by which the next containerd
/// passes it over.
fn is_containerds(line: &str) -> bool {
    let path = line.strip_prefix("file ").unwrap_or_default();
    let bundle = path.strip_prefix(BUNDLES).unwrap_or_default();
    let id = bundle.split('/').nth(1).unwrap_or_default();
    path.starts_with("/run/containerd/fifo/") || id.starts_with('.')
}

/// Without a container there is no shim, no socket and no bundle.
fn no_shim_stays(host: &NativeHost) {
    let end = Instant::now() + SETTLE;
    loop {
        let mut left: Vec<_> = [SUPERVISOR, WORKER]
            .into_iter()
            .flat_map(|name| host.processes(name).unwrap())
            .map(|pid| format!("process {pid}"))
            .collect();
        let listed = host.check_sh(PLACES).unwrap();
        let entries = listed
            .lines()
            .filter(|l| !l.is_empty() && !l.ends_with(':'));
        left.extend(entries.map(str::to_owned));
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left over of shims: {left:#?}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn every_exit_was_told_once(sessions: &[Session], exits: &[Exit]) {
    let verdict = judge(sessions, exits);
    println!(
        "{} exits told in {} sessions; of {} certain ones {} within a session",
        verdict.told,
        sessions.len(),
        exits.len(),
        verdict.certain
    );
    assert!(verdict.faults.is_empty(), "{:#?}", verdict.faults);
    assert!(verdict.certain > 0, "nothing was tried: {exits:#?}");
}
