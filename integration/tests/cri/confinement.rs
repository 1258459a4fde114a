//! What a pod's and a container's security context let and forbid, and what of the host they see.

use integration::leftovers::Inventory;
use xebec_proto::cri::{
    Capability, DnsConfig, Int64Value, Mount, MountPropagation, NamespaceMode, NamespaceOption,
};

use super::HANDLERS;
use super::node::{At, Node, linux, pod_security, security};

const EFFECTIVE: &str = "awk '/^CapEff/ {print $2}' /proc/self/status";

#[test]
fn pods_and_containers_are_let_and_forbidden_what_their_security_contexts_say() {
    let node = Node::start();
    let volume = "mkdir -p /srv/volume/below; mount --bind /srv/volume /srv/volume; \
                  mount --make-shared /srv/volume";
    node.host.check_sh(volume).unwrap();
    for handler in HANDLERS {
        let at = node.under(handler);
        let warm = at.pod("warm", |_| {});
        at.gone(&warm);
        let before = Inventory::of(&node.host).unwrap();
        at.users_and_capabilities_are_as_asked();
        at.paths_are_hidden_and_read_only();
        at.who_is_privileged_may_all();
        at.the_hosts_namespaces_are_seen_by_who_asks();
        at.a_pod_has_its_name_its_resolver_and_its_sysctls();
        at.mounts_come_and_go_as_far_as_is_asked();
        let left = before.wait_until_restored(&node.host).unwrap();
        assert!(left.is_empty(), "{handler} left over: {left:#?}");
    }
}

