//! What the process of a container is given: attributes, limits, processors, devices.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::{assert_restored, host, ok, settled, xebec};

/// Runs the same bundle with a runtime and gives what it printed.
#[track_caller]
fn output_of(host: &NativeHost, runtime: &str, bundle: &Bundle<'_>) -> String {
    let output = host
        .run(&[runtime, "run", "--bundle", bundle.path(), "compared"])
        .expect("the runtime runs");
    assert!(output.success(), "{runtime}: {output:?}");
    output.stdout
}

/// Prints whatever can be seen of a process's attributes from inside.
const ATTRIBUTES: &str = "
umask; id; busybox uname -m; busybox ionice
busybox awk '{print $18, $19, $41}' /proc/$$/stat
cat /proc/self/oom_score_adj /proc/sys/kernel/hostname /proc/sys/kernel/domainname
cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl /proc/self/limits
busybox grep -E '^(Cap|NoNewPrivs|Seccomp|Cpus_allowed_list|Groups)' /proc/self/status
busybox env | busybox sort; pwd; busybox ulimit -n 2>/dev/null
ls -l /proc/self/fd | busybox awk '{print $9}'
busybox awk '/_ses.compared/ {print $4, $5, $9}' /proc/keys | busybox sort -u
";

#[test]
fn a_process_has_the_attributes_that_runc_gives_it() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", ATTRIBUTES]).unwrap();
    host.check_sh("echo 'app:x:1234:5:An App:/srv/app:/bin/sh' > /tmp/b/rootfs/etc/passwd")
        .unwrap();
    // The session keyring is to be seen.
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["hostname"] = json!("inside");
    bundle.config["domainname"] = json!("example.test");
    bundle.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    bundle.config["linux"]["sysctl"] =
        json!({ "kernel.msgmax": "4096", "net.ipv4.ip_default_ttl": "33" });
    let process = &mut bundle.config["process"];
    process["user"] = json!({ "uid": 1234, "gid": 5, "umask": 0o027, "additionalGids": [7, 8, 5] });
    process["cwd"] = json!("/made/for/it");
    process["oomScoreAdj"] = json!(321);
    process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
    process["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 7,
        "flags": ["SCHED_FLAG_RESET_ON_FORK"] });
    process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 99, "hard": 199 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
    process["env"] = json!(["PATH=/bin", "A=1", "B=2", "A=3"]);
    let sets = json!(["CAP_KILL", "CAP_NET_RAW"]);
    process["capabilities"] = json!({ "bounding": sets, "permitted": sets, "effective": [],
        "inheritable": sets, "ambient": ["CAP_KILL"] });
    process["noNewPrivileges"] = json!(false);
    bundle.write().unwrap();
    let ours = output_of(&host, "xebec", &bundle);
    for part in [
        "0027",
        "i686",
        "uid=1234",
        "321\ninside\nexample.test\n4096\n33",
        "27 7 3\n",
        "best-effort: prio 6",
        "A=3",
        "HOME=/srv/app",
        "/made/for/it",
        "CapAmb:\t0000000000000020",
        "perm 3f1b0000 _ses.compared",
    ] {
        assert!(ours.contains(part), "{part} is missing in\n{ours}");
    }
    assert_eq!(ours, output_of(&host, "runc", &bundle));

    // Nothing but the essentials, and no right to gain any.
    bundle.config["process"] = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 },
        "args": ["sh", "-c", ATTRIBUTES], "env": ["PATH=/bin"], "noNewPrivileges": true,
        "capabilities": {} });
    bundle.config["linux"]["personality"] = Value::Null;
    bundle.write().unwrap();
    let ours = output_of(&host, "xebec", &bundle);
    assert!(ours.contains("NoNewPrivs:\t1"), "{ours}");
    assert_eq!(ours, output_of(&host, "runc", &bundle));
}

