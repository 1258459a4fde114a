//! podman and dockerd with every cgroup controller and systemd, and podman of a user who is not
//! root in a session of systemd's user manager. One machine, one script: booting is what is slow.

use std::time::Duration;

use integration::hosts::{VmHost, VmOptions};

/// `say NAME COMMAND…` prints `NAME: OUTPUT; STATUS` on one line.
const PREPARE: &str = r#"
say() {
    name=$1; shift
    out=$("$@" 2>/tmp/stderr-$(id -u) </dev/null); status=$?
    echo "$name: $(echo "$out" | tr -s ' \t\r\n' ' ' | sed 's/^ //; s/ $//'); $status"
    [ $status = 0 ] || sed "s/^/$name wrote: /" /tmp/stderr-$(id -u)
}
useradd --create-home --uid 1000 alice
echo alice:100000:65536 | tee /etc/subuid > /etc/subgid
loginctl enable-linger alice
mkdir -p /etc/containers /etc/docker
cat > /etc/containers/containers.conf <<'CONF'
[engine]
runtime = "xebec"
events_logger = "file"
runtime_supports_json = ["xebec"]
[engine.runtimes]
xebec = ["/usr/local/bin/xebec"]
CONF
cat > /etc/docker/daemon.json <<'CONF'
{"runtimes": {"xebec": {"path": "/usr/local/bin/xebec"}}, "default-runtime": "xebec",
 "iptables": false, "ip6tables": false, "bridge": "none"}
CONF
group() { echo /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$1/cgroup); }
"#;

/// Root's podman lets systemd make the cgroups.
const PODMAN: &str = r#"
podman pull -q oci:/srv/corpus/busybox:busybox >/dev/null
podman run -d --name c --network none --memory 64m --pids-limit 77 --cpus 0.5 busybox sleep 1000 >/dev/null
group=$(group $(podman inspect --format '{{.State.Pid}}' c))
say place sh -c "echo $group | grep -o 'machine.slice/libpod-.*[.]scope'"
say limits cat $group/memory.max $group/pids.max $group/cpu.max
say stats podman stats --no-stream --format '{{.MemLimit}} {{.PIDs}}' c
say update podman update --memory 128m c
say updated cat $group/memory.max
podman pause c >/dev/null; say paused cat $group/cgroup.freeze
podman unpause c >/dev/null
say exec podman exec c sh -c 'id -u; exit 9'
say removed podman rm -f -t 0 c
say left sh -c 'systemctl list-units --all --plain --no-legend "libpod-*" | grep -v conmon'
"#;

/// dockerd lets systemd make them, too; Debian packs docker's own command apart, so this is its API.
const DOCKER: &str = r#"
dockerd > /tmp/dockerd.log 2>&1 & dockerd=$!
api() {
    method=$1; path=$2; shift 2
    curl -s --max-time 100 --unix-socket /run/docker.sock -X $method \
        -H 'Content-Type: application/json' "$@" http://docker/v1.44$path
}
until api GET /_ping >/dev/null; do sleep 1; done
skopeo copy -q oci:/srv/corpus/busybox:busybox docker-daemon:busybox:latest
api POST '/containers/create?name=dock' >/dev/null -d '{"Image":"busybox",
    "Cmd":["sh","-c","trap \"exit 4\" TERM; while :; do sleep 1; done"],
    "HostConfig":{"NetworkMode":"none","Runtime":"xebec","Memory":67108864,"PidsLimit":88,"CpuShares":512}}'
api POST /containers/dock/start
show() { api GET /containers/dock/json | jq -r "$1"; }
group=$(group $(show .State.Pid))
say docker-driver sh -c 'curl -s --unix-socket /run/docker.sock http://d/info | jq -r .CgroupDriver,.CgroupVersion'
say docker-place sh -c "echo $group | grep -o 'system.slice/docker-.*[.]scope'"
say docker-limits cat $group/memory.max $group/pids.max
say docker-stats sh -c 'curl -s --unix-socket /run/docker.sock "http://d/containers/dock/stats?stream=false&one-shot=true" | jq .memory_stats.limit,.pids_stats.limit'
api POST /containers/dock/update -d '{"Memory":134217728,"MemorySwap":-1}' >/dev/null
say docker-updated cat $group/memory.max
api POST /containers/dock/pause; say docker-paused show .State.Status; api POST /containers/dock/unpause
id=$(api POST /containers/dock/exec -d '{"AttachStdout":true,"Tty":true,"Cmd":["sh","-c","tty; exit 6"]}' | jq -r .Id)
say docker-exec api POST /exec/$id/start -d '{"Tty":true}'
say docker-code sh -c "curl -s --unix-socket /run/docker.sock http://d/exec/$id/json | jq .ExitCode"
api POST '/containers/dock/stop?t=100'; say docker-stopped show .State.ExitCode
api DELETE /containers/dock
say docker-left sh -c 'ls --ignore=@seccomp /run/docker/runtime-runc/moby; find /sys/fs/cgroup -name "docker-*"'
kill $dockerd; wait $dockerd
"#;

