//! What the runtime itself takes of a container's memory.

use std::time::Duration;

use integration::hosts::{VmHost, VmOptions};

/// Most that may be charged to the container while its init waits for `start`: 1.5 MiB.
const CHARGED_MAX: u64 = 3 << 19;

/// A bundle of busybox with a limit of 4 MiB: created, weighed, started, entered; and run.
const SMALL: &str = r#"
set -e
mkdir -p /b/rootfs/bin /b/rootfs/proc /b/rootfs/dev /b/rootfs/sys
cp /usr/bin/busybox /b/rootfs/bin/
for applet in sh true sleep; do ln -s busybox /b/rootfs/bin/$applet; done
cd /b
xebec spec
configure() {
    jq --argjson args "$1" '.process.terminal = false | .process.args = $args
        | .linux.resources.memory.limit = 4194304' config.json > new && mv new config.json
}
configure '["sleep", "1000"]'
xebec create small </dev/null >/dev/null 2>/tmp/log || { cat /tmp/log; exit 1; }
pid=$(xebec state small | jq .pid)
group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)
echo "limit $(cat $group/memory.max)"
echo "charged $(cat $group/memory.current)"
echo "peak $(cat $group/memory.peak)"
xebec start small
xebec exec small true
echo "state $(xebec state small | jq -r .status)"
xebec delete -f small
configure '["true"]'
xebec run small </dev/null
echo "run $?"
strace -f -c -o /tmp/calls xebec run small </dev/null
echo "calls $(awk '/ total$/ {print $4}' /tmp/calls)"
"#;

#[test]
fn a_container_with_four_mebibytes_starts_and_little_of_it_is_ours() {
    let options = VmOptions {
        services: Vec::new(),
        deadline: Duration::from_mins(8),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["sh", "-c", SMALL]).expect("a VM host runs a job");
    assert!(output.success(), "{output:#?}");
    let lines: Vec<_> = output.stdout.lines().collect();
    for line in ["limit 4194304", "state running", "run 0"] {
        assert!(lines.contains(&line), "{line} is missing in {output:#?}");
    }
    let charged = lines
        .iter()
        .find_map(|line| line.strip_prefix("charged ")?.parse::<u64>().ok());
    assert!(
        charged.is_some_and(|charged| charged <= CHARGED_MAX),
        "{output:#?}"
    );
}
