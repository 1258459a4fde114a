//! Checkpoints by way of containerd: its own client, a kubelet's calls, and another node.

mod clones;
mod ctr;
mod pods;

use integration::ctr::{Ctr, Stack};
use integration::hosts::{HostOptions, NativeHost};

/// Counts in memory, on a file of the root file system, and on standard output. Another file has a number that
/// is this process' alone.
const COUNTER: &str = "me=$(cat /proc/sys/kernel/random/uuid); i=0; while true; do i=$((i+1)); echo $i; \
                       echo $i > /next; mv /next /count; echo $me > /next; mv /next /me; sleep 0.05; done";

/// A host whose containerd has an image, of which a container has run and gone; CRIU knows its kernel.
fn host(image: &str) -> (NativeHost, String) {
    let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
    host.push("pause").unwrap();
    let image = host.push(image).unwrap();
    let ctr = Ctr::new(&host);
    ctr.pull(&image, "xebec").unwrap();
    let warm = ctr.run(Stack::XEBEC, &image, "warm-up", &["true"]).unwrap();
    assert!(warm.success(), "{warm:?}");
    host.sh("criu check").unwrap();
    (host, image)
}

/// Waits until a number that `script` prints is greater than `beyond`; the number.
#[track_caller]
fn goes_on(host: &NativeHost, script: &str, beyond: u64) -> u64 {
    let end = std::time::Instant::now() + integration::command::DEADLINE;
    loop {
        let output = host.sh(script).unwrap();
        let count = output
            .stdout
            .lines()
            .last()
            .unwrap_or_default()
            .trim()
            .parse();
        match count {
            Ok(count) if count > beyond => return count,
            _ => assert!(
                std::time::Instant::now() < end,
                "{output:?}\n{}",
                host.logs()
            ),
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
