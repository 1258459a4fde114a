//! What drives a runtime in practice: podman with conmon, buildah, dockerd with containerd's shim.
//!
//! Each story is one script; its lines, `NAME: OUTCOME`, are compared with what is expected.

use integration::command::Output;
use integration::hosts::{HostOptions, NativeHost};
use integration::leftovers::Inventory;

/// podman's and buildah's settings: our runtime; limits that a machine without `CAP_SYS_RESOURCE`
/// may set; and cgroup limits without a controller are a warning, because this machine has few.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "xebec"
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime_supports_json = ["xebec"]
runtime_supports_nocgroup = ["xebec"]
[engine.runtimes]
xebec = ["/usr/local/bin/xebec"]
[engine.runtimes_flags]
xebec = ["ignore-missing-controllers"]
"#;

/// dockerd's: no network of its own, which needs netfilter.
const DAEMON_JSON: &str = r#"{
    "runtimes": {"xebec": {"path": "/usr/local/bin/xebec"}}, "default-runtime": "xebec",
    "iptables": false, "ip6tables": false, "bridge": "none",
    "exec-opts": ["native.cgroupdriver=cgroupfs"]
}"#;

/// `say NAME COMMAND…` prints `NAME: OUTPUT; STATUS` on one line.
const SAY: &str = r#"
say() {
    name=$1; shift
    out=$("$@" 2>/tmp/stderr </dev/null); status=$?
    echo "$name: $(echo "$out" | tr -s ' \t\r\n' ' ' | sed 's/^ //; s/ $//'); $status"
    [ $status = 0 ] || sed "s/^/$name wrote: /" /tmp/stderr
}
"#;

pub(super) fn host_of_clients() -> NativeHost {
    let options = HostOptions::bare()
        .file("/etc/containers/containers.conf", CONTAINERS_CONF)
        .file("/etc/docker/daemon.json", DAEMON_JSON)
        .file("/etc/subuid", "containers:200000:1000000\n")
        .file("/etc/subgid", "containers:200000:1000000\n");
    let host = NativeHost::start(options).expect("a native host starts");
    host.check_sh("useradd --system containers; podman pull -q oci:/srv/corpus/busybox:busybox")
        .expect("podman pulls from the corpus");
    host
}

fn tell(host: &NativeHost, script: &str) -> Output {
    host.sh(&format!("{SAY}{script}")).expect("a script runs")
}

/// Every expected line has to be there; a `*` stands for anything.
#[track_caller]
fn assert_told(output: &Output, expected: &[&str]) {
    let lines: Vec<_> = output.stdout.lines().collect();
    let missing: Vec<_> = expected
        .iter()
        .filter(|wanted| !lines.iter().any(|line| fits(wanted, line)))
        .collect();
    assert!(
        missing.is_empty(),
        "missing: {missing:#?}\nin\n{}\n{}",
        output.stdout,
        output.stderr
    );
}

fn fits(pattern: &str, line: &str) -> bool {
    match pattern.split_once('*') {
        Some((head, tail)) => {
            line.starts_with(head) && line.len() >= pattern.len() - 1 && line.ends_with(tail)
        }
        None => pattern == line,
    }
}

