//! `integration pod`.

use std::io::{BufRead, stdin};
use std::path::PathBuf;

use clap::Args;

use crate::cri::{Container, Cri};
use crate::error::{Error, Result};
use crate::hosts::Service;

#[derive(Debug, Args)]
pub(super) struct PodArgs {
    /// The socket of the container runtime
    #[arg(long, default_value = Service::CONTAINERD_SOCKET)]
    socket: PathBuf,
    /// Its runtime handler
    #[arg(long, default_value = "xebec")]
    handler: String,
    /// Cgroup of the pod: a path, or a slice of systemd's
    #[arg(long, value_name = "CGROUP", default_value = "")]
    cgroup_parent: String,
    /// Limit of the container's memory, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    memory: i64,
    /// The container's image, which is pulled
    image: String,
    /// What to run instead of the image's command
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

pub(super) fn run(arguments: &PodArgs) -> Result<()> {
    let cri = Cri::connect(&arguments.socket)?;
    let handler = &arguments.handler;
    cri.pull(&arguments.image, handler)?;
    let pod = cri.run_pod_below("pod", handler, &arguments.cgroup_parent)?;
    println!("pod {}", pod.id);
    let command: Vec<&str> = arguments.command.iter().map(String::as_str).collect();
    let container = Container {
        name: "main",
        image: &arguments.image,
        command: &command,
    };
    let id = cri.create_limited(&pod, &container, arguments.memory)?;
    cri.start(&id)?;
    println!("container {id}");
    for line in stdin().lock().lines() {
        let line = line.map_err(Error::system("read standard input"))?;
        let ran = cri.exec_sync(&id, &["sh", "-c", &line])?;
        print!(
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
        println!("exit {}", ran.exit_code);
    }
    cri.stop(&id, 0)?;
    let ended = cri.wait_exit(&id)?;
    println!("ended {} {}", ended.exit_code, ended.reason);
    cri.remove(&id)?;
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)
}
