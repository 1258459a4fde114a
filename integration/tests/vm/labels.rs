//! Labels of security modules, which this machine's kernel lacks: AppArmor as Debian boots it, and
//! SELinux by the kernel's command line. Each runtime is asked the same, and answers the same.

use std::time::Duration;

use integration::command::Output;
use integration::hosts::{VmHost, VmOptions};

/// Makes the bundle /b; `bundle FILTER` changes its configuration by jq.
const BUNDLE: &str = r#"
set -e
mkdir -p /b/rootfs/bin /b/rootfs/proc /b/rootfs/dev /b/rootfs/sys /b/rootfs/tmp
cp /usr/bin/busybox /b/rootfs/bin/
for name in sh cat sleep true; do ln -s busybox /b/rootfs/bin/$name; done
echo hidden > /b/rootfs/tmp/secret
cd /b
xebec spec
bundle() {
    jq ".process.terminal = false | .root.readonly = false | $1" config.json > next
    mv next config.json
}
# The words of an error from where both runtimes say the same.
said() { sed -n "s/.*\($1.*\)/\1/p" | sed 's/fsmount:fscontext://' | tr -d '\\"' | head -n 1; }
"#;

/// A profile that hides one file, seen from init and from exec; one that is not loaded.
const APPARMOR: &str = r#"
cat > /tmp/profile <<'END'
profile xebec-test flags=(attach_disconnected,mediate_deleted) {
    file,
    capability,
    network,
    mount,
    umount,
    signal,
    ptrace,
    deny /tmp/secret r,
}
END
apparmor_parser --replace /tmp/profile
for runtime in xebec runc; do
    bundle '.process.apparmorProfile = "xebec-test" | .process.args = ["sh", "-c",
        "cat /proc/self/attr/current; cat /tmp/secret 2>&1; true"]'
    $runtime run init </dev/null | sed "s/^/$runtime init /"
    bundle '.process.args = ["sleep", "1000"]'
    $runtime run --detach c </dev/null >/dev/null 2>&1
    $runtime exec c cat /proc/self/attr/current | sed "s/^/$runtime exec /"
    $runtime exec --apparmor unconfined c cat /proc/self/attr/current /tmp/secret |
        sed "s/^/$runtime freed /"
    $runtime exec --apparmor none-such c true 2>&1 | said 'apparmor failed' |
        sed "s/^/$runtime refused-exec /"
    $runtime delete --force c
    bundle '.process.apparmorProfile = "none-such"'
    $runtime run none </dev/null 2>&1 | said 'unable to apply apparmor' |
        sed "s/^/$runtime refused /"
    bundle '.process.apparmorProfile = "unconfined" |
        .process.args = ["cat", "/proc/self/attr/current"]'
    $runtime run free </dev/null | sed "s/^/$runtime unconfined /"
done
"#;

/// Contexts of a process, of another in its container, and of its mounts.
const SELINUX: &str = r#"
test -e /sys/fs/selinux/enforce
for runtime in xebec runc; do
    bundle '.process.selinuxLabel = "system_u:system_r:container_t:s0:c1,c2" |
        .linux.mountLabel = "system_u:object_r:container_file_t:s0:c1,c2" |
        .process.args = ["sleep", "1000"]'
    $runtime run --detach --pid-file pid c </dev/null >/dev/null 2>log || cat log >&2
    root=/proc/$(cat pid)/root
    echo "$runtime init $(tr -d '\0' < /proc/$(cat pid)/attr/current)"
    for mount in /dev /dev/shm; do
        echo "$runtime $mount $(stat -c %C $root$mount)"
    done
    $runtime exec c cat /proc/self/attr/current | tr -d '\0' | sed "s/^/$runtime exec /"
    echo
    $runtime exec --process-label system_u:system_r:container_t:s0:c3 c \
        cat /proc/self/attr/current | tr -d '\0' | sed "s/^/$runtime other /"
    echo
    $runtime exec --process-label no:such:label:s0 c true 2>/dev/null || echo "$runtime refuses"
    $runtime delete --force c
done
# crun's annotation, which runc does not know.
bundle '.annotations = {"run.oci.mount_context_type": "rootcontext"}'
xebec run --detach --pid-file pid c </dev/null >/dev/null 2>log || cat log >&2
root=/proc/$(cat pid)/root
echo "by-root-context $(stat -c %C $root/dev/shm)"
echo "options $(grep -o '[a-z]*context=' /proc/$(cat pid)/mountinfo | sort -u | tr '\n' ' ')"
xebec delete --force c
"#;

fn asked(script: &str, kernel: &[&str]) -> Output {
    let options = VmOptions {
        services: Vec::new(),
        kernel: kernel.iter().map(ToString::to_string).collect(),
        deadline: Duration::from_mins(8),
        ..VmOptions::default()
    };
    let script = [BUNDLE, script].concat();
    VmHost::run(options, &["sh", "-c", &script]).expect("a VM host runs a job")
}

/// What one runtime answered.
fn answers<'o>(output: &'o Output, runtime: &str) -> Vec<&'o str> {
    output
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix(runtime)?.strip_prefix(' '))
        .collect()
}

#[track_caller]
fn assert_answers(output: &Output, expected: &[&str]) {
    assert!(output.success(), "{output:#?}");
    let ours = answers(output, "xebec");
    for answer in expected {
        assert!(ours.contains(answer), "{answer} is missing in {output:#?}");
    }
    assert_eq!(ours, answers(output, "runc"), "{output:#?}");
}

#[test]
fn apparmor_confines_a_container_by_the_profile_of_its_configuration() {
    let output = asked(APPARMOR, &[]);
    assert_answers(
        &output,
        &[
            "init xebec-test (enforce)",
            "init cat: can't open '/tmp/secret': Permission denied",
            "exec xebec-test (enforce)",
            "freed unconfined",
            "freed hidden",
            "unconfined unconfined",
        ],
    );
    let refused = answers(&output, "xebec");
    let refusals = refused.iter().filter(|line| {
        line.starts_with("refused")
            && line.contains("attr/apparmor/exec: no such file or directory")
    });
    assert_eq!(refusals.count(), 2, "{output:#?}");
}

#[test]
fn selinux_labels_processes_and_mounts_with_their_categories() {
    let output = asked(SELINUX, &["security=selinux", "selinux=1", "enforcing=0"]);
    assert_answers(
        &output,
        &[
            "init system_u:system_r:container_t:s0:c1,c2",
            "/dev system_u:object_r:container_file_t:s0:c1,c2",
            "/dev/shm system_u:object_r:container_file_t:s0:c1,c2",
            "exec system_u:system_r:container_t:s0:c1,c2",
            "other system_u:system_r:container_t:s0:c3",
            "refuses",
        ],
    );
    let lines: Vec<_> = output.stdout.lines().collect();
    for line in [
        "by-root-context system_u:object_r:container_file_t:s0:c1,c2",
        "options rootcontext= ",
    ] {
        assert!(lines.contains(&line), "{line} is missing in {output:#?}");
    }
}