#[test]
fn podman_runs_containers_and_learns_how_they_end() {
    let host = host_of_clients();
    host.check_sh("podman run --rm --network none busybox true")
        .expect("a first container makes what stays");
    let before = Inventory::of(&host).expect("an inventory");
    let output = tell(
        &host,
        r#"
run="podman run --rm --network none"
say name podman info --format '{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}'
say version sh -c "podman info --format '{{.Host.OCIRuntime.Version}}' | head -1"
say code $run busybox sh -c 'exit 37'
say unknown $run busybox nosuch
say directory $run busybox /etc
say user $run -u 33:44 --group-add 55 -w /tmp -e A=b busybox sh -c 'id -u; id -G; pwd; echo $A'
say terminal $run -t busybox tty
say init $run --init busybox cat /proc/1/comm
say limits $run --memory 64m --pids-limit 50 --ulimit nofile=77:77 busybox sh -c 'ulimit -n'
say kernel $run --sysctl net.ipv4.ip_forward=1 --hostname inside busybox sh -c \
    'cat /proc/sys/net/ipv4/ip_forward; hostname'
say capabilities $run --cap-drop all --cap-add net_raw busybox grep CapEff /proc/self/status
say unconfined $run --security-opt seccomp=unconfined busybox grep Seccomp: /proc/self/status
say privileged $run --privileged busybox mount -t tmpfs t /tmp
say read-only $run --read-only busybox sh -c 'touch /x 2>/dev/null || echo refused'
say bridge podman run --rm busybox sh -c 'ls /sys/class/net'
say automatic $run --userns=auto busybox sh -c 'cat /proc/self/uid_map; id -u; touch /x'
say mapped $run --uidmap 0:300000:5000 --gidmap 0:300000:5000 busybox sh -c 'cat /proc/self/gid_map'
mkdir /var/lib/volume
say volume $run --uidmap 0:300000:5000 --gidmap 0:300000:5000 -v /var/lib/volume:/v:idmap busybox \
    sh -c 'touch /v/file; stat -c %u /v/file'
say owner stat -c %u /var/lib/volume/file
podman rmi --force --all >/dev/null
"#,
    );
    assert_told(
        &output,
        &[
            "name: xebec /usr/local/bin/xebec; 0",
            "version: xebec version *; 0",
            "code: ; 37",
            "unknown: ; 127",
            "unknown wrote: Error: *OCI runtime attempted to invoke a command that was not found",
            "directory: ; 126",
            "user: 33 44 55 /tmp b; 0",
            "terminal: /dev/pts/0; 0",
            "init: podman-init; 0",
            "limits: 77; 0",
            "kernel: 1 inside; 0",
            "capabilities: CapEff: 0000000000002000; 0",
            "unconfined: Seccomp: 0; 0",
            "privileged: ; 0",
            "read-only: refused; 0",
            "bridge: eth0 lo; 0",
            "automatic: 0 200000 1024 0; 0",
            "mapped: 0 300000 5000; 0",
            "volume: 0; 0",
            "owner: 0; 0",
        ],
    );
    let left = podmans_own(&host, &before);
    assert!(left.is_empty(), "left over: {left:#?}");
}

/// What a container left behind, apart from podman's own locks, network and storage.
fn podmans_own(host: &NativeHost, before: &Inventory) -> Vec<String> {
    let left = before.wait_until_restored(host).expect("an inventory");
    let is_ours = |line: &String| {
        line.contains("xebec") && !line.contains("@seccomp")
            || line.contains("conmon ")
            || line.contains("cgroup /libpod_parent/libpod-")
    };
    left.into_iter().filter(is_ours).collect()
}

