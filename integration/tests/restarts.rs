//! What dies beside containers: the shim's worker, its supervisor, containerd. Containers live on
//! or are cleaned up, no exit is lost or told twice, and nothing is left.

use std::io::{Read as _, Write as _};
use std::process::Child;
use std::time::{Duration, Instant};

use integration::command::{self, DEADLINE};
use integration::ctr::{Ctr, Stack};
use integration::events::{Event, Events};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;

/// How many containers start and end at once in a storm.
const CROWD: usize = 16;

/// A host with an image that has run once, so that what stays on purpose is there.
fn host() -> (NativeHost, String) {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let image = host.push("busybox").unwrap();
    ctr.pull(&image, "xebec").unwrap();
    let warm = ctr.run(Stack::XEBEC, &image, "warm-up", &["true"]).unwrap();
    assert!(warm.success(), "{warm:?}");
    (host, image)
}

/// Kills every process of that name, and returns how many there were.
fn kill_all(host: &NativeHost, name: &str) -> usize {
    host.kill_processes(&host.processes(name).unwrap()).unwrap()
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_mins(1);
    while !is_true() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs `ctr run FLAG … ID sh -c SCRIPT` in the background.
fn run(host: &NativeHost, image: &str, flag: &str, id: &str, script: &str) -> Child {
    let mut argv = Stack::XEBEC.run_arguments().to_vec();
    argv.extend([flag, image, id, "sh", "-c", script]);
    host.spawn(&argv).unwrap()
}

/// Exit code and output of a command that was started in the background.
fn finish(mut child: Child) -> (i32, String, String) {
    let mut stderr = child.stderr.take().expect("a piped stderr");
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let mut output = String::new();
    let mut stdout = child.stdout.take().expect("a piped stdout");
    stdout.read_to_string(&mut output).unwrap();
    let status = command::wait(&mut child, DEADLINE)
        .unwrap()
        .expect("it ends");
    let errors = errors.join().expect("a reader").unwrap();
    (command::exit_code(status), output, errors)
}

fn exits<'e>(events: &'e [Event], process: &str) -> Vec<&'e Event> {
    let is_wanted = |event: &&Event| event.topic == "/tasks/exit" && event.process == process;
    events.iter().filter(is_wanted).collect()
}

/// A client that is cut off may remove a snapshot whose rootfs is still mounted; the snapshotter
/// then keeps the tree below it until it removes the next one, which `image` makes it do.
#[track_caller]
fn assert_nothing_left(host: &NativeHost, image: &str, before: &Inventory) {
    let next = Ctr::new(host)
        .run(Stack::XEBEC, image, "next", &["true"])
        .unwrap();
    assert!(next.success(), "{next:?}");
    // containerd is another process after a restart; fifos are made and removed by the client,
    // which does not always come to that when its daemon is cut off.
    let is_theirs = |line: &str| {
        line.starts_with("file /run/containerd/fifo/") || line.ends_with(" containerd")
    };
    let left = before.wait_until_restored_but(host, is_theirs).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
    let shims = host.sh("ls -A /run/containerd/s").unwrap().stdout;
    assert_eq!(shims, "", "sockets of shims stayed");
}

