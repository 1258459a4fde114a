//! A mount namespace that is made of the container's root alone (kernel 7.0): taken where nothing
//! needs the host's tree, and the container is the one that a pivot makes.

use std::time::Duration;

use integration::hosts::{VmHost, VmOptions};

const SCRIPT: &str = include_str!("namespaces.sh");

/// What must be among the lines, word for word, in the order of the script.
const EXPECTED: &[&str] = &[
    "way plain namespace",
    "way without-chroot pivot",
    "propagation none namespace pivot same",
    "propagation private namespace pivot same",
    "propagation rshared namespace pivot same",
    "propagation shared namespace pivot same",
    "propagation rprivate namespace pivot same",
    "look complete",
    "beside many",
    "propagated arrived",
    "contained 0 there",
    "exec joins",
    "exec root bin data dev etc proc sys tmp ",
    "escape {} end ",
    r#"escape {"createRuntime": [{"path": "/bin/true"}]} end "#,
    "hidden 0 3 2 1:3 0 ",
    "nodes namespace 1:3 1 0 ",
    "terminal 88 terminal ",
    "way over-root pivot",
    "hooks creation pivot prestart /tmp/plain/rootfs/bin createRuntime /tmp/plain/rootfs/bin \
     createContainer /tmp/plain/rootfs/bin poststart - poststop - ",
    "hooks later namespace /bin 4 poststart - poststop - ",
    "userns pivot 0 100000 65536 0 ",
    "rootless  0 1000 1",
    "shim /bin",
    "shim way 1 0",
    "killed open_tree 0",
    "killed setns 0",
    "killed mount_setattr 0",
    "killed move_mount 0",
    "killed execve 0",
    "refused EINVAL 0 1 ",
    "refused EPERM 0 1 ",
    "refused ENOSYS 0 1 ",
    "refused ENOSPC 0 1 ",
    "nowhere invalid rootfs: stat /tmp/nowhere/absent: no such file or directory",
    "file invalid rootfs: stat /tmp/file/config.json: not a directory",
    "left  0 0",
];

#[test]
fn a_root_is_entered_rather_than_pivoted_to_and_the_container_is_the_same() {
    let options = VmOptions {
        images: vec!["busybox".into()],
        deadline: Duration::from_mins(15),
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["bash", "-c", SCRIPT]).expect("a VM host runs a job");
    assert!(output.success(), "{output:#?}");
    let lines: Vec<_> = output.stdout.lines().collect();
    let missing: Vec<_> = EXPECTED
        .iter()
        .filter(|line| !lines.iter().any(|said| said == *line))
        .collect();
    assert!(missing.is_empty(), "missing: {missing:#?} in {output:#?}");
    let calls: Vec<u32> = lines
        .iter()
        .find_map(|line| line.strip_prefix("calls "))
        .into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|count| count.parse().ok())
        .collect();
    assert!(
        matches!(calls[..], [entered, pivoted] if entered < pivoted),
        "{output:#?}"
    );
    println!("system calls of a run, entered and pivoted: {calls:?}");
}
