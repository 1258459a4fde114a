//! Hostile images and payloads against the runtime itself: its binary, its descriptors, the
//! processes it sends into a container. `docs/security.md` tells which attack is which.

use integration::bundle::Bundle;
use integration::hosts::NativeHost;
use serde_json::{Value, json};

use super::{HOOK_KINDS, host, ok, xebec};

const OVERWRITE: &str = include_str!("attackers/overwrite.pl");
const WATCH: &str = include_str!("attackers/watch.pl");

/// A bundle whose processes find the host's programs in /usr, perl among them.
fn armed<'a>(host: &'a NativeHost, path: &str, args: &[&str]) -> Bundle<'a> {
    let mut bundle = Bundle::create(host, path, args).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({
        "destination": "/usr", "source": "/usr", "options": ["rbind", "ro"]
    }));
    bundle.config["process"]["env"] = json!(["PATH=/bin:/usr/bin", "HOME=/"]);
    bundle.write().unwrap();
    host.check_sh(&format!(
        "ln -s usr/lib {path}/rootfs/lib; ln -s usr/lib64 {path}/rootfs/lib64"
    ))
    .unwrap();
    bundle
}

/// Starts a container in the background, with its output in a file of the host.
fn start(host: &NativeHost, bundle: &Bundle<'_>, id: &str, log: &str) {
    let path = bundle.path();
    host.check_sh(&format!(
        "xebec run --detach --bundle {path} {id} </dev/null >{log} 2>&1"
    ))
    .unwrap();
}

#[test]
fn the_programs_file_cannot_be_overwritten_from_inside() {
    let host = host();
    let attack = |name: &str, option: &str, all_capabilities: bool| {
        let program = ["perl", "/overwrite.pl", name];
        let mut bundle = armed(&host, &format!("/tmp/{name}"), &program);
        if let (true, Some(process)) = (all_capabilities, bundle.config["process"].as_object_mut())
        {
            process.remove("capabilities");
            bundle.write().unwrap();
        }
        let rootfs = format!("{}/rootfs", bundle.path());
        host.write_file(format!("{rootfs}/overwrite.pl"), OVERWRITE)
            .unwrap();
        host.check_sh(&format!(
            "printf '#!/proc/self/exe{option}\\n' > {rootfs}/evil; chmod 755 {rootfs}/evil; \
             mkfifo {rootfs}/fifo; \
             mkdir -p /root/bin; cp $(readlink -f $(which {name})) /root/bin/{name}"
        ))
        .unwrap();
        start(&host, &bundle, name, &format!("/tmp/{name}.log"));
    };
    // A program that enters a container without care is overwritten: the attack works. It keeps
    // its capabilities, and who has less could not look at it.
    attack("nsenter", "", true);
    let naive = "pid=$(xebec state nsenter | jq .pid); \
        for i in $(seq 20); do \
            timeout 5 /root/bin/nsenter -t $pid -m -p -n -i -u /evil >>/tmp/entered 2>&1 || :; \
            grep -q 'wrote' /tmp/nsenter.log && break; sleep 0.1; \
        done; cat /tmp/entered /tmp/nsenter.log; head -c 11 /root/bin/nsenter";
    let naive = host.check_sh(naive).unwrap();
    assert!(
        naive.contains("wrote") && naive.ends_with("overwritten"),
        "{naive}"
    );

    // The image makes it wait inside, where it can be looked at.
    attack("xebec", " --log=/fifo", false);
    let ours = "cd /root/bin; sha256sum xebec > /tmp/sum; \
        timeout 20 ./xebec exec xebec /evil >/dev/null 2>&1 || :; \
        for i in $(seq 50); do grep -q 'refused\\|wrote\\|busy' /tmp/xebec.log && break; sleep 0.1; done; \
        cat /tmp/xebec.log; sha256sum --check --quiet /tmp/sum; ./xebec --version";
    let ours = host.check_sh(ours).unwrap();
    assert!(
        ours.contains("holds") && ours.contains("refused: Read-only file system"),
        "{ours}"
    );
    assert!(
        !ours.contains("wrote") && ours.contains("xebec version"),
        "{ours}"
    );

    // Without the privilege for a read-only view it is a sealed copy.
    let sealed = "mkdir -p /srv/own; cp /root/bin/xebec /srv/own; chown 1000 /srv/own/xebec; \
        mkfifo -m 666 /srv/own/log; cd /; \
        setpriv --reuid 1000 --regid 1000 --clear-groups /srv/own/xebec --log /srv/own/log run x >/dev/null 2>&1 & \
        sleep 0.5; readlink /proc/$!/exe; timeout 10 cat /srv/own/log >/dev/null; wait $! || :";
    let sealed = host.check_sh(sealed).unwrap();
    assert!(sealed.starts_with("/memfd:xebec"), "{sealed}");
}