#[test]
fn a_killed_worker_costs_neither_output_nor_exit_codes_nor_events() {
    let (host, image) = host();
    let ctr = Ctr::new(&host);
    let before = Inventory::of(&host).unwrap();
    let mut events = Events::follow(&host).unwrap();

    let count = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 7";
    let counting = run(&host, &image, "--rm", "counting", count);
    ctr.start(Stack::XEBEC, &image, "idle", &["sleep", "1000"])
        .unwrap();
    let exec = "ctr tasks exec --exec-id long idle sh -c 'cat; exit 5'";
    let mut long = host.spawn(&["sh", "-c", exec]).unwrap();
    events
        .wait(|seen| {
            let started = |process: &str, topic: &str| {
                seen.iter().any(|event| {
                    event.topic == topic && (event.process == process || event.container == process)
                })
            };
            started("counting", "/tasks/start") && started("long", "/tasks/exec-started")
        })
        .unwrap();
    for _ in 0..3 {
        assert!(kill_all(&host, "xebec-worker") >= 1, "no worker was there");
        // The shim answers again, with the same processes.
        wait_until("the shim does not answer", || {
            ctr.exec("idle", &["true"]).unwrap().success()
        });
    }
    let said = ctr
        .exec("idle", &["sh", "-c", "echo alive; exit 3"])
        .unwrap();
    assert_eq!((said.status, &*said.stdout), (3, "alive\n"), "{said:?}");

    // Standard input has survived, and its end.
    long.stdin
        .take()
        .unwrap()
        .write_all(b"over the kills\n")
        .unwrap();
    let (status, output, errors) = finish(long);
    assert_eq!((status, &*output), (5, "over the kills\n"), "{errors}");
    let (status, output, errors) = finish(counting);
    let numbers: Vec<String> = output.lines().map(str::to_owned).collect();
    let expected: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    assert_eq!((status, numbers), (7, expected), "{errors}");

    ctr.remove("idle").unwrap();
    events.wait(|seen| !exits(seen, "idle").is_empty()).unwrap();
    let events = events.all(&host).unwrap();
    for (process, status) in [("counting", 7), ("long", 5), ("idle", 137)] {
        let exits = exits(&events, process);
        let statuses: Vec<_> = exits.iter().map(|exit| exit.status).collect();
        assert_eq!(statuses, [Some(status)], "exits of {process}");
    }
    assert_nothing_left(&host, &image, &before);
}

#[test]
fn workers_killed_under_a_crowd_of_starts_and_exits_lose_and_double_nothing() {
    let (host, image) = host();
    let ctr = Ctr::new(&host);
    let events = Events::follow(&host).unwrap();
    let before = Inventory::of(&host).unwrap();
    let ids: Vec<String> = (0..CROWD).map(|number| format!("c{number}")).collect();
    let crowd: Vec<Child> = ids
        .iter()
        .enumerate()
        .map(|(number, id)| {
            run(
                &host,
                &image,
                "--rm",
                id,
                &format!("sleep 1; echo {id}; exit {number}"),
            )
        })
        .collect();
    let mut killed = 0;
    let waiting = std::thread::scope(|scope| {
        let finished = scope.spawn(|| crowd.into_iter().map(finish).collect::<Vec<_>>());
        while !finished.is_finished() {
            killed += kill_all(&host, "xebec-worker");
            std::thread::sleep(Duration::from_millis(100));
        }
        finished.join().unwrap()
    });
    assert!(killed > 0, "the storm came too late");
    for (number, (status, output, errors)) in waiting.iter().enumerate() {
        // A call that the worker died of is refused, and the client cleans up after itself.
        let is_refused = errors.contains("the shim was restarted");
        let is_right = (*status, &**output) == (number as i32, &*format!("c{number}\n"));
        assert!(
            is_right || is_refused,
            "c{number}: {status} {output:?} {errors}"
        );
    }
    // What a refused client left behind.
    for id in ctr.check(&["containers", "ls", "-q"]).unwrap().lines() {
        wait_until("a container cannot be removed", || {
            let _ = ctr.output(&["tasks", "rm", "-f", id]).unwrap();
            ctr.output(&["containers", "rm", id]).unwrap().success()
        });
    }
    assert_nothing_left(&host, &image, &before);
    let events = events.all(&host).unwrap();
    for id in &ids {
        let of = |topic: &str| {
            let is_it = |event: &&Event| event.topic == topic && event.container == *id;
            events.iter().filter(is_it).count()
        };
        let (created, exited) = (of("/tasks/create"), of("/tasks/exit"));
        assert_eq!(
            exited,
            created.min(1),
            "exits of {id}, which was created {created} times"
        );
    }
}