#[test]
fn exec_changes_capabilities_and_user_as_in_runc() {
    let host = host();
    Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    let show = "busybox grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status; id; pwd; busybox env | busybox sort";
    let answers = |runtime: &str| {
        let run = format!("{runtime} run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1");
        host.check_sh(&run).unwrap();
        let answers = [
            &["--cap", "CAP_SYS_ADMIN", "--cap", "CAP_KILL"][..],
            &["--cap", "CAP_TO_COME"],
            &["--cap", "cap_chown"],
            &["--no-new-privs"],
            &[
                "--user",
                "7:8",
                "--additional-gids",
                "9",
                "--cwd",
                "/tmp",
                "--env",
                "A=b",
            ],
            &["--user", "1234"],
        ]
        .map(|options| {
            let argv = [&[runtime, "exec"], options, &["c", "sh", "-c", show]].concat();
            let output = host.run(&argv).unwrap();
            let warnings = output.stderr.split("msg=").nth(1).map(str::to_owned);
            // runc names a group twice that is given once.
            (
                output.status,
                output.stdout.replace("9,9", "9").replace("9 9", "9"),
                warnings,
            )
        });
        host.check(&[runtime, "delete", "--force", "c"]).unwrap();
        answers
    };
    let ours = answers("xebec");
    assert!(ours[0].1.contains("CapEff:\t0000000020200420"), "{ours:#?}");
    let warning = ours[1].2.as_deref().unwrap_or_default();
    assert!(
        warning.contains("unavailable capabilities: [CAP_TO_COME]"),
        "{ours:#?}"
    );
    assert_eq!(ours, answers("runc"));
}

/// What is changed in config.json, the field that the error has to name, and whether runc refuses
/// it as well (what its own version knows).
const REFUSED: &[(&str, &str, bool)] = &[
    (".process.args=[]", "process.args", true),
    (".process.args=[\"a\\u0000b\"]", "process.args[0]", true),
    (".process.cwd=\"relative\"", "process.cwd", true),
    (".process.env=[\"A=1\",\"B\"]", "process.env[1]", true),
    (".process.env=[\"=1\"]", "process.env[0]", true),
    (".process.user.uid=4294967295", "process.user.uid", true),
    (".process.oomScoreAdj=1001", "process.oomScoreAdj", true),
    (
        ".process.rlimits=[{type:\"RLIMIT_NO\",soft:1,hard:1}]",
        "process.rlimits[0].type",
        true,
    ),
    (
        ".process.rlimits=[{type:\"RLIMIT_CORE\",soft:2,hard:1}]",
        "process.rlimits[0]",
        true,
    ),
    (
        ".process.rlimits=[{type:\"RLIMIT_CORE\",soft:1,hard:1},{type:\"RLIMIT_CORE\",soft:1,hard:1}]",
        "process.rlimits[1]",
        false,
    ),
    (
        ".process.scheduler={policy:\"SCHED_OTHER\",nice:20}",
        "process.scheduler.nice",
        true,
    ),
    (
        ".process.scheduler={policy:\"SCHED_OTHER\",priority:1}",
        "process.scheduler.priority",
        true,
    ),
    (
        ".process.scheduler={policy:\"SCHED_OTHER\",period:1}",
        "process.scheduler",
        true,
    ),
    (
        ".process.scheduler={policy:\"SCHED_NONE\"}",
        "process.scheduler.policy",
        true,
    ),
    (
        ".process.ioPriority={class:\"IOPRIO_CLASS_BE\",priority:8}",
        "process.ioPriority",
        true,
    ),
    (
        ".process.ioPriority={class:\"IOPRIO_CLASS_NO\",priority:1}",
        "process.ioPriority",
        true,
    ),
    (
        ".process.execCPUAffinity={initial:\"x\"}",
        "process.execCPUAffinity.initial",
        true,
    ),
    (
        ".process.selinuxLabel=\"a:b:c:s0\"",
        "selinux label is specified",
        true,
    ),
    (
        ".process.apparmorProfile=\"none-such\"",
        "apparmor failed to apply profile",
        true,
    ),
    (
        ".linux.personality={domain:\"BSD\"}",
        "linux.personality.domain",
        true,
    ),
    (
        ".linux.memoryPolicy={mode:\"BIND\",nodes:\"0\"}",
        "linux.memoryPolicy.mode: invalid memory policy mode",
        false,
    ),
    (
        ".linux.memoryPolicy={mode:\"MPOL_BIND\",nodes:\"0-9876543210\"}",
        "linux.memoryPolicy.nodes: invalid memory policy nodes",
        false,
    ),
    (
        ".linux.memoryPolicy={mode:\"MPOL_BIND\"}",
        "linux.memoryPolicy.nodes",
        false,
    ),
    (
        ".linux.memoryPolicy={mode:\"MPOL_LOCAL\",nodes:\"0\"}",
        "linux.memoryPolicy.nodes",
        false,
    ),
    (
        ".linux.intelRdt={closID:\"a/b\"}",
        "linux.intelRdt.closID",
        true,
    ),
    (
        ".linux.intelRdt={l3CacheSchema:\"L3:0=f\"}",
        "intelRdt.l3CacheSchema",
        true,
    ),
    (
        ".linux.intelRdt={memBwSchema:\"MB:0=70\"}",
        "intelRdt.memBwSchema",
        true,
    ),
    (
        ".linux.intelRdt={enableMonitoring:true}",
        "intelRdt is specified in config",
        false,
    ),
    (
        ".linux.netDevices={\"a/b\":{}}",
        "linux.netDevices[a/b]",
        false,
    ),
    (
        ".linux.netDevices={\"none\":{}}",
        "linux.netDevices[none]",
        false,
    ),
    (
        ".linux.sysctl={\"vm.swappiness\":\"1\"}",
        "linux.sysctl[vm.swappiness]",
        true,
    ),
    (
        ".linux.sysctl={\"kernel.hostname\":\"h\"}",
        "linux.sysctl[kernel.hostname]",
        true,
    ),
];