/// The same user as in every guide to rootless containers: subordinate ids, a session, pasta.
const ALICE: &str = r#"
cat > /tmp/alice.sh <<'SCRIPT'
podman pull -q oci:/srv/corpus/busybox:busybox >/dev/null
podman run -d --name c --memory 64m busybox sleep 1000 >/dev/null
group=$(group $(podman inspect --format '{{.State.Pid}}' c))
say alice-runtime podman info --format '{{.Host.OCIRuntime.Name}} {{.Host.Security.Rootless}}'
say alice-place sh -c "echo $group | grep -o 'user@1000.service/user.slice/libpod-.*[.]scope'"
say alice-limit cat $group/memory.max
say alice-exec podman exec c sh -c 'id -u; cat /proc/self/uid_map; ls /sys/class/net; exit 9'
say alice-removed podman rm -f -t 0 c
keep="podman --cgroup-manager cgroupfs run --rm --network none"
say alice-keep-id $keep --userns=keep-id busybox id -u
say alice-host-network podman run --rm --network host --user 33 busybox sh -c 'id -u; ls /sys/class/net | head -1'
say alice-left sh -c 'ls --ignore=@seccomp /run/user/1000/xebec; find /sys/fs/cgroup -name "libpod-*scope"'
SCRIPT
until systemctl is-active -q user@1000; do sleep 1; done
{ sed -n '/^say()/,/^}/p; /^group()/p' "$0"; cat /tmp/alice.sh; } > /tmp/story.sh
systemd-run -q --machine=alice@.host --user --pipe --wait sh /tmp/story.sh
"#;

const EXPECTED: &[&str] = &[
    "limits: 67108864 77 50000 100000; 0",
    "stats: 67108864 1; 0",
    "updated: 134217728; 0",
    "paused: 1; 0",
    "exec: 0; 9",
    "removed: c; 0",
    "left: ; 1",
    "docker-driver: systemd 2; 0",
    "docker-limits: 67108864 88; 0",
    "docker-stats: 67108864 88; 0",
    "docker-updated: 134217728; 0",
    "docker-paused: paused; 0",
    "docker-exec: /dev/pts/0; 0",
    "docker-code: 6; 0",
    "docker-stopped: 4; 0",
    "docker-left: ; 0",
    "alice-runtime: xebec true; 0",
    "alice-limit: 67108864; 0",
    "alice-exec: 0 0 1000 1 1 100000 65536 lo tap0; 9",
    "alice-removed: c; 0",
    "alice-keep-id: 1000; 0",
    "alice-left: ; 0",
];

/// Lines whose end is a name that nobody can foresee.
const BEGINNINGS: &[&str] = &[
    "place: machine.slice/libpod-",
    "docker-place: system.slice/docker-",
    "alice-place: user@1000.service/user.slice/libpod-",
    "alice-host-network: 33 ",
];

#[test]
fn podman_and_dockerd_use_us_with_systemd_as_root_and_as_a_user() {
    let options = VmOptions {
        services: Vec::new(),
        images: vec!["busybox".into()],
        deadline: Duration::from_mins(9),
        ..VmOptions::default()
    };
    let story = format!("{PREPARE}{PODMAN}{DOCKER}{ALICE}");
    let argv = [
        "sh",
        "-c",
        "printf %s \"$1\" > /tmp/job.sh; sh /tmp/job.sh",
        "sh",
        &story,
    ];
    let output = VmHost::run(options, &argv).expect("a VM host runs a job");
    let lines: Vec<_> = output.stdout.lines().collect();
    let missing: Vec<_> = EXPECTED
        .iter()
        .filter(|wanted| !lines.contains(wanted))
        .chain(
            BEGINNINGS
                .iter()
                .filter(|start| !lines.iter().any(|line| line.starts_with(*start))),
        )
        .collect();
    assert!(
        missing.is_empty(),
        "missing: {missing:#?}\nin\n{}\n{}",
        output.stdout,
        output.stderr
    );
}
