//! What programs may expect of files, tried on a tree that is read lazily: cold, warm, and below a
//! writable overlay. `integration/programs/src/posix.rs` has the checks.

use integration::corpus::{ODD, build_odd};
use integration::ctr::Ctr;
use integration::hosts::{HostOptions, NativeHost, Service};

/// Where a native host has the programs of `integration/programs`.
const PROGRAM: &str = "/opt/xebec/posix-reads";

#[test]
fn files_of_a_lazy_tree_behave_as_files_do_by_the_kernel() {
    behave_as_files_do("kernel");
}

#[test]
fn files_of_a_lazy_tree_behave_as_files_do_by_fuse() {
    behave_as_files_do("fuse");
}

fn behave_as_files_do(mount: &str) {
    let config = format!("mount = \"{mount}\"\n");
    let options = HostOptions::default().file("/etc/xebec/snapshotter.toml", &config);
    let host = NativeHost::start(options).expect("a native host starts");
    let ctr = Ctr::new(&host);
    let ordinary = push_odd(&host);
    ctr.pull(&ordinary, "overlayfs").unwrap();
    let lazy = host.convert(&ordinary).unwrap();
    ctr.pull(&lazy, "xebec").unwrap();
    show(&host, "overlayfs", &ordinary, "/mnt/twin", "");
    show(&host, "xebec", &lazy, "/mnt/tree", "");
    let log = host.log(Service::Snapshotter);
    assert!(log.contains(&format!("by=\"{mount}\"")), "{log}");

    check(&host, "read", "/mnt/tree", 19);
    check(&host, "read", "/mnt/tree", 19);
    show(&host, "xebec", &lazy, "/mnt/writable", "--rw");
    check(&host, "write", "/mnt/writable", 21);
    // What was written is the overlay's alone.
    check(&host, "read", "/mnt/tree", 19);

    // Programs run from a tree of which nothing is here.
    let busybox = host.convert(&host.push("busybox").unwrap()).unwrap();
    ctr.pull(&busybox, "xebec").unwrap();
    show(&host, "xebec", &busybox, "/mnt/busybox", "");
    let ran = host
        .check(&["/mnt/busybox/bin/busybox", "echo", "run"])
        .unwrap();
    assert_eq!(ran, "run\n");
}

fn push_odd(host: &NativeHost) -> String {
    let image = format!("{}/{ODD}:v1", Service::REGISTRY);
    build_odd(ODD, &host.path("/var/tmp/odd")).unwrap();
    let copy =
        format!("skopeo copy -q --dest-tls-verify=false oci:/var/tmp/odd:{ODD} docker://{image}");
    host.check_sh(&copy).unwrap();
    image
}

fn show(host: &NativeHost, snapshotter: &str, image: &str, target: &str, flag: &str) {
    let script = format!(
        "mkdir -p {target}; ctr images mount {flag} --snapshotter {snapshotter} {image} {target}"
    );
    host.check_sh(&script).unwrap();
}

fn check(host: &NativeHost, mode: &str, tree: &str, checks: usize) {
    let ran = host.run(&[PROGRAM, mode, tree, "/mnt/twin"]).unwrap();
    eprintln!("{mode} {tree}:\n{}", ran.stdout);
    assert!(ran.success(), "{}{}", ran.stdout, ran.stderr);
    let passed = ran.stdout.matches(": ok").count();
    assert_eq!(passed, checks, "{}", ran.stdout);
}
