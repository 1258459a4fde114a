//! Restores of much memory, which is filled by several threads of ours.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;

use super::checkpoint::{restore, run, use_network};
use super::{assert_restored, host, ok, settled, xebec};

/// Some 40 MB of values in two processes, each of which tells their sum whenever it has looked at all.
const SUMS: &str = r#"
sums() {
    awk -v file="$1" -v times="$2" 'BEGIN {
        for (i = 0; i < 100000; i++) value[i] = "this is value " i * times
        while (1) {
            sum = 0
            for (i in value) { split(value[i], word, " "); sum += word[4] }
            printf "%.0f\n", sum > file; close(file)
        }
    }'
}
ln -s busybox /bin/awk
sums /tmp/seven 7 & sums /tmp/nine 9
"#;
/// 100 000 × 99 999 / 2.
const SUM: u64 = 4_999_950_000;

fn bundle<'a>(host: &'a NativeHost, path: &str) -> Bundle<'a> {
    let mut bundle = Bundle::create(host, path, &["sh", "-c", SUMS]).expect("a bundle");
    use_network(host, &mut bundle);
    bundle.write().expect("written");
    bundle
}

/// Waits until both processes have looked at all of their memory again.
#[track_caller]
fn assert_right(host: &NativeHost, bundle: &Bundle<'_>) {
    let directory = format!("{}/rootfs/tmp", bundle.path());
    for (file, times) in [("seven", 7), ("nine", 9)] {
        let script = format!(
            "cd {directory}; rm -f {file}; for i in $(seq 600); do \
             [ -s {file} ] && break; sleep 0.05; done; cat {file}"
        );
        let sum = host.check_sh(&script).expect("a sum");
        assert_eq!(sum.trim(), (SUM * times).to_string(), "{file}");
    }
}

#[test]
fn memory_that_several_threads_fill_is_right_for_all_who_come_from_it() {
    let host = host();
    let warm_up = Bundle::create(&host, "/srv/w", &["true"]).expect("a bundle");
    host.sh("criu check").expect("it runs");
    let [first, second] = ["/srv/a", "/srv/b"].map(|path| bundle(&host, path));
    let before = settled(&host, &warm_up);
    run(&host, "xebec run --detach --bundle /srv/a a", "a");
    assert_right(&host, &first);
    ok(&host, &["checkpoint", "--image-path", "/srv/images", "a"]);
    restore(&host, "xebec --debug", &first, "/srv/images", "b");
    let skipped = host.check_sh("grep -c 'Lazy restore skips' /srv/images/restore.log");
    assert_ne!(skipped.expect("CRIU leaves memory to us").trim(), "0");
    assert_right(&host, &first);
    // Of two that come at once, one finds the other's socket; what a killed one has left is nobody's.
    ok(&host, &["delete", "--force", "b"]);
    let deserted = host.path("/srv/images/lazy-pages.socket");
    drop(std::os::unix::net::UnixListener::bind(&deserted).expect("a socket"));
    std::thread::scope(|scope| {
        for (bundle, id) in [(&first, "c"), (&second, "d")] {
            let host = &host;
            scope.spawn(move || restore(host, "xebec", bundle, "/srv/images", id));
        }
    });
    // Each has the processors for itself.
    ok(&host, &["pause", "d"]);
    assert_right(&host, &first);
    ok(&host, &["delete", "--force", "c"]);
    ok(&host, &["resume", "d"]);
    assert_right(&host, &second);
    ok(&host, &["delete", "--force", "d"]);
    let left = host.check_sh("ls /srv/images | grep socket || true");
    assert_eq!(left.expect("a list"), "");
    assert_restored(&host, &before);
}

#[test]
fn images_without_all_of_the_memory_are_refused_before_anything_is_made() {
    let host = host();
    let warm_up = Bundle::create(&host, "/srv/w", &["true"]).expect("a bundle");
    host.sh("criu check").expect("it runs");
    let first = bundle(&host, "/srv/a");
    let before = settled(&host, &warm_up);
    run(&host, "xebec run --detach --bundle /srv/a a", "a");
    assert_right(&host, &first);
    ok(&host, &["checkpoint", "--image-path", "/srv/images", "a"]);
    host.check_sh(
        "rm /srv/a/rootfs/tmp/*; cd /srv/images; for f in pages-*.img; do \
         truncate -s $(($(stat -c %s $f) / 8192 * 4096)) $f; done",
    )
    .expect("half of the memory is gone");
    let failed = host
        .sh("xebec restore --detach --bundle /srv/a --image-path /srv/images b </dev/null >/dev/null 2>/srv/said; \
             status=$?; cat /srv/said >&2; exit $status")
        .expect("it runs");
    assert_eq!(failed.status, 1, "{failed:?}");
    assert_eq!(failed.stderr.trim().lines().count(), 1, "{failed:?}");
    assert!(failed.stderr.contains("img is shorter than"), "{failed:?}");
    let gone = xebec(&host, &["state", "b"]).expect("it runs");
    assert!(gone.stderr.contains("does not exist"), "{gone:?}");
    let sums = host.check_sh("ls /srv/a/rootfs/tmp; ls /srv/images | grep socket || true");
    assert_eq!(sums.expect("a list"), "", "nothing of it went on");
    assert_restored(&host, &before);
}