/// Lists a shell's descriptors from another process, so that listing adds none.
const LIST: &str = "ls /proc/$$/fd";

/// A list of one a line as words.
fn words(lines: &str) -> String {
    lines.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_payload_has_the_descriptors_that_were_asked_for_and_no_others() {
    let host = host();
    let script = format!("{LIST}; true");
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", &script]).unwrap();
    // The caller leaves its root directory, a file and a pipe open.
    let caller = |command: &str| {
        host.check_sh(&format!(
            "exec 3</etc/hostname 4</ 7</ 8</dev/zero; {command}"
        ))
        .map(|said| words(&said))
        .unwrap()
    };
    assert_eq!(caller("xebec run --bundle /tmp/b c"), "0 1 2");
    assert_eq!(
        caller("xebec run --preserve-fds 2 --bundle /tmp/b c"),
        "0 1 2 3 4"
    );
    let created = "xebec create --preserve-fds 1 --bundle /tmp/b c >/tmp/out 2>&1; xebec start c; \
        until xebec state c | grep -q stopped; do sleep 0.05; done; xebec delete c; cat /tmp/out";
    assert_eq!(caller(created), "0 1 2 3");

    // Closed streams are the null device, and nothing that the runtime has opened.
    let closed = "xebec run --bundle /tmp/closed c <&- >&- 2>&-; cat /tmp/closed/rootfs/streams";
    let streams = "exec > /streams; ls -l /proc/$$/fd; true";
    Bundle::create(&host, "/tmp/closed", &["sh", "-c", streams]).unwrap();
    let seen = caller(closed);
    assert_eq!(seen.matches("-> /dev/null").count(), 2, "{seen}");
    assert_eq!(seen.matches("-> ").count(), 3, "{seen}");

    // What is not open is not made up for by what the runtime opens.
    let gaps = caller("xebec run --preserve-fds 7 --bundle /tmp/b c");
    assert_eq!(gaps, "0 1 2 3 4 7 8");
    let none = host.check_sh("xebec run --preserve-fds 7 --bundle /tmp/b c");
    assert_eq!(words(&none.unwrap()), "0 1 2");
    let refused = caller(
        "ulimit -n 64; xebec run --preserve-fds 100 --bundle /tmp/b c 2>&1 || echo $?; \
         xebec list --quiet",
    );
    assert!(
        refused.contains("cannot preserve 100 descriptors") && refused.ends_with(" 1"),
        "{refused}"
    );

    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.write().unwrap();
    caller("xebec run --detach --bundle /tmp/b c </dev/null >/dev/null 2>&1");
    let inside = format!("{LIST}; ls /proc/1/fd; true");
    for (options, seen) in [("", "0 1 2 0 1 2"), ("--preserve-fds 2", "0 1 2 3 4 0 1 2")] {
        let exec = caller(&format!("xebec exec {options} c sh -c '{inside}'"));
        assert_eq!(exec, seen, "exec {options}");
    }
}

#[test]
fn hooks_have_three_descriptors() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["true"]).unwrap();
    let hook = |name: &str, place: &str, proc: &str| {
        let script = format!("exec > {place}/{name}.fds; ls {proc}/$$/fd; true");
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] }])
    };
    let outside = |name| hook(name, "/tmp/b/rootfs", "/proc");
    bundle.config["hooks"] = json!({
        "prestart": outside("prestart"), "createRuntime": outside("createRuntime"),
        "createContainer": hook("createContainer", "/tmp/b/rootfs", "/tmp/b/rootfs/proc"),
        "startContainer": hook("startContainer", "", "/proc"),
        "poststart": outside("poststart"), "poststop": outside("poststop"),
    });
    bundle.write().unwrap();
    host.check_sh("exec 5</ 6</etc/hostname; xebec run --preserve-fds 0 --bundle /tmp/b c")
        .unwrap();
    for kind in HOOK_KINDS {
        let seen = host.read_file(format!("/tmp/b/rootfs/{kind}.fds")).unwrap();
        assert_eq!(words(&seen), "0 1 2", "{kind}");
    }
}

