//! Generated API types of the services that xebec speaks: containerd's shim Task API and its
//! events, runc options, cgroup v2 metrics, the snapshots API, and parts of the content, images and leases
//! APIs and of CRI v1.
//!
//! The `.proto` files in `protos/` are this project's own; names and numbers are the APIs'.
//! The crate never contains behaviour, beyond packing a message into an `Any`.

macro_rules! generated {
    ($(#[$meta:meta])* $module:ident, $package:literal) => {
        $(#[$meta])*
        #[allow(missing_docs, clippy::pedantic, clippy::all)]
        pub mod $module {
            include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));
        }
    };
}

generated! {
    /// `containerd.types`: mounts, envelopes, runtime information.
    types, "containerd.types"
}
#[cfg(feature = "criu")]
generated! {
    /// Requests to CRIU, its notifications and answers.
    criu, "criu.rpc"
}
#[cfg(feature = "criu")]
generated! {
    /// Parts of CRIU's image files.
    criu_images, "criu.images"
}
#[cfg(feature = "task")]
generated! {
    /// `containerd.v1.types`: process status.
    task_types, "containerd.v1.types"
}
#[cfg(feature = "task")]
generated! {
    /// Messages of `containerd.task.v2.Task` and `containerd.task.v3.Task` alike.
    task, "containerd.task.v3"
}
#[cfg(feature = "task")]
generated! {
    /// `containerd.events`: what a shim publishes about tasks.
    events, "containerd.events"
}
#[cfg(feature = "task")]
generated! {
    /// `containerd.services.events.ttrpc.v1`: forwarding an event to containerd.
    events_ttrpc, "containerd.services.events.ttrpc.v1"
}
#[cfg(feature = "task")]
generated! {
    /// `containerd.runc.v1`: options of the runc shim.
    runc_options, "containerd.runc.v1"
}
#[cfg(feature = "task")]
generated! {
    /// `runtimeoptions.v1`: options as TOML.
    runtimeoptions, "runtimeoptions.v1"
}
#[cfg(feature = "task")]
generated! {
    /// `containerd.runtime.bootstrap.v1`: the standard input of a shim from containerd 2.3 on.
    bootstrap, "containerd.runtime.bootstrap.v1"
}
#[cfg(feature = "task")]
generated! {
    /// `io.containerd.cgroups.v2`: metrics of a cgroup v2.
    cgroup2_stats, "io.containerd.cgroups.v2"
}
#[cfg(feature = "task")]
generated! {
    /// `containerd.runtime.sandbox.v1`: the shim as the maker of pods.
    sandbox, "containerd.runtime.sandbox.v1"
}
#[cfg(feature = "task")]
generated! {
    /// Requests and responses inside ttrpc frames.
    ttrpc, "ttrpc"
}
#[cfg(feature = "snapshots")]
generated! {
    /// `containerd.services.snapshots.v1`, with its gRPC server and client.
    snapshots, "containerd.services.snapshots.v1"
}
#[cfg(feature = "content")]
generated! {
    /// `containerd.services.content.v1`, with its gRPC client.
    content, "containerd.services.content.v1"
}
#[cfg(feature = "content")]
generated! {
    /// `containerd.services.images.v1`, with its gRPC client.
    images, "containerd.services.images.v1"
}
#[cfg(feature = "content")]
generated! {
    /// `containerd.services.leases.v1`, with its gRPC client.
    leases, "containerd.services.leases.v1"
}
#[cfg(feature = "events")]
generated! {
    /// `containerd.services.events.v1`, with its gRPC client.
    events_stream, "containerd.services.events.v1"
}
#[cfg(feature = "cri")]
generated! {
    /// `runtime.v1` (CRI), with its gRPC clients.
    cri, "runtime.v1"
}

pub use prost;
pub use prost_types;

/// Packs `message` the way containerd does: the type URL is the bare message name.
pub fn pack<M: prost::Name>(message: &M) -> prost_types::Any {
    prost_types::Any {
        type_url: M::full_name(),
        value: message.encode_to_vec(),
    }
}

/// Unpacks `any` if it holds an `M`, with or without a prefix before the message name.
pub fn unpack<M: prost::Name + Default>(
    any: &prost_types::Any,
) -> Option<Result<M, prost::DecodeError>> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    (name == M::full_name()).then(|| M::decode(any.value.as_slice()))
}

#[cfg(all(test, feature = "task"))]
mod tests {
    use super::{events, pack, unpack};

    #[test]
    fn a_packed_event_carries_its_bare_name_and_comes_back() {
        let exit = events::TaskExit {
            container_id: "c".into(),
            pid: 7,
            ..Default::default()
        };
        let mut any = pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        any.type_url.insert_str(0, "types.googleapis.com/");
        assert_eq!(unpack::<events::TaskExit>(&any).unwrap().unwrap(), exit);
        assert!(unpack::<events::TaskOom>(&any).is_none());
        any.value = vec![0xff];
        assert!(unpack::<events::TaskExit>(&any).unwrap().is_err());
    }
}