#[test]
fn podman_looks_into_and_steers_a_running_container() {
    let host = host_of_clients();
    let output = tell(
        &host,
        r#"
state() { podman inspect --format '{{.State.Status}} {{.State.ExitCode}}' $1; }
loop='trap "echo bye; exit 3" TERM; while :; do sleep 0.1; done'
podman run -d --name c --network none --health-cmd 'test -f /tmp/well' --health-interval disable \
    busybox sh -c "$loop" >/dev/null
say exec podman exec c sh -c 'echo in; exit 9'
say exec-unknown podman exec c nosuch
say exec-user podman exec -u 33:44 -w /tmp -e A=b c sh -c 'id -u; id -g; pwd; echo $A'
say exec-terminal podman exec -t c tty
echo 'exec-input: '$(echo 'id -u' | podman exec -i c sh)
podman exec -d c touch /tmp/behind >/dev/null
say exec-behind sh -c 'until podman exec c ls /tmp/behind 2>/dev/null; do sleep 0.1; done'
say top sh -c 'podman top c comm | sort -u'
say stats podman stats --no-stream --format '{{.Name}}' c
say ill podman healthcheck run c
podman exec c touch /tmp/well
say well podman healthcheck run c
podman pause c >/dev/null; say paused state c
podman unpause c >/dev/null; say unpaused state c
say update podman update --cpu-shares 512 c
say copy sh -c 'podman cp /etc/hostname c:/tmp/name && podman exec c cat /tmp/name'
say stop podman stop -t 20 c; say stopped state c
say logs podman logs c
say start podman start c; say restart podman restart -t 0 c; say running state c
say kill podman kill -s KILL c; say wait podman wait c
say remove podman rm -f -t 0 c
podman run -d --name a --network none -i busybox sh >/dev/null
echo "attach: $(echo 'echo attached; exit 5' | podman attach a | tr -d '\n')"
say attached podman wait a
say forced sh -c 'podman run -d --name f --network none busybox sleep 1000 >/dev/null; podman rm -f -t 0 f'
say without podman run --rm --network none --cgroups=disabled busybox echo no cgroup
say left sh -c 'ls --ignore=@seccomp /run/xebec; find /sys/fs/cgroup -name "libpod-*"'
"#,
    );
    assert_told(
        &output,
        &[
            "exec: in; 9",
            "exec-unknown: ; 127",
            "exec-unknown wrote: Error: *OCI runtime attempted to invoke a command that was not found",
            "exec-user: 33 44 /tmp b; 0",
            "exec-terminal: /dev/pts/0; 0",
            "exec-input: 0",
            "exec-behind: /tmp/behind; 0",
            "top: COMMAND sh sleep; 0",
            "stats: c; 0",
            "ill: unhealthy; 1",
            "well: ; 0",
            "paused: paused 0; 0",
            "unpaused: running 0; 0",
            "update: *; 0",
            "copy: *; 0",
            "stop: c; 0",
            "stopped: exited 3; 0",
            "logs: bye; 0",
            "start: c; 0",
            "restart: c; 0",
            "running: running 0; 0",
            "kill: c; 0",
            "wait: 137; 0",
            "remove: c; 0",
            "attach: attached",
            "attached: 5; 0",
            "forced: f; 0",
            "without: no cgroup; 0",
            "left: ; 0",
        ],
    );
}

#[test]
fn podman_makes_pods_and_shares_namespaces() {
    let host = host_of_clients();
    let output = tell(
        &host,
        r#"
podman pod create --name plain --network none >/dev/null
podman run -d --pod plain --name one busybox sh -c 'exec sleep 1000' >/dev/null
say hostname podman exec one hostname
say second podman run --rm --pod plain busybox sh -c 'readlink /proc/self/ns/ipc >/dev/null; hostname'
say pods podman pod ps --format '{{.Name}} {{.Status}} {{.NumberOfContainers}}'
say stop podman pod stop -t 0 plain
podman pod rm -f -t 0 plain >/dev/null
podman pod create --name mapped --userns=auto >/dev/null
podman run -d --pod mapped --name two busybox sleep 1000 >/dev/null
say map podman exec two cat /proc/self/uid_map
say write podman exec two sh -c 'touch /x; stat -c %u:%g /x; ip -o link | wc -l'
podman pod rm -f -t 0 mapped >/dev/null
podman run -d --name host --network none busybox sleep 1000 >/dev/null
share="--network container:host --pid container:host --ipc container:host --uts container:host"
say shared podman run --rm $share busybox sh -c 'cat /proc/1/comm; hostname'
echo "own: $(podman exec host hostname)"
podman rm -f -t 0 host >/dev/null
say left sh -c 'ls --ignore=@seccomp /run/xebec; find /sys/fs/cgroup -name "libpod-*"'
"#,
    );
    assert_told(
        &output,
        &[
            "hostname: plain; 0",
            "second: plain; 0",
            "pods: plain Running 2; 0",
            "stop: *; 0",
            "map: 0 200000 1024; 0",
            "write: 0:0 2; 0",
            "left: ; 0",
        ],
    );
    let value = |name: &str| {
        let mut lines = output.stdout.lines();
        lines
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or("absent")
    };
    let own = value("own: ");
    assert_eq!(value("shared: "), format!("sleep {own}; 0"), "{output:?}");
}

