//! Containers that start as clones of a template because an annotation says so.

use integration::cri::{Container, Cri};
use integration::ctr::{Ctr, Stack};
use integration::events::Events;
use integration::hosts::{NativeHost, Service};
use integration::leftovers::Inventory;

use super::{goes_on, host};

const TEMPLATE: &str = "dev.xebec.clone.template";
const MEMORY: &str = "dev.xebec.clone.memory";
/// What a container says of itself whose clones know what they are, and may share its memory.
const AWARE: [(&str, &str); 2] = [
    ("dev.xebec.clone.generation", "true"),
    ("dev.xebec.clone.guard", "true"),
];

/// Counts until it is told to stop.
const COUNTER: &str = "i=0; until test -e /stop; do i=$((i+1)); echo $i; sleep 0.05; done; exit 7";

/// A `ctr run` in the background, with output in a file.
fn run(image: &str, id: &str, annotations: &[(&str, &str)], options: &[&str]) -> Vec<String> {
    let log = format!("file:///srv/{id}.out");
    let options = [&["-d", "--log-uri", &log], options].concat();
    argv(
        &["ctr", "run", "--cpu-shares", "0"],
        image,
        id,
        annotations,
        &options,
    )
}

fn argv(
    command: &[&str],
    image: &str,
    id: &str,
    annotations: &[(&str, &str)],
    options: &[&str],
) -> Vec<String> {
    let stack = Stack::XEBEC.run_arguments();
    let annotations = AWARE.iter().chain(annotations);
    let annotations: Vec<_> = annotations
        .map(|(key, value)| format!("--annotation={key}={value}"))
        .collect();
    let mut argv = [command, &stack[4..], options].concat();
    argv.extend(annotations.iter().map(String::as_str));
    argv.extend([image, id, "sh", "-c", COUNTER]);
    argv.into_iter().map(str::to_owned).collect()
}

/// What prints the last number that a container has said.
fn output(id: &str) -> String {
    format!("tail -n 1 /srv/{id}.out")
}

/// A number and random digits.
fn generation(ctr: Ctr<'_>, id: &str) -> (String, String) {
    let said = ctr.exec(id, &["cat", "/run/xebec/generation"]).unwrap();
    let (number, digits) = said.stdout.trim().split_once(' ').expect("two words");
    (number.to_owned(), digits.to_owned())
}

#[test]
fn annotated_containers_are_clones_that_go_on_and_are_containers_like_any_other() {
    let (host, image) = host("busybox");
    let ctr = Ctr::new(&host);
    host.check(&run(&image, "a", &[], &[])).unwrap();
    goes_on(&host, &output("a"), 10);
    let create = "xebec --root /run/containerd/xebec/default template create --leave-running t a";
    host.check_sh(create).unwrap();
    let before = Inventory::of(&host).unwrap();

    for (id, memory) in [("b", "eager"), ("c", "share")] {
        let annotations = [(TEMPLATE, "t"), (MEMORY, memory)];
        host.check(&run(&image, id, &annotations, &[])).unwrap();
        let first =
            format!("until test -s /srv/{id}.out; do sleep 0.05; done; head -n 1 /srv/{id}.out");
        let first = goes_on(&host, &first, 0);
        assert!(first > 10, "{id} begins with {first}");
        goes_on(&host, &output(id), first + 2);
    }
    let (b, c) = (generation(ctr, "b"), generation(ctr, "c"));
    assert_eq!((b.0.as_str(), c.0.as_str()), ("1", "2"));
    assert_ne!(b.1, c.1);
    ctr.check(&["tasks", "pause", "c"]).unwrap();
    ctr.check(&["tasks", "resume", "c"]).unwrap();

    let events = Events::follow(&host).unwrap();
    ctr.check(&["tasks", "kill", "-s", "9", "b"]).unwrap();
    let touched = ctr.exec("c", &["touch", "/stop"]).unwrap();
    assert!(touched.success(), "{touched:?}");
    for id in ["b", "c"] {
        ctr.wait_until_stopped(id).unwrap();
        ctr.remove(id).unwrap();
    }
    let told = events.all(&host).unwrap();
    for (id, status) in [("b", 137), ("c", 7)] {
        let exits = told
            .iter()
            .filter(|event| event.topic == "/tasks/exit" && event.process == id);
        let exits: Vec<_> = exits.map(|event| event.status).collect();
        assert_eq!(exits, [Some(status)], "{id}: {told:#?}");
    }
    refused(&host, &image);
    let left = before.wait_until_restored(&host).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
}

