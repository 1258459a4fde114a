//! A report for people. What comes from the checkpoint cannot do anything to their terminal.

use std::fmt::Write as _;

use super::{Process, Report};

/// Renders a report.
pub fn to_text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = head(&mut text, report);
    let _ = processes(&mut text, report, 0, 0);
    let _ = rest(&mut text, report);
    text.replace(|char: char| char.is_control() && char != '\n', "\u{fffd}")
}

fn head(text: &mut String, report: &Report) -> std::fmt::Result {
    let mut line = |name: &str, value: &str| {
        if value.is_empty() {
            Ok(())
        } else {
            writeln!(text, "{name:<14}{}", value.replace('\n', " "))
        }
    };
    line("Engine", report.engine.unwrap_or_default())?;
    if let Some(container) = &report.container {
        line("Container", &container.name)?;
        line("Id", &container.id)?;
        line("Image", &container.rootfs_image_name)?;
        line("Runtime", &container.runtime)?;
        line("Created", &container.created_time)?;
        line("Checkpointed", &container.checkpointed_at)?;
    }
    let sizes = &report.sizes;
    line("Size", &bytes(sizes.total))?;
    line("Memory", &bytes(sizes.pages))?;
    line("Changed files", &bytes(sizes.rootfs_diff))?;
    writeln!(text, "\nProcesses")
}

/// Children below their parent. A forged tree may be a ring, and as deep as it likes.
fn processes(text: &mut String, report: &Report, parent: u32, depth: usize) -> std::fmt::Result {
    const DEPTH_MAX: usize = 64;
    for process in report.processes.iter().filter(|one| one.parent == parent) {
        one(text, process, depth)?;
        if process.pid != parent && depth < DEPTH_MAX {
            processes(text, report, process.pid, depth + 1)?;
        }
    }
    Ok(())
}

fn one(text: &mut String, process: &Process, depth: usize) -> std::fmt::Result {
    let indent = "  ".repeat(depth + 1);
    let [user, group] = process.user;
    let arguments = process.arguments.join(" ").replace('\n', " ");
    writeln!(
        text,
        "{indent}{} {} ({user}:{group}) {arguments}",
        process.pid, process.name
    )?;
    let memory = process.memory.kinds().into_iter();
    let stored = memory.filter(|(_, size)| size.stored > 0);
    let stored: Vec<_> = stored
        .map(|(kind, size)| format!("{kind} {} of {}", bytes(size.stored), bytes(size.mapped)))
        .collect();
    if !stored.is_empty() {
        writeln!(text, "{indent}  memory: {}", stored.join(", "))?;
    }
    for file in &process.files {
        let path = file.path.replace('\n', " ");
        writeln!(
            text,
            "{indent}  {:>3} {} {path}",
            file.descriptor, file.kind
        )?;
    }
    for variable in &process.environment {
        writeln!(text, "{indent}  {}", variable.replace('\n', " "))?;
    }
    Ok(())
}

fn rest(text: &mut String, report: &Report) -> std::fmt::Result {
    if !report.sockets.is_empty() {
        writeln!(text, "\nSockets")?;
    }
    for socket in &report.sockets {
        let remote = match socket.remote.as_str() {
            "" => String::new(),
            remote => format!(" to {remote}"),
        };
        let local = socket.local.replace('\n', " ");
        writeln!(text, "  {} {local}{remote} {}", socket.kind, socket.state)?;
    }
    writeln!(text, "\nMounts")?;
    for mount in &report.mounts {
        let external = match &mount.external {
            Some(key) => format!(" (the host's: {})", key.replace('\n', " ")),
            None => String::new(),
        };
        let path = mount.path.replace('\n', " ");
        writeln!(
            text,
            "  {path} {}{external}",
            mount.source.replace('\n', " ")
        )?;
    }
    Ok(())
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}