impl At<'_> {
    fn users_and_capabilities_are_as_asked(&self) {
        let pod = self.pod("users", |_| {});
        let id = self.start(&pod, "user", |config| {
            let context = security(config);
            context.run_as_user = Some(Int64Value { value: 1000 });
            context.run_as_group = Some(Int64Value { value: 2000 });
            context.supplemental_groups = vec![3000, 3001];
            context.no_new_privs = true;
        });
        let (ids, _) = self.run(&id, "id -u; id -g; id -G");
        assert_eq!(ids, "1000\n2000\n2000 3000 3001");
        let (rights, _) = self.run(
            &id,
            "grep -E '^(NoNewPrivs|CapEff)' /proc/self/status | tr '\\t\\n' '  '",
        );
        assert_eq!(rights, "CapEff: 0000000000000000 NoNewPrivs: 1");

        let id = self.start(&pod, "one", |config| {
            security(config).capabilities = Some(Capability {
                add_capabilities: vec!["NET_BIND_SERVICE".into()],
                drop_capabilities: vec!["ALL".into()],
                ..Capability::default()
            });
        });
        assert_eq!(self.run(&id, EFFECTIVE).0, "0000000000000400");
        assert_ne!(self.run(&id, "chown 5:5 /etc/hostname").1, 0);

        let id = self.start(&pod, "more", |config| {
            security(config).capabilities = Some(Capability {
                add_capabilities: vec!["SYS_ADMIN".into()],
                drop_capabilities: vec!["CHOWN".into()],
                ..Capability::default()
            });
        });
        assert_eq!(self.run(&id, "mkdir /m; mount -t tmpfs t /m").1, 0);
        assert_ne!(self.run(&id, "chown 5:5 /m").1, 0);
        self.gone(&pod);
    }

    fn paths_are_hidden_and_read_only(&self) {
        let pod = self.pod("paths", |_| {});
        let id = self.start(&pod, "main", |config| {
            let context = security(config);
            context.readonly_rootfs = true;
            context.masked_paths = vec!["/proc/version".into(), "/proc/fs".into()];
            context.readonly_paths = vec!["/proc/sys".into()];
        });
        let (said, code) = self.run(&id, "touch /made 2>&1");
        assert!(code != 0 && said.contains("Read-only"), "{said}");
        assert_eq!(self.run(&id, "cat /proc/version; ls /proc/fs").0, "");
        let (said, _) = self.run(&id, "(echo x > /proc/sys/kernel/domainname) 2>&1");
        assert!(said.contains("Read-only"), "{said}");
        self.gone(&pod);
    }

    fn who_is_privileged_may_all(&self) {
        let pod = self.pod("privileged", |config| {
            pod_security(config).privileged = true;
        });
        let id = self.start(&pod, "main", |config| {
            security(config).privileged = true;
        });
        // All that containerd itself has.
        let all = self.node.host.check_sh(EFFECTIVE).unwrap();
        assert_eq!(self.run(&id, EFFECTIVE).0, all.trim());
        assert_eq!(self.run(&id, "test -e /dev/fuse; echo $?").0, "0");
        let (said, code) = self.run(&id, "mkdir /m; mount -t tmpfs t /m 2>&1 && touch /m/made");
        assert_eq!(code, 0, "{said}");
        self.gone(&pod);
    }

    fn the_hosts_namespaces_are_seen_by_who_asks(&self) {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Node.into(),
            ipc: NamespaceMode::Node.into(),
            ..NamespaceOption::default()
        };
        let shared = namespaces.clone();
        let pod = self.pod("host", |config| {
            pod_security(config).namespace_options = Some(shared);
        });
        let links = "for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done";
        let outside = self.node.host.check_sh(links).unwrap();
        let inside = |id: &str| self.run(id, links).0;
        let same = |shown: &str| {
            let pairs = outside.lines().zip(shown.lines());
            pairs.map(|(a, b)| a == b).collect::<Vec<_>>()
        };
        let id = self.start(&pod, "main", |config| {
            security(config).namespace_options = Some(namespaces);
        });
        assert_eq!(same(&inside(&id)), [true, true, true, true, false]);
        let (seen, _) = self.run(&id, "grep -l containerd /proc/[0-9]*/comm | wc -l");
        assert_ne!(seen, "0");
        self.gone(&pod);

        let pod = self.pod("apart", |_| {});
        let id = self.start(&pod, "main", |_| {});
        assert_eq!(same(&inside(&id)), [false; 5]);
        self.gone(&pod);
    }

    fn a_pod_has_its_name_its_resolver_and_its_sysctls(&self) {
        let pod = self.pod("named", |config| {
            config.hostname = "named-pod".into();
            config.dns_config = Some(DnsConfig {
                servers: vec!["10.9.8.7".into()],
                searches: vec!["svc.cluster.test".into()],
                options: vec!["ndots:5".into()],
            });
            let sysctls = &mut linux(config).sysctls;
            sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
            sysctls.insert("net.ipv4.ip_local_port_range".into(), "1024 65000".into());
        });
        let id = self.start(&pod, "main", |_| {});
        assert_eq!(self.run(&id, "hostname").0, "named-pod");
        let (resolver, _) = self.run(&id, "cat /etc/resolv.conf");
        assert_eq!(
            resolver,
            "search svc.cluster.test\nnameserver 10.9.8.7\noptions ndots:5"
        );
        let sysctls = "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_local_port_range";
        assert_eq!(self.run(&id, sysctls).0, "1\n1024\t65000");
        self.gone(&pod);
    }

    fn mounts_come_and_go_as_far_as_is_asked(&self) {
        let pod = self.pod("mounts", |config| {
            pod_security(config).privileged = true;
        });
        let names = [
            ("private", MountPropagation::PropagationPrivate),
            ("from-host", MountPropagation::PropagationHostToContainer),
            ("both-ways", MountPropagation::PropagationBidirectional),
        ];
        let ids = names.map(|(name, propagation)| {
            self.start(&pod, name, |config| {
                security(config).privileged = true;
                config.mounts.push(Mount {
                    container_path: "/volume".into(),
                    host_path: "/srv/volume".into(),
                    propagation: propagation.into(),
                    ..Mount::default()
                });
            })
        });
        let host = |script: &str| self.node.host.check_sh(script).unwrap();
        let sees = |id: &String| self.run(id, "test -e /volume/below/mark").1 == 0;
        host("mount -t tmpfs t /srv/volume/below && touch /srv/volume/below/mark");
        assert_eq!(ids.each_ref().map(sees), [false, true, true]);
        host("umount /srv/volume/below");
        assert_eq!(ids.each_ref().map(sees), [false; 3]);

        for (id, reaches) in ids.iter().zip([false, false, true]) {
            let (said, code) = self.run(id, "mount -t tmpfs t /volume/below 2>&1");
            assert_eq!(code, 0, "{said}");
            let seen = host("grep -c ' /srv/volume/below ' /proc/mounts || true");
            assert_eq!(seen.trim() == "1", reaches, "{seen}");
        }
        host("umount /srv/volume/below");
        self.gone(&pod);
    }
}
