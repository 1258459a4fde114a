//! What a kubelet does with a container: `CheckpointContainer`, and `CreateContainer` from the archive or
//! from an image of it, in the same node and in another one.

use integration::cri::{Container, Cri, Pod};
use integration::hosts::{HostOptions, NativeHost, Service};
use xebec_proto::cri::NamespaceOption;

use super::{goes_on, host};

/// The name under which containerd gives a handler every feature.
const HANDLER: &str = "xebec-as-runc";
const ARCHIVE: &str = "/srv/checkpoint.tar";
/// Holds a counter and an array in memory.
const PROGRAM: &str = "
import numpy, os, time
array, n = numpy.arange(1 << 20), 0
while True:
    n += 1
    array[n] = -n
    print(n, int(-array[1:n + 1].sum()), flush=True)
    with open('/next', 'w') as file:
        file.write(str(n))
    os.rename('/next', '/count')
    time.sleep(0.05)
";

fn connect(host: &NativeHost) -> Cri {
    Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap()
}

fn pod(cri: &Cri, name: &str) -> Pod {
    cri.run_pod_with(NamespaceOption::default(), name, HANDLER)
        .unwrap()
}

/// A container that counts, in a pod, and has changed its root file system.
fn counter(host: &NativeHost, cri: &Cri, pod: &Pod, image: &str) -> String {
    let container = Container {
        name: "main",
        image,
        command: &["python3", "-c", PROGRAM],
    };
    let annotate = |config: &mut xebec_proto::cri::ContainerConfig| {
        let annotation = ("example.org/kept".to_owned(), "yes".to_owned());
        config.annotations.extend([annotation]);
    };
    let id = cri.create_with(pod, &container, annotate).unwrap();
    cri.start(&id).unwrap();
    goes_on(host, &count(&id), 3);
    let changes = "echo kept > /root/new && rm /etc/debian_version && mkdir /srv/directory";
    let changed = cri.exec_sync(&id, &["sh", "-c", changes]).unwrap();
    assert_eq!(changed.exit_code, 0, "{changed:?}");
    id
}

/// What prints the number that a container has come to.
fn count(id: &str) -> String {
    format!("ctr -n k8s.io tasks exec --exec-id count-$$ {id} cat /count")
}

/// Creates and starts a container from a checkpoint, and compares it with the one that was dumped at
/// `at` or a little later.
fn restore(host: &NativeHost, cri: &Cri, name: &str, image: &str, at: u64) {
    let pod = pod(cri, name);
    let container = Container {
        name: "main",
        image,
        command: &[],
    };
    let id = cri.create(&pod, &container).unwrap();
    cri.start(&id).unwrap();
    let from = goes_on(host, &count(&id), at - 1);
    goes_on(host, &count(&id), from + 2);
    let look = "cat /root/new; ls -d /srv/directory; ls /etc/debian_version";
    let seen = cri.exec_sync(&id, &["sh", "-c", look]).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&seen.stdout),
        "kept\n/srv/directory\n"
    );
    let status = cri.container_status(&id).unwrap();
    assert_eq!(
        status.annotations.get("restored").map(String::as_str),
        Some("true")
    );
    assert!(
        status.annotations.contains_key("checkpointedAt"),
        "{status:?}"
    );
    assert_eq!(
        status
            .annotations
            .get("example.org/kept")
            .map(String::as_str),
        Some("yes")
    );
    log_goes_on(host, name, from);
    cri.stop_pod(&pod).unwrap();
    cri.remove(&id).unwrap();
    cri.remove_pod(&pod).unwrap();
}

/// The lines in the archive and those of the restored container in a pod are all that there were, up to
/// `from` at least, and each sum is right.
fn log_goes_on(host: &NativeHost, pod: &str, from: u64) {
    let script = format!(
        "for log in \"$(tar xOf {ARCHIVE} container.log)\" \"$(cat /var/log/pods/{pod}/main.log)\"; do
           echo \"$log\" | cut -d' ' -f4-; done"
    );
    let mut next = 1;
    for line in host.check_sh(&script).unwrap().lines() {
        let (n, sum) = line.split_once(' ').unwrap();
        let (n, sum): (u64, u64) = (n.parse().unwrap(), sum.parse().unwrap());
        // It went on while its log was put into the archive.
        assert!(n <= next, "{n} comes after {}", next - 1);
        assert_eq!(sum, n * (n + 1) / 2);
        next = n + 1;
    }
    assert!(next > from, "{from} is not in the log");
}

#[test]
fn a_kubelets_checkpoint_is_restored_from_its_archive_and_from_an_image() {
    let (host, image) = host("python3-numpy");
    let cri = connect(&host);
    cri.pull(&image, HANDLER).unwrap();
    let first = pod(&cri, "first");
    let id = counter(&host, &cri, &first, &image);
    let at = goes_on(&host, &count(&id), 0);
    cri.checkpoint(&id, ARCHIVE).unwrap();
    // It goes on.
    goes_on(&host, &count(&id), at + 3);
    cri.stop_pod(&first).unwrap();
    cri.remove(&id).unwrap();
    cri.remove_pod(&first).unwrap();
    restore(&host, &cri, "from-archive", ARCHIVE, at);

    let registry = Service::REGISTRY;
    host.check_sh(&format!(
        "export STORAGE_DRIVER=vfs; c=$(buildah from scratch); buildah add $c {ARCHIVE} / >/dev/null
         buildah config --annotation org.criu.checkpoint.container.name=main $c
         buildah commit -q $c ckpt >/dev/null
         buildah push -q --tls-verify=false ckpt docker://{registry}/ckpt:1"
    ))
    .unwrap();
    let pushed = format!("{registry}/ckpt:2");
    host.check(&["xebec", "checkpoint", "push", ARCHIVE, &pushed])
        .unwrap();
    let of_buildah = format!("{registry}/ckpt:1");
    for (name, image) in [("from-image", of_buildah), ("from-pushed", pushed)] {
        cri.pull(&image, HANDLER).unwrap();
        restore(&host, &cri, name, &image, at);
    }
}

#[test]
fn a_lazily_pulled_container_is_restored_on_a_node_that_has_never_had_its_image() {
    let (host, whole) = host("python3-numpy");
    let lazy = host.convert(&whole).unwrap();
    let cri = connect(&host);
    cri.pull(&lazy, HANDLER).unwrap();
    let first = pod(&cri, "first");
    let id = counter(&host, &cri, &first, &lazy);
    let at = goes_on(&host, &count(&id), 0);
    cri.checkpoint(&id, ARCHIVE).unwrap();

    let other = NativeHost::start(HostOptions::default()).expect("another native host starts");
    other.push("pause").unwrap();
    let whole = other.push("python3-numpy").unwrap();
    assert_eq!(other.convert(&whole).unwrap(), lazy);
    let images = other.check_sh("ctr -n k8s.io images ls -q").unwrap();
    assert!(!images.contains("python3-numpy"), "{images}");
    std::fs::copy(host.path(ARCHIVE), other.path(ARCHIVE)).unwrap();
    restore(&other, &connect(&other), "elsewhere", ARCHIVE, at);
    let labels = "for s in $(ctr -n k8s.io snapshots --snapshotter xebec ls | awk 'NR>1 {print $1}'); do \
                  ctr -n k8s.io snapshots --snapshotter xebec info $s; done";
    let labels = other.check_sh(labels).unwrap();
    assert!(labels.contains("containerd.io/snapshot/remote"), "{labels}");
    // What was left running has not noticed.
    goes_on(&host, &count(&id), at + 3);
}