#[test]
fn containers_run_in_containers_of_podman() {
    let host = host_of_clients();
    host.check_sh(
        "mkdir -p /var/lib/inner; cd /var/lib/inner; xebec spec; \
         podman create --name image busybox >/dev/null; mkdir rootfs; \
         podman export image | tar -x -C rootfs; podman rm image >/dev/null; \
         jq '.process.terminal = false | del(.linux.resources) | .process.args = [\"sh\", \"-c\", \
             \"id -u; ls /sys/class/net; echo x > /dev/null && echo null\"]' config.json > c && mv c config.json",
    )
    .expect("a bundle of podman's image");
    let output = tell(
        &host,
        r#"
run="podman run --rm --network none -v /opt/xebec/xebec:/bin/xebec -v /var/lib/inner:/inner:U \
    -e XEBEC_IGNORE_MISSING_CONTROLLERS=1"
say privileged $run --privileged busybox xebec run --bundle /inner nested
say mapped $run --privileged --userns=auto busybox xebec run --bundle /inner nested
say ordinary $run --user 0 busybox xebec run --bundle /inner nested
"#,
    );
    assert_told(
        &output,
        &[
            "privileged: 0 lo null; 0",
            "mapped: 0 lo null; 0",
            "ordinary: ; 1",
            "ordinary wrote: *rootless container requires user namespaces\"",
        ],
    );
}

#[test]
fn buildah_runs_commands_and_builds_images() {
    let host = host_of_clients();
    let output = tell(
        &host,
        r#"
c=$(buildah from docker.io/library/busybox)
run="buildah run --runtime /usr/local/bin/xebec"
say write $run --network none $c sh -c 'id -u; echo built > /file'
say read $run $c cat /file
say fail $run $c sh -c 'exit 7'
say terminal $run -t $c tty
mkdir /tmp/context
printf 'FROM docker.io/library/busybox\nRUN echo made > /m\nUSER 7:8\nRUN test $(id -u) = 7\nCMD ["cat","/m"]\n' \
    > /tmp/context/Dockerfile
say build sh -c 'buildah bud --runtime /usr/local/bin/xebec --isolation oci -t made /tmp/context | tail -1'
say podman-build sh -c 'podman build -t made2 /tmp/context | tail -1'
say result podman run --rm --network none localhost/made
say refuse sh -c 'echo "RUN false" >> /tmp/context/Dockerfile; buildah bud --isolation oci /tmp/context'
say left sh -c 'ls --ignore=@seccomp /run/xebec; find /sys/fs/cgroup -name "buildah*"'
"#,
    );
    assert_told(
        &output,
        &[
            "write: 0; 0",
            "read: built; 0",
            "fail: ; 7",
            "terminal: /dev/pts/0; 0",
            "build: *; 0",
            "podman-build: *; 0",
            "result: made; 0",
            "refuse: *; 1",
            "left: ; 0",
        ],
    );
}

/// Debian packs docker's own command apart; its API is as good.
const DOCKER: &str = r#"
dockerd > /tmp/dockerd.log 2>&1 & dockerd=$!
api() {
    method=$1; path=$2; shift 2
    curl -s --max-time 60 --unix-socket /run/docker.sock -X $method \
        -H 'Content-Type: application/json' "$@" http://docker/v1.44$path
}
run() {
    name=$1; command=$2; shift 2
    config="{\"Image\":\"busybox\",\"Cmd\":$command,\"HostConfig\":{\"NetworkMode\":\"none\",\"Runtime\":\"xebec\"$*}}"
    api POST "/containers/create?name=$name" -d "$config" >/dev/null; api POST /containers/$name/start
}
state() { api GET /containers/$1/json | jq -r '"\(.State.Status) \(.State.ExitCode)"'; }
execute() {
    config="{\"AttachStdout\":true,\"AttachStderr\":true,\"Tty\":true,\"Cmd\":$2}"
    id=$(api POST /containers/$1/exec -d "$config" | jq -r .Id)
    api POST /exec/$id/start -d '{"Tty":true}'; api GET /exec/$id/json | jq .ExitCode
}
until api GET /_ping >/dev/null; do sleep 0.1; done
skopeo copy -q oci:/srv/corpus/busybox:busybox docker-daemon:busybox:latest
"#;

