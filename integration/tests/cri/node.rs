//! A host with what a pod needs, and pods on it under one of our handlers' names.

use integration::cri::{Container, Cri, Pod};
use integration::hosts::{HostOptions, NativeHost, Service};
use xebec_proto::cri::{
    ContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, PodSandboxConfig,
};

/// A host whose containerd has an image for both handlers.
pub(crate) struct Node {
    pub(crate) host: NativeHost,
    pub(crate) cri: Cri,
    pub(crate) image: String,
}

/// The node under a handler's name.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) node: &'a Node,
    pub(crate) handler: &'a str,
}

impl Node {
    pub(crate) fn start() -> Self {
        let host = NativeHost::start(HostOptions::default()).expect("a native host starts");
        host.push("pause").unwrap();
        let image = host.push("busybox").unwrap();
        let cri = Cri::connect(&host.path(Service::CONTAINERD_SOCKET)).unwrap();
        for handler in super::HANDLERS {
            cri.pull(&image, handler).unwrap();
        }
        Self { host, cri, image }
    }

    pub(crate) fn under<'a>(&'a self, handler: &'a str) -> At<'a> {
        At {
            node: self,
            handler,
        }
    }
}

impl At<'_> {
    /// A pod, on whose configuration `change` has the last word.
    pub(crate) fn pod(&self, name: &str, change: impl FnOnce(&mut PodSandboxConfig)) -> Pod {
        let cri = &self.node.cri;
        cri.run_changed_pod(name, self.handler, change).unwrap()
    }

    /// Removes a pod with all that still runs in it.
    pub(crate) fn gone(&self, pod: &Pod) {
        self.node.cri.remove_pod(pod).unwrap();
    }

    /// A container that has been started, and sleeps.
    pub(crate) fn start(
        &self,
        pod: &Pod,
        name: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> String {
        self.start_with(pod, name, &["sleep", "1000"], change)
    }

    /// A container that has been started with this command.
    pub(crate) fn start_with(
        &self,
        pod: &Pod,
        name: &str,
        command: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> String {
        let container = Container {
            name,
            image: &self.node.image,
            command,
        };
        let id = self.node.cri.create_with(pod, &container, change).unwrap();
        self.node.cri.start(&id).unwrap();
        id
    }

    /// What a script prints in a container, and how it ends.
    pub(crate) fn run(&self, id: &str, script: &str) -> (String, i32) {
        let ran = self.node.cri.exec_sync(id, &["sh", "-c", script]).unwrap();
        let said = String::from_utf8(ran.stdout).unwrap();
        (said.trim().to_owned(), ran.exit_code)
    }
}

pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

pub(crate) fn linux(config: &mut PodSandboxConfig) -> &mut LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

pub(crate) fn pod_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    linux(config).security_context.get_or_insert_default()
}