#[test]
fn no_descriptor_of_the_host_leads_out_by_the_working_directory_or_the_program() {
    let host = host();
    let bundle = armed(&host, "/tmp/b", &["sleep", "1000"]);
    host.check_sh("touch /tmp/host-marker").unwrap();
    start(&host, &bundle, "c", "/dev/null");
    // A program that leaves its root directory open runs the host's programs inside: it works.
    let naive = "exec 9</; nsenter -t $(xebec state c | jq .pid) -m -p \
        /proc/self/fd/9/usr/bin/busybox ls -d /proc/1/root/tmp 2>&1";
    assert_eq!(host.check_sh(naive).unwrap(), "/proc/1/root/tmp\n");

    let script = r#"
exec 9</ 10</tmp 11</sys/fs/cgroup
for fd in $(seq 3 24); do
    for way in /proc/self/fd/$fd /proc/self/fd/$fd/.. /proc/self/fd/$fd/../../.. \
        /proc/thread-self/fd/$fd/../../..; do
        echo "exec in $way: $(xebec exec --cwd $way c sh -c '[ -e tmp/host-marker -o -e host-marker ] && echo OUT; echo ran in $(pwd)' 2>&1)"
        echo "exec of $way: $(xebec exec c $way/usr/bin/busybox echo OUT 2>&1)"
        cd /tmp/run
        jq ".process.cwd = \"$way\" | .process.args = [\"sh\", \"-c\", \"[ -e tmp/host-marker ] && echo OUT\"]" /tmp/b/config.json > config.json
        echo "run in $way: $(xebec run d 2>&1)"
        jq ".process.args = [\"$way/usr/bin/busybox\", \"echo\", \"OUT\"]" /tmp/b/config.json > config.json
        echo "run of $way: $(xebec run d 2>&1)"
    done
done"#;
    host.check_sh("mkdir /tmp/run && ln -s /tmp/b/rootfs /tmp/run/rootfs")
        .unwrap();
    let said = host.check(&["bash", "-ec", script]).unwrap();
    let refused = said
        .lines()
        .filter(|line| line.contains("level=error"))
        .count();
    assert!(refused > 300, "only {refused} were refused:\n{said}");
    assert!(!said.contains("OUT\n") && !said.contains(" OUT"), "{said}");
}

#[test]
fn nothing_of_the_host_is_seen_through_a_process_that_enters() {
    let host = host();
    let bundle = armed(&host, "/tmp/b", &["perl", "/watch.pl"]);
    host.write_file("/tmp/b/rootfs/watch.pl", WATCH).unwrap();
    host.check_sh("touch /etc/host-marker").unwrap();
    start(&host, &bundle, "c", "/tmp/log");
    let script = "for i in $(seq 150); do xebec exec c true; done; touch /tmp/b/rootfs/stop; \
        until grep -q hidden /tmp/log; do sleep 0.05; done; cat /tmp/log";
    let seen = host.check_sh(script).unwrap();
    let hidden = seen
        .trim()
        .strip_prefix("hidden ")
        .and_then(|n| n.parse::<u32>().ok());
    assert!(hidden.is_some_and(|times| times > 0), "{seen}");
}

#[test]
fn an_exec_gets_no_inheritable_capabilities_and_no_more_than_it_names() {
    let host = host();
    let bundle = Bundle::create(&host, "/tmp/b", &["sleep", "1000"]).unwrap();
    start(&host, &bundle, "c", "/dev/null");
    let sets = |options: &[&str]| {
        let mut argv = vec!["exec"];
        argv.extend(options);
        argv.extend(["c", "cat", "/proc/self/status"]);
        let status = ok(&host, &argv);
        ["CapInh:", "CapEff:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap_or_default().trim(), 16).unwrap()
        })
    };
    let net_raw = 1 << 13;
    let [inheritable, plain] = sets(&[]);
    assert_eq!((inheritable, plain & net_raw), (0, 0));
    // CVE-2022-29162: added capabilities were inheritable too.
    let [inheritable, added] = sets(&["--cap", "CAP_NET_RAW"]);
    assert_eq!((inheritable, added), (0, plain | net_raw));
}