#[test]
fn dockerd_drives_us_through_its_shim() {
    let host = host_of_clients();
    let story = r#"
say runtimes sh -c 'curl -s --unix-socket /run/docker.sock http://d/info | jq -r .DefaultRuntime,.Runtimes.xebec.path'
run dock '["sh","-c","echo hello; trap \"exit 4\" TERM; while :; do sleep 0.1; done"]'
say running state dock
say exec execute dock '["sh","-c","tty; exit 6"]'
say top sh -c 'curl -s --unix-socket /run/docker.sock http://d/containers/dock/top | jq -r ".Processes[0][-1]"'
say stats sh -c 'curl -s --unix-socket /run/docker.sock "http://d/containers/dock/stats?stream=false" | jq -r .name'
api POST /containers/dock/pause; say paused state dock
api POST /containers/dock/unpause; say unpaused state dock
say update api POST /containers/dock/update -d '{"RestartPolicy":{"Name":"no"}}'
api POST '/containers/dock/stop?t=30'; say stopped state dock
say logs sh -c 'curl -s --unix-socket /run/docker.sock "http://d/containers/dock/logs?stdout=1" | tr -dc a-z'
api POST /containers/dock/start; api POST '/containers/dock/kill?signal=KILL'; api POST /containers/dock/wait >/dev/null
say killed state dock
run bad '["nosuch"]' >/dev/null; say bad state bad
say why sh -c 'curl -s --unix-socket /run/docker.sock http://d/containers/bad/json | jq -r .State.Error'
run big '["sleep","1000"]' ',"Privileged":true,"Init":true,"PidMode":"host","Tmpfs":{"/scratch":"size=1m"}'
say big execute big '["sh","-c","mount | grep -c /scratch"]'
for name in dock bad big; do api DELETE "/containers/$name?force=1"; done
say left sh -c 'ls --ignore=@seccomp /run/docker/runtime-runc/moby; find /sys/fs/cgroup/docker -mindepth 1 -type d'
kill $dockerd; wait
"#;
    let output = tell(&host, &format!("{DOCKER}{story}"));
    assert_told(
        &output,
        &[
            "runtimes: xebec /usr/local/bin/xebec; 0",
            "running: running 0; 0",
            "exec: /dev/pts/0 6; 0",
            "top: sh -c *; 0",
            "stats: /dock; 0",
            "paused: paused 0; 0",
            "unpaused: running 0; 0",
            "stopped: exited 4; 0",
            "logs: hello; 0",
            "killed: exited 137; 0",
            "bad: created 127; 0",
            "why: *exec: \"nosuch\": executable file not found in $PATH; 0",
            "big: 1 0; 0",
            "left: ; 0",
        ],
    );
}

#[test]
fn podman_checkpoints_and_restores_containers_with_their_files() {
    let host = host_of_clients();
    let output = tell(
        &host,
        r#"
count='i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.1; done'
podman run -d --name c --network none busybox sh -c "$count" >/dev/null
until podman exec c test -s /count 2>/dev/null; do sleep 0.1; done
podman exec c touch /tmp/mark
say checkpoint podman container checkpoint c
say ended podman inspect --format '{{.State.Status}} {{.State.Checkpointed}}' c
say restore podman container restore c
say runs podman inspect --format '{{.State.Status}} {{.State.Restored}}' c
before=$(podman exec c cat /count); sleep 1; after=$(podman exec c cat /count)
say counts test ${after:-0} -gt ${before:-0}
say export podman container checkpoint --export /srv/c.tar.zst --leave-running c
say goes-on podman inspect --format '{{.State.Status}}' c
podman rm -f -t 0 c >/dev/null
say import podman container restore --import /srv/c.tar.zst --name d
say mark podman exec d ls /tmp/mark
say remove podman rm -f -t 0 d
"#,
    );
    assert_told(
        &output,
        &[
            "checkpoint: c; 0",
            "ended: exited true; 0",
            "restore: c; 0",
            "runs: running true; 0",
            "counts: ; 0",
            "export: c; 0",
            "goes-on: running; 0",
            "import: *; 0",
            "mark: /tmp/mark; 0",
            "remove: d; 0",
        ],
    );
}