#[test]
fn what_cannot_be_done_is_refused_by_its_field_and_leaves_nothing() {
    let host = host();
    let good = Bundle::create(&host, "/tmp/good", &["true"]).unwrap();
    host.check_sh("cp -a /tmp/good /tmp/bad").unwrap();
    let before = settled(&host, &good);
    for (change, field, runc_too) in REFUSED {
        let edit = format!("jq '{change}' /tmp/good/config.json > /tmp/bad/config.json");
        host.check_sh(&edit).unwrap();
        let ours = xebec(&host, &["run", "--bundle", "/tmp/bad", "bad"]).unwrap();
        assert_eq!(ours.status, 1, "{change}: {ours:?}");
        assert!(ours.stderr.contains(field), "{change}: {}", ours.stderr);
        if *runc_too {
            let runcs = host
                .run(&["runc", "run", "--bundle", "/tmp/bad", "bad"])
                .unwrap();
            assert_eq!(runcs.status, 1, "{change}: {runcs:?}");
        }
    }
    host.check_sh("jq '.process.capabilities.bounding += [\"CAP_NEW\"] |
        .linux.memoryPolicy={} | .linux.personality={domain:\"LINUX\",flags:[\"F\"]}' /tmp/good/config.json > /tmp/bad/config.json")
        .unwrap();
    let warned = xebec(&host, &["run", "--bundle", "/tmp/bad", "warned"]).unwrap();
    assert!(warned.success(), "{warned:?}");
    for part in [
        "ignoring unknown or unavailable capabilities: [CAP_NEW]",
        "ignoring unsupported personality flags: [F]",
    ] {
        assert!(warned.stderr.contains(part), "{part}: {}", warned.stderr);
    }
    // The bundles are the test's own, and not all of it was there when the inventory was made.
    host.check_sh("cp /tmp/good/config.json /tmp/bad/config.json")
        .unwrap();
    assert_restored(&host, &before);
}

#[test]
fn processors_and_memory_are_those_of_the_specification() {
    let host = host();
    let show = "cat /proc/self/status | busybox grep Cpus_allowed_list; busybox sed -n 1p /proc/self/numa_maps";
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", show]).unwrap();
    let all = host.check_sh("cat /sys/devices/system/cpu/online").unwrap();
    let all = all.trim();
    bundle.config["process"]["execCPUAffinity"] = json!({ "initial": "1", "final": "0" });
    bundle.config["linux"]["memoryPolicy"] =
        json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] });
    bundle.write().unwrap();

    // The runtime's own processors are not init's, and execCPUAffinity is not for init.
    let init = host
        .check_sh("taskset -c 1 xebec run --bundle /tmp/b init")
        .unwrap();
    assert!(
        init.contains(&format!("Cpus_allowed_list:\t{all}\n")),
        "{init}"
    );
    assert!(init.contains("interleave=static:0"), "{init}");

    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.write().unwrap();
    host.check_sh("xebec run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1")
        .unwrap();
    let configured = ok(&host, &["exec", "c", "sh", "-c", show]);
    assert!(
        configured.contains("Cpus_allowed_list:\t0\n"),
        "{configured}"
    );
    assert!(configured.contains("interleave=static:0"), "{configured}");

    let process = |affinity: Value| {
        json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"],
            "args": ["sh", "-c", show], "execCPUAffinity": affinity })
    };
    for (affinity, expected) in [
        (json!({ "initial": "1", "final": "" }), "1"),
        (json!({ "final": "0-1" }), "0-1"),
        (json!({}), all),
    ] {
        host.write_file("/tmp/p.json", process(affinity.clone()).to_string())
            .unwrap();
        let output = ok(&host, &["exec", "--process", "/tmp/p.json", "c"]);
        let line = format!("Cpus_allowed_list:\t{expected}\n");
        assert!(output.contains(&line), "{affinity}: {output}");
    }
    ok(&host, &["delete", "--force", "c"]);
}