#[test]
fn containerd_killed_under_a_crowd_finds_every_task_and_every_exit_again() {
    let (host, image) = host();
    let ctr = Ctr::new(&host);
    let before = Inventory::of(&host).unwrap();
    let mut pids = Vec::new();
    for id in ["lives", "dies", "ends"] {
        ctr.start(Stack::XEBEC, &image, id, &["sleep", "1000"])
            .unwrap();
        pids.push(ctr.task(id).unwrap().unwrap().0);
    }
    let crowd: Vec<Child> = (0..CROWD)
        .map(|number| {
            let script = format!("sleep 0.{number}; exit {number}");
            run(&host, &image, "-d", &format!("c{number}"), &script)
        })
        .collect();
    wait_until("nothing starts", || {
        ctr.check(&["tasks", "ls", "-q"]).unwrap().lines().count() > 5
    });
    host.kill(Service::Containerd).unwrap();
    // While nobody listens: two ends, and the worker, which had heard of them, too.
    host.check_sh(&format!("kill -9 {}; kill -15 {}", pids[1], pids[2]))
        .unwrap();
    host.check_sh(&format!("kill -9 {}", pids[2])).unwrap();
    kill_all(&host, "xebec-worker");
    for client in crowd {
        // Cut off, most of them.
        finish(client);
    }
    host.start_services(&[Service::Containerd]).unwrap();

    let state = |id: &str| ctr.task(id).unwrap().map(|(_, status)| status);
    assert_eq!(
        ctr.task("lives").unwrap(),
        Some((pids[0], "RUNNING".into()))
    );
    for id in ["dies", "ends"] {
        wait_until("an exit is lost", || {
            state(id).as_deref() == Some("STOPPED")
        });
        let deleted = ctr.output(&["tasks", "rm", id]).unwrap();
        assert!(deleted.stderr.contains("exit code 137"), "{deleted:?}");
        ctr.check(&["containers", "rm", id]).unwrap();
    }
    // Those of the crowd that had come so far end with the status they have to have.
    for number in 0..CROWD {
        let id = format!("c{number}");
        if state(&id).is_some_and(|state| state != "CREATED") {
            wait_until("a task does not end", || {
                state(&id).as_deref() == Some("STOPPED")
            });
            let deleted = ctr.output(&["tasks", "rm", &id]).unwrap();
            let is_right = number == 0 || deleted.stderr.contains(&format!("exit code {number}"));
            assert!(is_right, "{id}: {deleted:?}");
        }
    }
    for id in ctr.check(&["containers", "ls", "-q"]).unwrap().lines() {
        let _ = ctr.output(&["tasks", "rm", "-f", id]).unwrap();
        ctr.check(&["containers", "rm", id]).unwrap();
    }
    assert_nothing_left(&host, &image, &before);
}

#[test]
fn a_killed_supervisor_takes_its_containers_along_and_leaves_nothing() {
    let (host, image) = host();
    let ctr = Ctr::new(&host);
    let before = Inventory::of(&host).unwrap();
    let mut events = Events::follow(&host).unwrap();
    ctr.start(Stack::XEBEC, &image, "c", &["sleep", "1000"])
        .unwrap();
    assert!(
        kill_all(&host, "containerd-shim") >= 1,
        "no supervisor was there"
    );
    let seen = events.wait(|seen| !exits(seen, "c").is_empty()).unwrap();
    assert_eq!(exits(seen, "c")[0].status, Some(137));
    wait_until("the task is still there", || {
        let _ = ctr.output(&["tasks", "rm", "-f", "c"]).unwrap();
        ctr.task("c").unwrap().is_none()
    });
    ctr.check(&["containers", "rm", "c"]).unwrap();
    let events = events.all(&host).unwrap();
    assert_eq!(exits(&events, "c").len(), 1, "{events:#?}");
    assert_nothing_left(&host, &image, &before);
}
