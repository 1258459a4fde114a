//! A pod as a kubelet runs it: through containerd's CRI, by a client of our own.

mod confinement;
mod node;
mod pods;
mod streams;

use integration::cri::{Container, Cri};
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::leftovers::Inventory;

/// The handlers of a host's containerd that mean our shim: by its own name, and by runc's name
/// with our path, which is the one that containerd gives every feature to.
const HANDLERS: [&str; 2] = ["xebec", "xebec-as-runc"];

#[test]
fn a_pod_of_two_containers_one_of_them_lazy_is_run_entered_stopped_and_removed() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    host.push("pause").unwrap();
    let whole = host.push("redis").unwrap();
    let nginx = host.push("nginx").unwrap();
    let lazy = format!("{}/nginx:lazy", Service::REGISTRY);
    host.check(&["xebec-snapshotter", "image", "convert", &nginx, &lazy])
        .unwrap();
    let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();

    let known = cri.handlers().unwrap();
    for handler in HANDLERS {
        assert!(
            known.iter().any(|h| h.name == handler),
            "{handler} is missing in {known:?}"
        );
    }
    let introspected = known.iter().find(|h| h.name == "xebec-as-runc").unwrap();
    let features = introspected
        .features
        .as_ref()
        .expect("features of the runc.v2 handler");
    assert!(features.recursive_read_only_mounts, "{features:?}");

    for handler in HANDLERS {
        cri.pull(&whole, handler).unwrap();
        cri.pull(&lazy, handler).unwrap();
    }
    let labels = "for s in $(ctr -n k8s.io snapshots --snapshotter xebec ls | awk 'NR>1 {print $1}'); do \
                  ctr -n k8s.io snapshots --snapshotter xebec info $s; done";
    let labels = host.check_sh(labels).unwrap();
    assert!(
        labels.contains("containerd.io/snapshot/remote"),
        "nothing was pulled lazily: {labels}"
    );

    run_pod(&cri, HANDLERS[0], &whole, &lazy);
    let before = Inventory::of(&host).unwrap();
    for handler in HANDLERS {
        run_pod(&cri, handler, &whole, &lazy);
        assert_eq!(cri.containers().unwrap(), [""; 0]);
        let left = before.wait_until_restored(&host).unwrap();
        assert!(left.is_empty(), "{handler} left over: {left:#?}");
    }
}

fn run_pod(cri: &Cri, handler: &str, whole: &str, lazy: &str) {
    let pod = cri.run_pod(&format!("pod-{handler}"), handler).unwrap();
    let main = Container {
        name: "main",
        image: whole,
        command: &["sleep", "1000"],
    };
    let side = Container {
        name: "side",
        image: lazy,
        command: &["sleep", "1000"],
    };
    let [main, side] = [main, side].map(|container| {
        let id = cri.create(&pod, &container).unwrap();
        cri.start(&id).unwrap();
        id
    });
    let ran = cri
        .exec_sync(&main, &["redis-server", "--version"])
        .unwrap();
    assert!(
        String::from_utf8_lossy(&ran.stdout).contains("Redis server"),
        "{ran:?}"
    );
    let ran = cri
        .exec_sync(&side, &["sh", "-c", "nginx -v; exit 9"])
        .unwrap();
    assert!(
        String::from_utf8_lossy(&ran.stderr).contains("nginx"),
        "{ran:?}"
    );
    assert_eq!(ran.exit_code, 9);

    cri.stop(&main, 0).unwrap();
    let ended = cri.wait_exit(&main).unwrap();
    assert_eq!(ended.exit_code, 137, "{ended:?}");
    cri.remove(&main).unwrap();

    let short = Container {
        name: "short",
        image: whole,
        command: &["sh", "-c", "exit 4"],
    };
    let short = cri.create(&pod, &short).unwrap();
    cri.start(&short).unwrap();
    let ended = cri.wait_exit(&short).unwrap();
    assert_eq!((ended.exit_code, &*ended.reason), (4, "Error"), "{ended:?}");

    cri.stop_pod(&pod).unwrap();
    cri.wait_exit(&side).unwrap();
    for id in [&side, &short] {
        cri.remove(id).unwrap();
    }
    cri.remove_pod(&pod).unwrap();
}

/// By runc's name only: for a pod with users of its own containerd itself reads the runtime's
/// options, and can read those of no other shim.
#[test]
fn a_pod_with_users_of_its_own_has_none_of_the_hosts() {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    host.push("pause").unwrap();
    let whole = host.push("busybox").unwrap();
    let nginx = host.push("nginx").unwrap();
    let lazy = format!("{}/nginx:lazy", Service::REGISTRY);
    host.check(&["xebec-snapshotter", "image", "convert", &nginx, &lazy])
        .unwrap();
    let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();
    let handler = HANDLERS[1];
    let known = cri.handlers().unwrap();
    let features = known.iter().find(|h| h.name == handler).unwrap().features;
    assert!(features.is_some_and(|it| it.user_namespaces), "{known:?}");

    let pod = cri
        .run_mapped_pod("mapped", handler, (200_000, 65536))
        .unwrap();
    for image in [&whole, &lazy] {
        cri.pull(image, handler).unwrap();
        let container = Container {
            name: "main",
            image,
            command: &["sleep", "1000"],
        };
        let id = cri.create(&pod, &container).unwrap();
        cri.start(&id).unwrap();
        let script = "cat /proc/self/uid_map; id -u; touch /made; stat -c %u:%g /made /bin/sh; \
                      ls /sys/class/net; cat /etc/hostname > /dev/null && echo volume";
        let ran = cri.exec_sync(&id, &["sh", "-c", script]).unwrap();
        let told = String::from_utf8_lossy(&ran.stdout);
        let words: Vec<_> = told.split_whitespace().collect();
        let expected = [
            "0", "200000", "65536", "0", "0:0", "0:0", "eth0", "lo", "volume",
        ];
        assert_eq!(words, expected, "{image}: {ran:?}");
        let owner = host
            .check_sh("stat -c %u /proc/$(pgrep -nx sleep)/root/made")
            .unwrap();
        assert_eq!(owner.trim(), "200000", "{image}");
        cri.stop(&id, 0).unwrap();
        cri.remove(&id).unwrap();
    }
    cri.stop_pod(&pod).unwrap();
    cri.remove_pod(&pod).unwrap();
}
