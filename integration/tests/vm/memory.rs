//! Memory limits and their end.

use std::time::Duration;

use integration::hosts::{VmHost, VmOptions};

/// A container with 64 MiB that wants much more, while events are recorded: `tail` looks for the
/// last lines of /dev/zero, which has none, and keeps what it has read.
const OUT_OF_MEMORY: &str = r#"
set -e
skopeo copy -q --dest-tls-verify=false oci:/srv/corpus/redis:redis docker://127.0.0.1:5000/redis:v1
image=127.0.0.1:5000/redis:v1
ctr images pull --snapshotter xebec $image >/dev/null
run="ctr run --snapshotter xebec --runtime io.containerd.xebec.v2"

$run -d --memory-limit 67108864 $image limited sleep 1000
pid=$(ctr tasks ls | awk '$1 == "limited" {print $2}')
group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)
echo "limit $(cat $group/memory.max)"
ctr tasks metrics limited | grep -q memory && echo "metrics memory"
ctr tasks rm -f limited >/dev/null; ctr containers rm limited

ctr events > /tmp/events & events=$!
sleep 2
set +e
$run --rm --memory-limit 67108864 $image greedy sh -c 'exec tail /dev/zero'
echo "status $?"
set -e
sleep 2
kill $events
grep -o '/tasks/[a-z-]*' /tmp/events | sed 's/^/event /'
echo "left $(find /sys/fs/cgroup -name greedy -o -name limited | wc -l)"
"#;

#[test]
fn a_memory_limit_holds_and_its_oom_kill_is_told_before_the_exit() {
    let options = VmOptions {
        images: vec!["redis".into()],
        deadline: Duration::from_mins(8),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["sh", "-c", OUT_OF_MEMORY]).expect("a VM host runs a job");
    let lines: Vec<_> = output.stdout.lines().collect();
    assert!(output.success(), "{output:#?}");
    for line in ["limit 67108864", "metrics memory", "status 137", "left 0"] {
        assert!(lines.contains(&line), "{line} is missing in {output:#?}");
    }
    let place = |event: &str| {
        lines
            .iter()
            .position(|line| *line == format!("event {event}"))
    };
    let (oom, exit) = (place("/tasks/oom"), place("/tasks/exit"));
    assert!(oom.is_some() && oom < exit, "{output:#?}");
}