/// What is not there, what nobody may name, and what does not fit.
fn refused(host: &NativeHost, image: &str) {
    let ctr = Ctr::new(host);
    let mount = "type=bind,src=/srv,dst=/srv,options=rbind:ro";
    for (template, memory, options, part) in [
        ("none", "eager", &[][..], "template none does not exist"),
        (
            "/srv/t",
            "eager",
            &[],
            "\"/srv/t\" is no name of a template",
        ),
        ("t", "all", &[], "invalid memory mode \"all\""),
        (
            "t",
            "share",
            &["--mount", mount],
            "these are not the mounts of the template t",
        ),
        (
            "t",
            "share",
            &["--cap-add", "CAP_SYS_ADMIN"],
            "process.capabilities",
        ),
    ] {
        let annotations = [(TEMPLATE, template), (MEMORY, memory)];
        let output = host.run(&run(image, "d", &annotations, options)).unwrap();
        assert!(output.stderr.contains(part), "{part}: {output:?}");
        assert_eq!(ctr.task("d").unwrap(), None);
        ctr.check(&["containers", "rm", "d"]).unwrap();
    }
    // Another root file system is found out at the start.
    let create = argv(
        &["ctr", "containers", "create"],
        image,
        "d",
        &[(TEMPLATE, "t")],
        &[],
    );
    host.check(&create).unwrap();
    host.check_sh(
        "mkdir /srv/m; ctr snapshots --snapshotter xebec mount /srv/m d | sh
         rm -r /srv/m/bin && umount /srv/m",
    )
    .unwrap();
    let output = ctr
        .output(&["tasks", "start", "-d", "--null-io", "d"])
        .unwrap();
    assert!(
        output.stderr.contains("OCI runtime clone failed") && output.stderr.contains("bin/"),
        "{output:?}"
    );
    ctr.remove("d").unwrap();
}

/// Counts, and looks at all of an array that it never changes.
const PROGRAM: &str = "
import numpy, time
array, n = numpy.arange(1 << 21), 0
while True:
    n += 1
    print(n, array.sum(), flush=True)
    time.sleep(0.05)
";
/// Bytes of that array.
const ARRAY: u64 = 8 << 21;
const HANDLER: &str = "xebec";

/// What prints the last number in a pod's log.
fn logged(pod: &str) -> String {
    format!("tail -n 1 /var/log/pods/{pod}/main.log | cut -d' ' -f4")
}

/// Bytes that a container has of its own.
fn anonymous(host: &NativeHost, id: &str) -> u64 {
    let script = format!(
        "pid=$(ctr -n k8s.io tasks ls | awk '$1 == \"{id}\" {{ print $2 }}')
         awk '/^Anonymous:/ {{ print $2 }}' /proc/$pid/smaps_rollup"
    );
    let kilobytes = host.check_sh(&script).unwrap();
    kilobytes.trim().parse::<u64>().unwrap() << 10
}

#[test]
fn containers_of_annotated_pods_are_clones_that_share_memory_and_not_their_generation() {
    let (host, image) = host("python3-numpy");
    let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();
    cri.pull(&image, HANDLER).unwrap();
    let main = Container {
        name: "main",
        image: &image,
        command: &["python3", "-c", PROGRAM],
    };
    let start = |name: &str, annotations: &[(&str, &str)]| {
        let all = [&AWARE, annotations].concat();
        let pod = cri.run_annotated_pod(name, HANDLER, &all).unwrap();
        let id = cri.create(&pod, &main).unwrap();
        cri.start(&id).unwrap();
        (pod, id)
    };
    let (first, id) = start("first", &[]);
    goes_on(&host, &logged("first"), 10);
    let create = "xebec --root /run/containerd/xebec/k8s.io template create t";
    host.check_sh(&format!("{create} {id}")).unwrap();
    cri.stop_pod(&first).unwrap();
    cri.remove_pod(&first).unwrap();
    let before = Inventory::of(&host).unwrap();

    // A pod's annotation is one of all its containers, but of none that only holds the pod.
    let clones = [
        ("all", TEMPLATE, "share"),
        ("one", "dev.xebec.clone.template.main", "share"),
        ("served", TEMPLATE, "uffd"),
    ]
    .map(|(name, key, memory)| {
        let (pod, id) = start(name, &[(key, "t"), (MEMORY, memory)]);
        let begin = format!("head -n 1 /var/log/pods/{name}/main.log | cut -d' ' -f4");
        let from = goes_on(&host, &begin, 10);
        goes_on(&host, &logged(name), from + 2);
        (pod, id)
    });
    let mut generations = std::collections::BTreeSet::new();
    for (_, id) in &clones {
        let said = cri
            .exec_sync(id, &["cat", "/run/xebec/generation"])
            .unwrap();
        assert_eq!(said.exit_code, 0, "{said:?}");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        generations.extend(said.split_whitespace().map(str::to_owned));
    }
    assert_eq!(generations.len(), 6, "{generations:?}");
    let [all, one, served] = [0, 1, 2].map(|index: usize| anonymous(&host, &clones[index].1));
    for share in [all, one] {
        assert!(share + ARRAY * 3 / 4 < served, "{share} of {served} bytes");
    }
    for (pod, id) in &clones {
        cri.stop(id, 0).unwrap();
        assert_eq!(cri.container_status(id).unwrap().exit_code, 137);
        cri.remove(id).unwrap();
        cri.stop_pod(pod).unwrap();
        cri.remove_pod(pod).unwrap();
    }
    let left = before.wait_until_restored(&host).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
}
