//! A client of the Kubernetes container runtime interface (CRI v1): the calls a kubelet makes to
//! containerd, enough to run a pod.
//!
//! Calls block; a small runtime inside the client drives the connection meanwhile.

mod streams;

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Runtime;
use tonic::transport::Channel;
use xebec_proto::cri::image_service_client::ImageServiceClient;
use xebec_proto::cri::runtime_service_client::RuntimeServiceClient;
use xebec_proto::cri::{
    AuthConfig, CheckpointContainerRequest, ContainerConfig, ContainerFilter, ContainerMetadata,
    ContainerState, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
    ExecSyncRequest, ExecSyncResponse, IdMapping, ImageSpec, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListContainersRequest, ListPodSandboxRequest, Mount,
    NamespaceMode, NamespaceOption, PodSandbox, PodSandboxConfig, PodSandboxMetadata,
    PullImageRequest, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    RuntimeHandler, StartContainerRequest, StatusRequest, StopContainerRequest,
    StopPodSandboxRequest, UserNamespace,
};

use crate::error::{Error, Result};
use crate::grpc;

pub use streams::{Ended, Streams};

/// How long any call may take; pulls over a slow link are the longest.
const DEADLINE: Duration = Duration::from_mins(2);

/// A connection to a CRI socket.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// A pod's sandbox and the configuration it was made with, which containerd wants to see again
/// for each container.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    config: PodSandboxConfig,
}

impl Pod {
    /// The name that it was run by.
    pub fn name(&self) -> &str {
        self.config
            .metadata
            .as_ref()
            .map_or("", |metadata| &metadata.name)
    }

    /// Namespaces of the pod, which are those of its containers.
    fn namespaces(&self) -> Option<NamespaceOption> {
        let security = self.config.linux.as_ref()?.security_context.as_ref()?;
        security.namespace_options.clone()
    }
}

/// A container to create in a pod.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    /// Its name in the pod.
    pub name: &'a str,
    /// The image's reference, which must have been pulled.
    pub image: &'a str,
    /// What to run instead of the image's command.
    pub command: &'a [&'a str],
}

