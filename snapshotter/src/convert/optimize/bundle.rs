//! What a trial runs: an OCI bundle's configuration, from the image's.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde_json::{Value, json};

use super::Trial;
use crate::error::{Error, Result};

/// What containers may do everywhere.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// Where programs are looked for unless the image says so.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most of a list of users that is read.
const MAX_LIST: u64 = 1 << 20;

/// The configuration.
pub(super) struct Bundle(Value);

impl Bundle {
    /// What to run, by the image's configuration `image`; `tree` is its unpacked root.
    pub(super) fn new(image: &Value, trial: &Trial, tree: &Path) -> Result<Self> {
        let config = image.get("config").unwrap_or(&Value::Null);
        let args = arguments(config, &trial.arguments)?;
        let user = config.get("User").and_then(Value::as_str).unwrap_or("");
        let list = |name: &str| read_inside(tree, name);
        let (uid, gid) = user_of(user, &list("etc/passwd"), &list("etc/group"))?;
        let mut env = texts(config.get("Env"));
        if !env.iter().any(|variable| variable.starts_with("PATH=")) {
            env.push(PATH.to_owned());
        }
        let cwd = config.get("WorkingDir").and_then(Value::as_str);
        let cwd = cwd.filter(|cwd| cwd.starts_with('/')).unwrap_or("/");
        let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
        if !trial.host_network {
            namespaces.push("network");
        }
        let namespaces: Vec<_> = namespaces
            .iter()
            .map(|kind| json!({"type": kind}))
            .collect();
        Ok(Self(json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": {"uid": uid, "gid": gid},
                "args": args,
                "env": env,
                "cwd": cwd,
                "capabilities": {
                    "bounding": CAPABILITIES,
                    "effective": CAPABILITIES,
                    "permitted": CAPABILITIES,
                },
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs"},
            "hostname": "trial",
            "mounts": mounts(),
            "linux": {
                "namespaces": namespaces,
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                    "/proc/sysrq-trigger"],
            },
        })))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.0.to_string()).map_err(Error::io("write", path))
    }
}

fn mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"]},
    ])
}

/// The command: given arguments take the place of the image's `Cmd`, not of its `Entrypoint`.
fn arguments(config: &Value, given: &[String]) -> Result<Vec<String>> {
    let mut arguments = texts(config.get("Entrypoint"));
    if given.is_empty() {
        arguments.extend(texts(config.get("Cmd")));
    } else {
        arguments.extend_from_slice(given);
    }
    if arguments.is_empty() {
        let reason = "the image says nothing of what to run: add -- COMMAND";
        return Err(Error::InvalidArgument(reason.to_owned()));
    }
    Ok(arguments)
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    list.into_iter().flatten().filter_map(text).collect()
}

/// A file of the image as text; nothing if it has none. Links lead nowhere but into the tree.
fn read_inside(tree: &Path, name: &str) -> String {
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(tree, open, Mode::empty());
    let file = root.and_then(|root| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::openat2(root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    });
    let mut text = Vec::new();
    if let Ok(file) = file
        && File::from(file)
            .take(MAX_LIST)
            .read_to_end(&mut text)
            .is_err()
    {
        text.clear();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The ids of `USER[:GROUP]`, by number or by the image's lists.
fn user_of(user: &str, passwd: &str, group: &str) -> Result<(u32, u32)> {
    if user.is_empty() {
        return Ok((0, 0));
    }
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let unknown = |what: &str| Error::NotFound(format!("{what} of the image's user {user:?}"));
    let field = |line: &str, number: usize| line.split(':').nth(number)?.parse::<u32>().ok();
    let named = |list: &str, name: &str| -> Option<String> {
        let is_it = |line: &&str| line.split(':').next() == Some(name);
        list.lines().find(is_it).map(str::to_owned)
    };
    let (uid, own_group) = if let Ok(uid) = name.parse::<u32>() {
        let is_it = |line: &&str| field(line, 2) == Some(uid);
        let line = passwd.lines().find(is_it);
        (uid, line.and_then(|line| field(line, 3)))
    } else {
        let line = named(passwd, name).ok_or_else(|| unknown("entry in /etc/passwd"))?;
        let uid = field(&line, 2).ok_or_else(|| unknown("number"))?;
        (uid, field(&line, 3))
    };
    let gid = match group_name {
        None => own_group.unwrap_or(0),
        Some(group_name) => match group_name.parse() {
            Ok(gid) => gid,
            Err(_) => named(group, group_name)
                .and_then(|line| field(&line, 2))
                .ok_or_else(|| unknown("entry in /etc/group"))?,
        },
    };
    Ok((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_number_and_by_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nredis:x:999:1000::/:/bin/false\n";
        let group = "root:x:0:\ndata:x:77:\n";
        for (user, ids) in [
            ("", (0, 0)),
            ("redis", (999, 1000)),
            ("999", (999, 1000)),
            ("5", (5, 0)),
            ("redis:data", (999, 77)),
            ("5:6", (5, 6)),
        ] {
            assert_eq!(user_of(user, passwd, group).unwrap(), ids, "{user}");
        }
        for user in ["nobody", "root:nogroup"] {
            let error = user_of(user, passwd, group).unwrap_err().to_string();
            assert!(error.contains(user), "{error}");
        }
    }

    #[test]
    fn arguments_replace_the_command_and_not_the_entrypoint() {
        let config = json!({"Entrypoint": ["/entry"], "Cmd": ["a", "b"]});
        let given = ["c".to_owned()];
        assert_eq!(arguments(&config, &[]).unwrap(), ["/entry", "a", "b"]);
        assert_eq!(arguments(&config, &given).unwrap(), ["/entry", "c"]);
        assert_eq!(arguments(&Value::Null, &given).unwrap(), ["c"]);
        assert!(arguments(&Value::Null, &[]).is_err());
    }
}
