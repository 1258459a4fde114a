//! Programs of Debian's that a host has beside its own: unpacked, not installed, and shown only to
//! hosts that ask for them.

use std::fs;
use std::path::{Path, PathBuf};

use super::{mirror, rootfs};
use crate::error::{Error, Result};
use crate::hash;
use crate::hosts::scratch::remove_tree;
use crate::lock::Lock;
use crate::paths::{Paths, existing};
use crate::progress::Step;

/// Some programs of one suite's packages.
#[derive(Debug, PartialEq, Eq)]
pub struct Tool {
    /// Names its directories, here and in a host.
    pub name: &'static str,
    suite: &'static str,
    packages: &'static [&'static str],
    /// Paths in the packages; a host finds each under its last name in its `PATH`.
    pub programs: &'static [&'static str],
}

const CONTAINERD: &[&str] = &[
    "usr/bin/containerd",
    "usr/bin/ctr",
    "usr/bin/containerd-shim-runc-v2",
];

/// containerd 1.6 of Debian 12.
pub static CONTAINERD_1_6: Tool = Tool {
    name: "containerd-1.6",
    suite: "bookworm",
    packages: &["containerd"],
    programs: CONTAINERD,
};

/// containerd 1.7 of Debian 13.
pub static CONTAINERD_1_7: Tool = Tool {
    name: "containerd-1.7",
    suite: "trixie",
    packages: &["containerd"],
    programs: CONTAINERD,
};

/// Clients that ask for lazy layers in their own ways: stargz-snapshotter's `ctr-remote` by the
/// labels that nerdctl sets too, and BuildKit's, for the BuildKit inside dockerd.
pub static CLIENTS: Tool = Tool {
    name: "clients",
    suite: rootfs::SUITE,
    packages: &["stargz-snapshotter", "docker-buildx"],
    programs: &[
        "usr/bin/ctr-remote",
        "usr/libexec/docker/cli-plugins/docker-buildx",
    ],
};

/// CRIU's library, which crun loads by its name; [`Tool::place`] is for `LD_LIBRARY_PATH`.
pub static LIBCRIU: Tool = Tool {
    name: "libcriu",
    suite: rootfs::SUITE,
    packages: &["libcriu2"],
    programs: if cfg!(target_arch = "aarch64") {
        &["usr/lib/aarch64-linux-gnu/libcriu.so.2"]
    } else {
        &["usr/lib/x86_64-linux-gnu/libcriu.so.2"]
    },
};

/// All that tests use.
pub static ALL: [&Tool; 4] = [&CONTAINERD_1_6, &CONTAINERD_1_7, &CLIENTS, &LIBCRIU];

impl Tool {
    /// The directory with its programs, or an error that says how to get it.
    pub fn find(&self, paths: &Paths) -> Result<PathBuf> {
        existing(self.directory(paths), "setup --vm")
    }

    /// Where it is in a host that has it.
    pub fn place(&self) -> PathBuf {
        Path::new("/opt").join(self.name)
    }

    /// The names of its programs.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let last = |path: &&'static str| path.rsplit('/').next();
        self.programs.iter().filter_map(last)
    }

    /// Its name changes whenever the recipe does.
    fn directory(&self, paths: &Paths) -> PathBuf {
        let parts = [&[self.suite], self.packages, self.programs, rootfs::OPTIONS];
        let key = hash::key(&(parts.concat().join("\n") + "\n"));
        paths.cache.join(format!("{}-{key}", self.name))
    }

    fn build(&self, paths: &Paths) -> Result<()> {
        let finished = self.directory(paths);
        if finished.exists() {
            return Ok(());
        }
        let step = Step::begin(format!("unpack {} of {}", self.name, self.suite));
        let [unpacked, building] = ["unpacked", "building"]
            .map(|state| paths.cache.join(format!(".{state}-{}", self.name)));
        for remains in [&unpacked, &building] {
            remove_tree(remains)?;
        }
        let include = format!("--include={}", self.packages.join(","));
        let target = unpacked.to_string_lossy();
        let mirror = mirror::find()?;
        let mut arguments = vec!["--variant=extract"];
        arguments.extend(rootfs::OPTIONS);
        arguments.extend([include.as_str(), self.suite, &target, &mirror]);
        rootfs::debootstrap(paths, &arguments, self.name, &step)?;
        fs::create_dir(&building).map_err(Error::file("create", &building))?;
        for (path, name) in self.programs.iter().zip(self.names()) {
            let path = unpacked.join(path);
            fs::copy(&path, building.join(name)).map_err(Error::file("copy", &path))?;
        }
        remove_tree(&unpacked)?;
        fs::rename(&building, &finished).map_err(Error::file("rename", &building))?;
        step.done(&finished.to_string_lossy());
        Ok(())
    }
}

/// Unpacks those that are not there. A run that was killed leaves nothing that a later one would use.
pub fn build(paths: &Paths, tools: &[&Tool]) -> Result<()> {
    let _one_at_a_time = Lock::take(&paths.cache.join(".tools.lock"))?;
    tools.iter().try_for_each(|tool| tool.build(paths))
}
