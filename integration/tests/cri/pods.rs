//! What a kubelet asks of pods beyond running them: what their containers share, how they are
//! confined, and in which order they go.

use std::time::{Duration, Instant};

use integration::cri::Pod;
use integration::leftovers::Inventory;
use xebec_proto::cri::security_profile::ProfileType;
use xebec_proto::cri::{Mount, NamespaceMode, SecurityProfile};

use super::HANDLERS;
use super::node::{At, Node, pod_security, security};

/// The name under which containerd gives a handler every feature.
const HANDLER: &str = HANDLERS[1];
/// A profile that forbids one thing.
const NO_DIRECTORIES: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;

/// A network besides the one that hosts have.
const OTHER_NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [
  {"type": "bridge", "bridge": "xebec1", "isGateway": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/16"}]]}}]}"#;

#[test]
fn pods_share_and_are_confined_as_they_ask_and_go_in_any_order() {
    let node = Node::start();
    let (host, at) = (&node.host, node.under(HANDLER));
    host.write_file("/etc/seccomp.json", NO_DIRECTORIES)
        .unwrap();
    // It leaves compiled filters for whoever comes next.
    at.system_calls_are_filtered();
    let before = Inventory::of(host).unwrap();
    at.namespaces_are_shared_or_not();
    at.a_debug_container_sees_its_target();
    at.a_container_comes_again();
    at.what_runs_in_a_container_ends_in_time_and_tells_its_signal();
    let mount = "mkdir -p /srv/volume/below; mount -t tmpfs t /srv/volume/below";
    host.check_sh(mount).unwrap();
    at.read_only_reaches_as_deep_as_it_is_asked_to();
    host.check_sh("umount /srv/volume/below").unwrap();
    at.removed_whole();
    let left = before.wait_until_restored(host).unwrap();
    assert!(left.is_empty(), "left over: {left:#?}");
}

#[test]
fn a_network_that_is_configured_anew_is_the_next_pods_and_nothing_restarts() {
    let node = Node::start();
    let (host, at) = (&node.host, node.under(HANDLER));
    let old = at.pod_of("old", NamespaceMode::Container);
    let in_old = at.start(&old, "main", |_| {});
    assert_eq!(at.network(&in_old), "10.88");
    // Sorted before the one that is there; containerd watches the directory.
    let file = "/etc/cni/net.d/05-new.conflist";
    host.write_file(file, OTHER_NETWORK).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let (new, in_new) = loop {
        let new = at.pod_of("new", NamespaceMode::Container);
        let in_new = at.start(&new, "main", |_| {});
        let network = at.network(&in_new);
        if network == "10.99" {
            break (new, in_new);
        }
        assert!(
            Instant::now() < deadline,
            "still {network}\n{}",
            host.logs()
        );
        node.cri.stop_pod(&new).unwrap();
        node.cri.remove_pod(&new).unwrap();
    };
    assert_eq!(at.network(&in_old), "10.88");
    assert_eq!(at.run(&in_new, "true").1, 0);
    for pod in [old, new] {
        node.cri.stop_pod(&pod).unwrap();
        node.cri.remove_pod(&pod).unwrap();
    }
}

impl At<'_> {
    /// A pod whose containers share pids or do not.
    fn pod_of(&self, name: &str, pid: NamespaceMode) -> Pod {
        self.pod(name, |config| {
            let namespaces = &mut pod_security(config).namespace_options;
            namespaces.get_or_insert_default().pid = pid.into();
        })
    }

    /// The first half of the address that a container has.
    fn network(&self, id: &str) -> String {
        let (shown, _) = self.run(id, "ip -4 -o addr show eth0");
        let mut words = shown.split_whitespace().skip_while(|word| *word != "inet");
        let address = words.nth(1).unwrap_or_default();
        address.split('.').take(2).collect::<Vec<_>>().join(".")
    }

    fn namespaces(&self, id: &str) -> Vec<String> {
        let script = "cd /proc/self/ns; for n in ipc net uts mnt pid; do readlink $n; done";
        let (links, status) = self.run(id, script);
        assert_eq!(status, 0, "{links}");
        links.lines().map(str::to_owned).collect()
    }

    fn namespaces_are_shared_or_not(&self) {
        for mode in [NamespaceMode::Pod, NamespaceMode::Container] {
            let pod = self.pod_of("shared", mode);
            let [a, b] = ["a", "b"].map(|name| self.start(&pod, name, |_| {}));
            let (of_a, of_b) = (self.namespaces(&a), self.namespaces(&b));
            assert_eq!(of_a[..3], of_b[..3]);
            assert_ne!(of_a[3], of_b[3]);
            assert_eq!(of_a[4] == of_b[4], mode == NamespaceMode::Pod);
            self.run(&a, "echo shared > /dev/shm/x");
            assert_eq!(self.run(&b, "cat /dev/shm/x").0, "shared");
            self.node.cri.stop_pod(&pod).unwrap();
            self.gone(&pod);
        }
    }

    fn a_debug_container_sees_its_target(&self) {
        let pod = self.pod_of("debugged", NamespaceMode::Container);
        let target = self.start(&pod, "target", |_| {});
        let debug = self.start(&pod, "debug", |config| {
            let namespaces = security(config).namespace_options.as_mut().unwrap();
            namespaces.pid = NamespaceMode::Target.into();
            namespaces.target_id.clone_from(&target);
        });
        assert_eq!(self.namespaces(&debug)[4], self.namespaces(&target)[4]);
        let (seen, _) = self.run(&debug, "tr '\\0' ' ' < /proc/1/cmdline");
        assert_eq!(seen, "sleep 1000");
        // It goes by itself, and leaves its target alone.
        self.node.cri.stop(&debug, 0).unwrap();
        self.node.cri.remove(&debug).unwrap();
        assert_eq!(self.run(&target, "true").1, 0);
        self.gone(&pod);
    }

    fn a_container_comes_again(&self) {
        let pod = self.pod_of("restarted", NamespaceMode::Container);
        let mut ended = Vec::new();
        for attempt in 0..2 {
            let id = self.start(&pod, "main", |config| {
                config.metadata.as_mut().unwrap().attempt = attempt;
                config.command = ["sh", "-c", "exit 4"].map(str::to_owned).into();
            });
            assert_eq!(self.node.cri.wait_exit(&id).unwrap().exit_code, 4);
            ended.push(id);
        }
        self.node.cri.stop_pod(&pod).unwrap();
        for id in ended.iter().rev() {
            self.node.cri.remove(id).unwrap();
        }
        self.gone(&pod);
    }

    fn what_runs_in_a_container_ends_in_time_and_tells_its_signal(&self) {
        let pod = self.pod_of("entered", NamespaceMode::Container);
        let id = self.start(&pod, "main", |_| {});
        let slow = ["sh", "-c", "echo begun; exec sleep 4711"];
        let limit = Duration::from_secs(1);
        let late = self.node.cri.exec_within(&id, &slow, limit).unwrap_err();
        let late = late.to_string();
        assert!(late.contains("timeout 1s exceeded"), "{late}");
        let left = self.run(&id, "grep -l 471[1] /proc/[0-9]*/cmdline").0;
        assert_eq!(left, "");
        for (signal, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10), ("ABRT", 6)] {
            let script = format!("echo {signal}; kill -{signal} $$");
            let (said, code) = self.run(&id, &script);
            assert_eq!((&*said, code), (signal, 128 + number));
        }
        self.gone(&pod);
    }

    fn system_calls_are_filtered(&self) {
        let pod = self.pod_of("filtered", NamespaceMode::Container);
        for (kind, mode, mkdir) in [
            (ProfileType::RuntimeDefault, "2", 0),
            (ProfileType::Unconfined, "0", 0),
            (ProfileType::Localhost, "2", 1),
        ] {
            let id = self.start(&pod, kind.as_str_name(), |config| {
                security(config).seccomp = Some(SecurityProfile {
                    profile_type: kind.into(),
                    localhost_ref: match kind {
                        ProfileType::Localhost => "/etc/seccomp.json".to_owned(),
                        _ => String::new(),
                    },
                });
            });
            let (told, _) = self.run(&id, "awk '/^Seccomp:/ {print $2}' /proc/self/status");
            assert_eq!(told, mode, "{kind:?}");
            assert_eq!(self.run(&id, "mkdir /made").1, mkdir, "{kind:?}");
        }
        self.gone(&pod);
    }

    fn read_only_reaches_as_deep_as_it_is_asked_to(&self) {
        let pod = self.pod_of("mounted", NamespaceMode::Container);
        for (name, recursive) in [("deep", true), ("shallow", false)] {
            let id = self.start(&pod, name, |config| {
                config.mounts.push(Mount {
                    container_path: "/volume".into(),
                    host_path: "/srv/volume".into(),
                    readonly: true,
                    recursive_read_only: recursive,
                    ..Mount::default()
                });
            });
            assert_eq!(self.run(&id, "touch /volume/x").1, 1, "{name}");
            let expected = i32::from(recursive);
            assert_eq!(self.run(&id, "touch /volume/below/x").1, expected, "{name}");
        }
        self.gone(&pod);
    }

    /// Running containers go with their pod, without having been stopped.
    fn removed_whole(&self) {
        let pod = self.pod_of("whole", NamespaceMode::Pod);
        for name in ["a", "b"] {
            self.start(&pod, name, |_| {});
        }
        self.gone(&pod);
        assert_eq!(self.node.cri.containers().unwrap(), [""; 0]);
    }
}