impl Cri {
    /// Connects to a socket such as /run/containerd/containerd.sock.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Error::system("start the CRI client's runtime"))?;
        let channel = runtime.block_on(grpc::connect(socket, DEADLINE))?;
        Ok(Self { runtime, channel })
    }

    fn runtime_service(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    /// Waits for a call and names it in its error.
    fn call<T>(
        &self,
        name: &str,
        future: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        self.runtime
            .block_on(future)
            .map(tonic::Response::into_inner)
            .map_err(|status| {
                Error::invalid(
                    format!("CRI {name}"),
                    format!("{}: {}", status.code(), status.message()),
                )
            })
    }

    /// The runtime handlers containerd knows, with the features their shims report.
    pub fn handlers(&self) -> Result<Vec<RuntimeHandler>> {
        let mut client = self.runtime_service();
        let request = StatusRequest { verbose: false };
        Ok(self
            .call("Status", client.status(request))?
            .runtime_handlers)
    }

    /// Pulls an image for the snapshotter of `handler` and returns its id.
    pub fn pull(&self, image: &str, handler: &str) -> Result<String> {
        self.pull_with(None, image, handler)
    }

    /// The same with a user's name and password, as of a pod's pull secret.
    pub fn pull_as(
        &self,
        (user, password): (&str, &str),
        image: &str,
        handler: &str,
    ) -> Result<String> {
        let auth = AuthConfig {
            username: user.to_owned(),
            password: password.to_owned(),
            ..AuthConfig::default()
        };
        self.pull_with(Some(auth), image, handler)
    }

    fn pull_with(&self, auth: Option<AuthConfig>, image: &str, handler: &str) -> Result<String> {
        let mut client = ImageServiceClient::new(self.channel.clone());
        let image = ImageSpec {
            image: image.to_owned(),
            runtime_handler: handler.to_owned(),
            ..ImageSpec::default()
        };
        let request = PullImageRequest {
            image: Some(image),
            auth,
            ..PullImageRequest::default()
        };
        Ok(self
            .call("PullImage", client.pull_image(request))?
            .image_ref)
    }

    /// Starts a pod that shares the host's network, under a runtime handler.
    pub fn run_pod(&self, name: &str, handler: &str) -> Result<Pod> {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            ..NamespaceOption::default()
        };
        self.run_pod_in(namespaces, name, handler, "")
    }

    /// The same below a cgroup: a path, or a slice where the handler leaves cgroups to systemd.
    pub fn run_pod_below(&self, name: &str, handler: &str, cgroup: &str) -> Result<Pod> {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            ..NamespaceOption::default()
        };
        self.run_pod_in(namespaces, name, handler, cgroup)
    }

    /// Starts a pod whose users are `count` ids of the host from `first` on (`hostUsers: false`),
    /// with a network of its own.
    pub fn run_mapped_pod(
        &self,
        name: &str,
        handler: &str,
        (first, count): (u32, u32),
    ) -> Result<Pod> {
        let ids = IdMapping {
            host_id: first,
            container_id: 0,
            length: count,
        };
        let users = UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![ids],
            gids: vec![ids],
        };
        let namespaces = NamespaceOption {
            userns_options: Some(users),
            ..NamespaceOption::default()
        };
        self.run_pod_in(namespaces, name, handler, "")
    }

    /// Starts a pod with the namespaces that it asks for.
    pub fn run_pod_with(
        &self,
        namespaces: NamespaceOption,
        name: &str,
        handler: &str,
    ) -> Result<Pod> {
        self.run_pod_in(namespaces, name, handler, "")
    }

    /// Starts a pod with these annotations, whose containers have pids of their own, as a kubelet's.
    pub fn run_annotated_pod(
        &self,
        name: &str,
        handler: &str,
        annotations: &[(&str, &str)],
    ) -> Result<Pod> {
        self.run_changed_pod(name, handler, |config| {
            let all = annotations.iter();
            config
                .annotations
                .extend(all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        })
    }

    /// Starts a pod whose containers have pids of their own, on whose configuration `change` has
    /// the last word.
    pub fn run_changed_pod(
        &self,
        name: &str,
        handler: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod> {
        let namespaces = NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        let mut config = pod_config(name, namespaces, "");
        change(&mut config);
        self.run_configured_pod(config, handler)
    }

    fn run_pod_in(
        &self,
        namespaces: NamespaceOption,
        name: &str,
        handler: &str,
        cgroup: &str,
    ) -> Result<Pod> {
        self.run_configured_pod(pod_config(name, namespaces, cgroup), handler)
    }

    fn run_configured_pod(&self, config: PodSandboxConfig, handler: &str) -> Result<Pod> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let mut client = self.runtime_service();
        let id = self
            .call("RunPodSandbox", client.run_pod_sandbox(request))?
            .pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// Creates a container and returns its id.
    pub fn create(&self, pod: &Pod, container: &Container<'_>) -> Result<String> {
        self.create_limited(pod, container, 0)
    }

    /// Creates a container that sees another image, read-only, at a path; returns its id.
    pub fn create_with_image(
        &self,
        pod: &Pod,
        container: &Container<'_>,
        image: &str,
        path: &str,
    ) -> Result<String> {
        let volume = Mount {
            container_path: path.to_owned(),
            readonly: true,
            image: Some(ImageSpec {
                image: image.to_owned(),
                ..ImageSpec::default()
            }),
            ..Mount::default()
        };
        self.create_with(pod, container, |config| config.mounts.push(volume))
    }

    /// Creates a container with a limit of memory in bytes, 0 for none, and returns its id.
    pub fn create_limited(
        &self,
        pod: &Pod,
        container: &Container<'_>,
        memory: i64,
    ) -> Result<String> {
        self.create_as(pod, container_config(pod, container, memory))
    }

    /// Creates a container on whose configuration `change` has the last word; returns its id.
    pub fn create_with(
        &self,
        pod: &Pod,
        container: &Container<'_>,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String> {
        let mut config = container_config(pod, container, 0);
        change(&mut config);
        self.create_as(pod, config)
    }

    fn create_as(&self, pod: &Pod, config: ContainerConfig) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let mut client = self.runtime_service();
        Ok(self
            .call("CreateContainer", client.create_container(request))?
            .container_id)
    }

    /// Starts a created container.
    pub fn start(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        let mut client = self.runtime_service();
        self.call("StartContainer", client.start_container(request))
            .map(drop)
    }

    /// Runs a command in a container to its end.
    pub fn exec_sync(&self, id: &str, command: &[&str]) -> Result<ExecSyncResponse> {
        self.exec_within(id, command, DEADLINE)
    }

    /// Runs a command in a container to its end, which containerd brings about when that takes
    /// longer than `limit`, in whole seconds.
    pub fn exec_within(
        &self,
        id: &str,
        command: &[&str],
        limit: Duration,
    ) -> Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&s| s.to_owned()).collect(),
            timeout: limit.as_secs() as i64,
        };
        let mut client = self.runtime_service();
        self.call("ExecSync", client.exec_sync(request))
    }

    /// What containerd says of a container.
    pub fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let mut client = self.runtime_service();
        self.call("ContainerStatus", client.container_status(request))?
            .status
            .ok_or_else(|| Error::invalid("CRI ContainerStatus", "the answer holds no status"))
    }

    /// Waits until a container has ended and returns its status then.
    pub fn wait_exit(&self, id: &str) -> Result<ContainerStatus> {
        let end = std::time::Instant::now() + DEADLINE;
        loop {
            let status = self.container_status(id)?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            if std::time::Instant::now() > end {
                let reason = format!("still {:?} after {} s", status.state(), DEADLINE.as_secs());
                return Err(Error::invalid(format!("container {id}"), reason));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// All pods, in whatever state.
    pub fn pods(&self) -> Result<Vec<Pod>> {
        let mut client = self.runtime_service();
        let list = client.list_pod_sandbox(ListPodSandboxRequest::default());
        let pods = self.call("ListPodSandbox", list)?.items.into_iter();
        let pod = |pod: PodSandbox| Pod {
            id: pod.id,
            config: PodSandboxConfig {
                metadata: pod.metadata,
                ..PodSandboxConfig::default()
            },
        };
        Ok(pods.map(pod).collect())
    }

    /// Ids of all containers, in whatever state.
    pub fn containers(&self) -> Result<Vec<String>> {
        self.list_containers(ContainerFilter::default())
    }

    /// Ids of a pod's containers, in whatever state.
    pub fn containers_of(&self, pod: &Pod) -> Result<Vec<String>> {
        self.list_containers(ContainerFilter {
            pod_sandbox_id: pod.id.clone(),
            ..ContainerFilter::default()
        })
    }

    fn list_containers(&self, filter: ContainerFilter) -> Result<Vec<String>> {
        let mut client = self.runtime_service();
        let list = client.list_containers(ListContainersRequest {
            filter: Some(filter),
        });
        Ok(self
            .call("ListContainers", list)?
            .containers
            .into_iter()
            .map(|c| c.id)
            .collect())
    }

    /// Writes a running container into an archive at `location`, as a kubelet's
    /// `POST /checkpoint/NAMESPACE/POD/CONTAINER` does; it goes on.
    pub fn checkpoint(&self, id: &str, location: &str) -> Result<()> {
        let request = CheckpointContainerRequest {
            container_id: id.to_owned(),
            location: location.to_owned(),
            timeout: DEADLINE.as_secs() as i64,
        };
        let mut client = self.runtime_service();
        self.call("CheckpointContainer", client.checkpoint_container(request))
            .map(drop)
    }

    /// Stops a container: its stop signal, and SIGKILL after `grace` seconds.
    pub fn stop(&self, id: &str, grace: i64) -> Result<()> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace,
        };
        let mut client = self.runtime_service();
        self.call("StopContainer", client.stop_container(request))
            .map(drop)
    }

    /// Removes a container.
    pub fn remove(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let mut client = self.runtime_service();
        self.call("RemoveContainer", client.remove_container(request))
            .map(drop)
    }

    /// Stops a pod and all its containers.
    pub fn stop_pod(&self, pod: &Pod) -> Result<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let mut client = self.runtime_service();
        self.call("StopPodSandbox", client.stop_pod_sandbox(request))
            .map(drop)
    }

    /// Removes a stopped pod.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let mut client = self.runtime_service();
        self.call("RemovePodSandbox", client.remove_pod_sandbox(request))
            .map(drop)
    }
}

