//! Compiles `protos/` to Rust without a protoc binary: protox parses, prost generates.

use std::error::Error;

/// Proto file, its package, and the module of this crate that holds it.
const MESSAGES: &[(&str, &str, &str)] = &[
    ("types.proto", "containerd.types", "types"),
    ("task_types.proto", "containerd.v1.types", "task_types"),
    ("task.proto", "containerd.task.v3", "task"),
    ("events.proto", "containerd.events", "events"),
    (
        "events_ttrpc.proto",
        "containerd.services.events.ttrpc.v1",
        "events_ttrpc",
    ),
    ("runc_options.proto", "containerd.runc.v1", "runc_options"),
    (
        "runtimeoptions.proto",
        "runtimeoptions.v1",
        "runtimeoptions",
    ),
    (
        "bootstrap.proto",
        "containerd.runtime.bootstrap.v1",
        "bootstrap",
    ),
    (
        "cgroup2_stats.proto",
        "io.containerd.cgroups.v2",
        "cgroup2_stats",
    ),
    ("sandbox.proto", "containerd.runtime.sandbox.v1", "sandbox"),
    ("ttrpc.proto", "ttrpc", "ttrpc"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=protos");
    let enabled = |feature: &str| std::env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();

    // `types` is shared: snapshots needs its Mount even without the task API.
    let wanted = if enabled("TASK") { MESSAGES.len() } else { 1 };
    for (file, package, _) in &MESSAGES[..wanted] {
        config_for(package).compile_fds(protox::compile([file], ["protos"])?)?;
    }
    if enabled("CRIU") {
        for (file, package) in [
            ("criu.proto", "criu.rpc"),
            ("criu_images.proto", "criu.images"),
        ] {
            config_for(package).compile_fds(protox::compile([file], ["protos"])?)?;
        }
    }
    if enabled("SNAPSHOTS") {
        let fds = protox::compile(["snapshots.proto"], ["protos"])?;
        tonic_prost_build::configure()
            .emit_rerun_if_changed(false)
            .compile_fds_with_config(fds, config_for("containerd.services.snapshots.v1"))?;
    }
    if enabled("CONTENT") {
        for name in ["content", "images", "leases"] {
            let fds = protox::compile([format!("{name}.proto")], ["protos"])?;
            let package = format!("containerd.services.{name}.v1");
            tonic_prost_build::configure()
                .build_server(false)
                .emit_rerun_if_changed(false)
                .compile_fds_with_config(fds, config_for(&package))?;
        }
    }
    if enabled("EVENTS") {
        let fds = protox::compile(["events_stream.proto"], ["protos"])?;
        tonic_prost_build::configure()
            .build_server(false)
            .emit_rerun_if_changed(false)
            .compile_fds_with_config(fds, config_for("containerd.services.events.v1"))?;
    }
    if enabled("CRI") {
        let fds = protox::compile(["cri.proto"], ["protos"])?;
        tonic_prost_build::configure()
            .build_server(false)
            .emit_rerun_if_changed(false)
            .compile_fds_with_config(fds, config_for("runtime.v1"))?;
    }
    Ok(())
}

/// Generation of one package, with every other package found in its own module.
fn config_for(package: &str) -> prost_build::Config {
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    for (_, other, module) in MESSAGES {
        if *other != package {
            config.extern_path(format!(".{other}"), format!("crate::{module}"));
        }
    }
    config
}
