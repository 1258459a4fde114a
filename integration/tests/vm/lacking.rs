//! What this machine's kernel lacks, side by side in one machine: a boot costs more than any of it.

use std::time::Duration;

use integration::hosts::{Service, VmHost, VmOptions};

use super::{checkpoint, verity};

/// One of them waits much, and neither is to see the other's mounts.
const SIDE_BY_SIDE: &str = r#"
unshare --mount --propagation private bash -c "$1" > /tmp/checkpoint.out 2> /tmp/checkpoint.err &
bash -c "$2"
status=$?
wait $! || status=$?
cat /tmp/checkpoint.out
cat /tmp/checkpoint.err >&2
exit $status
"#;

#[test]
fn changed_memory_is_dumped_alone_restores_get_their_profile_and_sealed_files_show_no_wrong_byte() {
    let options = VmOptions {
        images: vec!["busybox".into()],
        services: vec![Service::Registry, Service::Containerd],
        deadline: Duration::from_mins(8),
        ..VmOptions::default()
    };
    let scripts = [checkpoint::SCRIPT, verity::SCRIPT];
    let argv = [&["bash", "-c", SIDE_BY_SIDE, "bash"], &scripts[..]].concat();
    let output = VmHost::run(options, &argv).expect("a VM host runs a job");
    assert!(output.success(), "{output:#?}");
    checkpoint::assert_told(&output);
    verity::assert_told(&output);
}
