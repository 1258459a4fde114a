//! The test hosts themselves: what they give to a test, and that they leave nothing.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::hosts::{HostOptions, NativeHost, Service};
use integration::paths::Paths;
use integration::proxy::Shape;
use integration::setup::rootfs;

fn bare() -> NativeHost {
    NativeHost::start(HostOptions::bare()).expect("a bare host starts")
}

#[test]
fn a_command_gets_its_own_world_and_gives_its_outputs_and_status() {
    let host = bare();
    let output = host
        .sh("hostname; pwd; readlink /proc/self; echo oops >&2; exit 3")
        .unwrap();
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(&lines[..2], ["xebec-host", "/root"]);
    assert!(lines[2].parse::<u32>().unwrap() < 100, "{lines:?}");
    assert_eq!((output.status, &*output.stderr), (3, "oops\n"));
    assert_eq!(host.run(&["no-such-command"]).unwrap().status, 127);
    let links = host.check(&["ls", "/sys/class/net"]).unwrap();
    assert!(!links.contains("eth"), "{links}");
}

#[test]
fn a_file_written_into_a_host_stays_in_it_even_behind_absolute_links() {
    let host = bare();
    host.check(&["ln", "-s", "/tmp", "/srv/link"]).unwrap();
    let name = format!("xebec-{}", std::process::id());
    let path = Path::new("/srv/link/below").join(&name);
    host.write_file(&path, "text").unwrap();
    assert_eq!(
        host.check_sh(&format!("cat /tmp/below/{name}")).unwrap(),
        "text"
    );
    assert!(!Path::new("/tmp/below").join(&name).exists());
}

#[test]
fn killing_a_spawned_child_kills_the_command_in_the_host() {
    let host = bare();
    let mut child = host.spawn(&["sleep", "4321"]).unwrap();
    let is_running = || host.run(&["pgrep", "-xf", "sleep 4321"]).unwrap().success();
    wait_until("the command runs", is_running);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the command is gone", || !is_running());
}

#[test]
fn two_hosts_do_not_see_each_other() {
    let (one, other) = (bare(), bare());
    one.check_sh("touch /etc/only-here /var/lib/only-here; mkdir /sys/fs/cgroup/only-here")
        .unwrap();
    let seen = other
        .sh("ls /etc/only-here /var/lib/only-here /sys/fs/cgroup/only-here")
        .unwrap();
    assert_eq!(seen.stdout, "");
    assert_ne!(
        one.check(&["readlink", "/proc/self/ns/net"]).unwrap(),
        other.check(&["readlink", "/proc/self/ns/net"]).unwrap()
    );
}

#[test]
fn registries_serve_the_same_images_plainly_with_tls_and_with_a_password() {
    let services = [
        Service::Registry,
        Service::TlsRegistry,
        Service::PrivateRegistry,
    ];
    let host = NativeHost::start(HostOptions::with(&services)).unwrap();
    host.push("busybox").unwrap();
    let tls = format!("https://{}/v2/_catalog", Service::TLS_REGISTRY);
    let list = host.check(&["curl", "-sS", &tls]).unwrap();
    assert_eq!(list.trim(), r#"{"repositories":["busybox"]}"#);
    let private = format!("https://{}/v2/_catalog", Service::PRIVATE_REGISTRY);
    let status = |user: &str| {
        let format = ["-o", "/dev/null", "-w", "%{http_code}"];
        let argv = [["curl", "-sS", "-u", user].as_slice(), &format, &[&private]].concat();
        host.check(&argv).unwrap()
    };
    let user = format!("{}:{}", Service::USER, Service::PASSWORD);
    assert_eq!(status(&user), "200");
    assert_eq!(status("xebec:wrong"), "401");
}

#[test]
fn a_service_can_be_killed_and_started_again() {
    let host = NativeHost::start(HostOptions::with(&[Service::Registry])).unwrap();
    let asks = || {
        host.run(&["curl", "-s", "http://127.0.0.1:5000/v2/"])
            .unwrap()
            .success()
    };
    assert!(asks());
    host.kill(Service::Registry).unwrap();
    assert!(!asks());
    host.start_services(&[Service::Registry]).unwrap();
    assert!(asks());
    host.stop(Service::Registry).unwrap();
    assert!(!asks());
}

#[test]
fn a_proxy_listens_in_the_hosts_network_and_not_in_the_machines() {
    let host = NativeHost::start(HostOptions::with(&[Service::Registry])).unwrap();
    let target = Service::REGISTRY.parse().unwrap();
    let proxy = host.proxy(target, Shape::new(10, 100.0)).unwrap();
    let url = format!("http://{}/v2/", proxy.address());
    assert_eq!(host.check(&["curl", "-sS", &url]).unwrap(), "{}");
    assert!(proxy.counters().down > 0);
    let machine = Command::new("curl").args(["-s", &url]).status().unwrap();
    assert!(!machine.success());
    proxy.cut();
    assert!(!host.run(&["curl", "-s", &url]).unwrap().success());
    proxy.restore();
    assert!(host.run(&["curl", "-s", &url]).unwrap().success());
}

/// Owner and keeper die together, so that nobody is left to clean up: the kernel ends the host,
/// and the next start sweeps up its files and cgroups.
#[test]
fn the_next_start_sweeps_up_after_a_keeper_that_was_killed_too() {
    let paths = Paths::find().unwrap();
    // A cache of its own, so that the hosts of other tests are not in sight.
    let cache = tempfile::tempdir_in(&paths.cache).unwrap();
    let root = rootfs::find(&paths).unwrap();
    symlink(&root, cache.path().join(root.file_name().unwrap())).unwrap();
    let start = |argv: &[&str]| {
        let mut command = Command::new(&paths.program);
        command
            .args(["host", "native", "--bare", "--"])
            .args(argv)
            .env("XEBEC_CACHE", cache.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.spawn().unwrap()
    };
    let hosts = cache.path().join("hosts");
    let scratch = || {
        let entries = std::fs::read_dir(&hosts).ok()?.flatten();
        let mut names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.find(|name| !name.starts_with('.'))
    };
    let mut owner = start(&["sleep", "5432"]);
    wait_until("the command runs", || find("sleep 5432").is_some());
    let name = scratch().expect("a running host has a scratch directory");
    let keeper = children(owner.id())
        .into_iter()
        .find(|pid| command_line(*pid).ends_with(" keep"))
        .expect("a host has a keeper");
    let killed = Command::new("kill")
        .args(["-9", &owner.id().to_string(), &keeper.to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    owner.wait().unwrap();
    wait_until("the host is dead", || find("sleep 5432").is_none());
    assert_eq!(scratch(), Some(name), "nobody was left to remove it");
    assert!(start(&["true"]).wait().unwrap().success());
    assert_eq!(scratch(), None);
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process with exactly this command line.
fn find(line: &str) -> Option<u32> {
    processes().find(|pid| command_line(*pid) == line)
}

fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    text.trim_end().to_owned()
}

fn children(parent: u32) -> Vec<u32> {
    let line = format!("PPid:\t{parent}");
    let is_child = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|it| it == line)
    };
    processes().filter(is_child).collect()
}
