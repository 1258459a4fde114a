//! Tasks with every cgroup controller: what is told of their use and of kills for want of memory,
//! by our shim and by runc's for the same container.

use std::time::Duration;

use integration::hosts::{VmHost, VmOptions};
use serde_json::Value;

const SCRIPT: &str = include_str!("tasks.sh");

#[test]
fn a_task_tells_its_use_as_runcs_shim_does_and_an_exec_that_is_killed_before_its_exit() {
    let options = VmOptions {
        images: vec!["busybox".into()],
        deadline: Duration::from_mins(8),
        // For CRIU's breakpoints the kernel changes its own code, which two emulated processors do not
        // always see in time.
        kernel: vec!["maxcpus=1".into()],
        ..VmOptions::default()
    };
    let output = VmHost::run(options, &["bash", "-c", SCRIPT]).expect("a VM host runs a job");
    assert!(output.success(), "{output:#?}");
    let lines: Vec<_> = output.stdout.lines().collect();
    for fact in [
        "xebec greedy exec 137",
        "xebec is RUNNING",
        "xebec kills 1",
        "restored greedy exec 137",
        "restored is RUNNING",
        "restored kills 1",
        "runc kills 1",
    ] {
        assert!(lines.contains(&fact), "{fact} is missing in {output:#?}");
    }
    let found = |what: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(what));
        line.unwrap_or_else(|| panic!("{what} is missing in {output:#?}"))
    };

    let metrics = |name: &str| -> Value {
        let json = found(&format!("metrics-{name} "));
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
    };
    let (ours, theirs) = (metrics("xebec"), metrics("runc"));
    assert_eq!(groups(&ours), groups(&theirs), "{ours:#}\n{theirs:#}");
    for metrics in [&ours, &theirs] {
        let value = |path: &str| metrics.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        assert_eq!(value("/memory/usage_limit"), 64 << 20, "{metrics:#}");
        assert!(value("/memory/file") >= 8 << 20, "{metrics:#}");
        assert!(value("/memory/usage") >= 8 << 20, "{metrics:#}");
        assert!(value("/cpu/usage_usec") > 0, "{metrics:#}");
        assert!(value("/pids/current") >= 2, "{metrics:#}");
    }

    // In a container that was restored, too.
    for name in ["xebec", "restored"] {
        let events = found(&format!("events-{name} "));
        let place = |event: &str| events.find(event);
        let (oom, exit) = (place("/tasks/oom"), place(r#"/tasks/exit "id":"greedy""#));
        assert!(oom.is_some() && oom < exit, "{name}: {output:#?}");
    }
}

/// Which kinds of metrics there are.
fn groups(metrics: &Value) -> Vec<&String> {
    let fields = metrics.as_object().expect("metrics are an object");
    fields.keys().collect()
}