fn container_config(pod: &Pod, container: &Container<'_>, memory: i64) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: container.name.to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: container.image.to_owned(),
            ..ImageSpec::default()
        }),
        command: container.command.iter().map(|&s| s.to_owned()).collect(),
        log_path: format!("{}.log", container.name),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: pod.namespaces(),
                ..LinuxContainerSecurityContext::default()
            }),
            resources: (memory > 0).then(|| LinuxContainerResources {
                memory_limit_in_bytes: memory,
                ..LinuxContainerResources::default()
            }),
        }),
        ..ContainerConfig::default()
    }
}

fn pod_config(name: &str, namespaces: NamespaceOption, cgroup: &str) -> PodSandboxConfig {
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces),
        ..LinuxSandboxSecurityContext::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "xebec-test".into(),
            attempt: 0,
        }),
        log_directory: format!("/var/log/pods/{name}"),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup.to_owned(),
            security_context: Some(security),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_nobody_listens_on_is_named() {
        let error = Cri::connect(Path::new("/nonexistent/cri.sock"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/cri.sock"), "{error}");
    }

    #[test]
    fn containers_have_the_namespaces_of_their_pod() {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node.into(),
            ..NamespaceOption::default()
        };
        let pod = Pod {
            id: "1".into(),
            config: pod_config("web", namespaces.clone(), ""),
        };
        assert_eq!(pod.namespaces(), Some(namespaces));
    }
}