#[test]
fn the_callers_terminal_is_not_the_payloads() {
    let host = host();
    // TIOCSTI types into the terminal that a process is attached to.
    let typing = r#"print ioctl(STDIN, 0x5412, my $c = "x") ? "typed\n" : "refused\n";
        print open(my $t, "<", "/dev/tty") ? "attached\n" : "detached\n";"#;
    let bundle = armed(&host, "/tmp/b", &["perl", "-e", typing]);
    let on_terminal = |command: &str| {
        let line = format!("script --quiet --return --command '{command}' /dev/null </dev/null");
        host.check_sh(&line).unwrap().replace('\r', "")
    };
    let naive = on_terminal("test -t 0 && (: < /dev/tty) && echo attached");
    assert!(naive.contains("attached"), "{naive}");
    let ran = on_terminal("xebec run --bundle /tmp/b c");
    assert!(ran.contains("refused\ndetached\n"), "{ran}");
    host.write_file("/tmp/typing.pl", typing).unwrap();
    host.check_sh("cp /tmp/typing.pl /tmp/b/rootfs/typing.pl")
        .unwrap();
    let mut bundle = bundle;
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.write().unwrap();
    start(&host, &bundle, "c", "/dev/null");
    let exec = on_terminal("xebec exec c perl /typing.pl");
    assert!(exec.contains("refused\ndetached\n"), "{exec}");
}

#[test]
fn a_passwd_file_of_any_kind_holds_nobody_up_and_leads_nowhere() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["sh", "-c", "echo home=$HOME"]).unwrap();
    bundle.config["process"]["env"] = json!(["PATH=/bin"]);
    bundle.write().unwrap();
    host.check_sh("echo root:x:0:0::/host-home: > /etc/passwd")
        .unwrap();
    for (image, home) in [
        ("echo root:x:0:0::/root: > etc/passwd", "/root"),
        (
            "mkdir usr; echo root:x:0:0::/moved: > usr/passwd; ln -s ../usr/passwd etc/passwd",
            "/moved",
        ),
        (":", "/"),
        ("mkfifo etc/passwd", "/"),
        ("mkdir etc/passwd", "/"),
        ("ln -s /dev/zero etc/passwd", "/"),
        ("ln -s passwd etc/passwd", "/"),
        (
            "ln -s ../../../../../etc/passwd2 etc/passwd; ln -s /tmp/nothing etc/passwd2",
            "/",
        ),
        ("ln -s /proc/self/fd/0 etc/passwd", "/"),
        ("truncate -s 1T etc/passwd", "/"),
        (
            "yes x | head -c 5000000 | tr -d '\\n' > etc/passwd; printf '\\nroot:x:0:0::/late:\\n' >> etc/passwd",
            "/late",
        ),
        ("head -c 100000 /dev/urandom > etc/passwd", "/"),
    ] {
        host.check_sh(&format!(
            "cd /tmp/b/rootfs; rm -rf etc usr; mkdir etc; {image}"
        ))
        .unwrap();
        let ran = host.sh("timeout 20 xebec run --bundle /tmp/b c").unwrap();
        assert_eq!(
            (ran.status, &*ran.stdout),
            (0, &*format!("home={home}\n")),
            "{image}: {ran:?}"
        );
    }
}

#[test]
fn an_environment_cannot_be_too_large_or_too_strange_to_be_told() {
    let host = host();
    let mut bundle = Bundle::create(&host, "/tmp/b", &["/bin/true"]).unwrap();
    let mut run = |program: &str, env: Value| {
        bundle.config["process"]["args"] = json!([program]);
        bundle.config["process"]["env"] = env;
        bundle.write().unwrap();
        xebec(&host, &["run", "--bundle", "/tmp/b", "c"]).unwrap()
    };
    let many: Vec<_> = (0..40_000)
        .map(|n| format!("PATH{n}={}", "x".repeat(100)))
        .collect();
    for env in [json!([format!("A={}", "x".repeat(200_000))]), json!(many)] {
        let refused = run("/bin/true", env);
        assert!(!refused.success(), "{refused:?}");
        assert!(
            refused
                .stderr
                .to_lowercase()
                .contains("argument list too long"),
            "{refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
    for (path, status) in [
        ("PATH=:.::/proc/self/fd/3:/proc/1/cwd:/bin", 0),
        ("PATH=", 1),
        ("PATH=bin", 1),
    ] {
        let ran = run("true", json!([path]));
        assert_eq!(ran.status, status, "{path}: {ran:?}");
    }
    assert_eq!(ok(&host, &["list", "--quiet"]), "");
}