/// A pair of devices, one of them with addresses and up.
const DEVICES: &str = "ip link add xv0 type veth peer name xv1
ip addr add 10.9.8.7/24 dev xv0
ip addr add 2001:db8::7/64 dev xv0 nodad
ip addr add 10.1.1.1/32 dev xv0 scope link
ip link set xv0 up; ip link set xv1 up";

#[test]
fn network_devices_move_into_the_container_with_their_addresses() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["busybox", "ip", "addr"]).unwrap();
    bundle.config["linux"]["netDevices"] = json!({ "xv0": { "name": "ctr%d" } });
    let check = |output: &str, name: &str| {
        for part in [name, "10.9.8.7/24", "2001:db8::7/64", ",UP"] {
            assert!(output.contains(part), "{part} is missing in\n{output}");
        }
        assert!(!output.contains("10.1.1.1"), "{output}");
    };

    // A creation that fails gives the device back as it was.
    host.check_sh(DEVICES).unwrap();
    bundle.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] });
    bundle.write().unwrap();
    let failed = xebec(&host, &["run", "--bundle", "/tmp/b", "failed"]).unwrap();
    assert!(failed.stderr.contains("createRuntime"), "{failed:?}");
    check(&host.check_sh("ip addr show xv0").unwrap(), "xv0");

    bundle.config["hooks"] = Value::Null;
    bundle.write().unwrap();
    check(&ok(&host, &["run", "--bundle", "/tmp/b", "new"]), "ctr0");
    let left = host.sh("ip link show xv0").unwrap();
    assert!(!left.success(), "{left:?}");

    // Into a namespace that exists already; there the name is taken the second time.
    host.check_sh("ip netns add there; ip link del xv1 2>/dev/null || true")
        .unwrap();
    host.check_sh(DEVICES).unwrap();
    bundle.config["linux"]["netDevices"] = json!({ "xv0": { "name": "eth7" } });
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "network" {
            namespace["path"] = json!("/run/netns/there");
        }
    }
    bundle.write().unwrap();
    check(&ok(&host, &["run", "--bundle", "/tmp/b", "joined"]), "eth7");
    host.check_sh("ip link add xv2 type veth peer name xv3")
        .unwrap();
    bundle.config["linux"]["netDevices"] = json!({ "xv2": { "name": "eth7" } });
    bundle.write().unwrap();
    let taken = xebec(&host, &["run", "--bundle", "/tmp/b", "taken"]).unwrap();
    assert!(taken.stderr.contains("linux.netDevices[xv2]"), "{taken:?}");
    host.check_sh("ip link show xv2").unwrap();
}

/// What a service manager's socket is told, word by word; the last comes with a barrier, which is
/// let go at once.
fn told(manager: &UnixDatagram) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    while words.last().is_none_or(|word| word != "BARRIER=1") {
        let mut datagram = [0; 256];
        let length = manager
            .recv(&mut datagram)
            .expect("a word within the deadline");
        words.push(
            String::from_utf8_lossy(&datagram[..length])
                .trim()
                .to_owned(),
        );
    }
    words
}

#[test]
fn a_service_manager_is_told_and_gives_as_with_runc() {
    let host = host();
    let script = "busybox env | busybox sort; ls -l /proc/self/fd/3 | busybox awk '{print $11}'
        ls -l $NOTIFY_SOCKET | busybox awk '{print $1}'; mount | busybox grep -c notify";
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", script]).unwrap();
    // The shell becomes the runtime, so that the pid is right. In the foreground runc goes on waiting
    // for a word that this program never says.
    let given = |runtime: &str| {
        let script = format!(
            "exec 3</etc/hostname; LISTEN_FDS=1 LISTEN_PID=$$ NOTIFY_SOCKET=/tmp/manager.sock \
             exec {runtime} run --bundle /tmp/b given 2>/dev/null"
        );
        host.run(&["timeout", "--kill-after", "1", "5", "sh", "-c", &script])
            .unwrap()
            .stdout
    };
    let _manager = UnixDatagram::bind(host.path("/tmp/manager.sock")).unwrap();
    let ours = given("xebec");
    for part in [
        "LISTEN_FDS=1",
        "LISTEN_PID=1",
        "NOTIFY_SOCKET=/run/notify/notify.sock",
        "srwxrwxrwx",
    ] {
        assert!(ours.contains(part), "{part} is missing in {ours}");
    }
    assert_eq!(ours, given("runc"));
    host.check_sh("rm /tmp/manager.sock; runc delete --force given")
        .unwrap();

    let manager = UnixDatagram::bind(host.path("/tmp/manager.sock")).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_mins(1)))
        .unwrap();
    // busybox cannot write to a datagram socket: the tool of the host does, from a copy.
    let ready = "cp -a /usr/bin/systemd-notify /tmp/b/rootfs/bin/ && \
                 for l in $(ldd /usr/bin/systemd-notify | grep -o '/[^ ]*'); do \
                 mkdir -p /tmp/b/rootfs/$(dirname $l) && cp -L $l /tmp/b/rootfs/$l; done";
    host.check_sh(ready).unwrap();
    bundle.config["process"]["args"] = json!([
        "sh",
        "-c",
        "systemd-notify --no-block STATUS=up; systemd-notify --no-block READY=1; exec sleep 1000"
    ]);
    bundle.write().unwrap();
    let mut seen = Vec::new();
    for runtime in ["xebec", "runc"] {
        for start in [
            "run --detach --bundle /tmp/b --pid-file /tmp/pid ready",
            "create --bundle /tmp/b --pid-file /tmp/pid ready </dev/null >/dev/null 2>&1; \
             NOTIFY_SOCKET=/tmp/manager.sock RUNTIME start ready",
        ] {
            let start = start.replace("RUNTIME", runtime);
            let child = host
                .spawn(&["sh", "-c", &format!(
                    "NOTIFY_SOCKET=/tmp/manager.sock {runtime} {start} </dev/null >/dev/null 2>&1"
                )])
                .unwrap();
            let words = told(&manager);
            assert!(
                child.wait_with_output().unwrap().status.success(),
                "{runtime} {start}"
            );
            let pid = host.read_file("/tmp/pid").unwrap();
            let words = words
                .join(" ")
                .replace(&format!("MAINPID={}", pid.trim()), "MAINPID=init");
            seen.push(words);
            host.check(&[runtime, "delete", "--force", "ready"])
                .unwrap();
        }
    }
    assert_eq!(seen, vec!["READY=1 MAINPID=init BARRIER=1"; 4]);
}
