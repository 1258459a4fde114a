//! Building the images that are missing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::layout::{Layer, Layout};
use super::recipes::{Content, Recipe, SUITE};
use super::tree::{Tree, additions, walk};
use super::{directory, many, recipes};
use crate::command::{DEADLINE, check, follow};
use crate::error::{Error, Result};
use crate::hosts::leash;
use crate::lock::Lock;
use crate::paths::Paths;
use crate::progress::Step;
use crate::setup::{mirror, rootfs};

/// Builds those of `images` that are not there. Each becomes visible in one step, when complete.
pub fn build(paths: &Paths, images: &[String]) -> Result<()> {
    let done = directory(paths);
    fs::create_dir_all(&done).map_err(Error::file("create", &done))?;
    let _one_at_a_time = Lock::take(&paths.cache.join(".corpus.lock"))?;
    for image in images {
        let recipe = recipes::find(image)
            .ok_or_else(|| Error::invalid(image.clone(), "no such image in the corpus"))?;
        let finished = done.join(recipe.name);
        if finished.exists() {
            continue;
        }
        let step = Step::begin(format!("build image {image}"));
        let layout = Workshop { paths, step: &step }.build(&recipe)?;
        fs::rename(&layout, &finished).map_err(Error::file("rename", &layout))?;
        step.done(&finished.to_string_lossy());
    }
    Ok(())
}

struct Workshop<'a> {
    paths: &'a Paths,
    step: &'a Step,
}

impl Workshop<'_> {
    /// The finished layout in a place where nobody looks yet.
    fn build(&self, recipe: &Recipe) -> Result<PathBuf> {
        let work = self.paths.cache.join(".building-image");
        if work.exists() {
            fs::remove_dir_all(&work).map_err(Error::file("delete", &work))?;
        }
        fs::create_dir_all(&work).map_err(Error::file("create", &work))?;
        let directory = work.join("layout");
        let layout = Layout::create(&directory)?;
        let root = work.join("root");
        let layers = match recipe.content {
            Content::Busybox => vec![self.add_busybox(&layout, &root)?],
            Content::ManyFiles(scale) => {
                fs::create_dir(&root).map_err(Error::file("create", &root))?;
                many::fill(&root, scale)?;
                self.step.detail("packing");
                let (base, tree) = self.base()?;
                let base = layout.add_layer(&base, &tree, tree.keys())?;
                let tree = walk(&root)?;
                vec![base, layout.add_layer(&root, &tree, tree.keys())?]
            }
            Content::Packages(packages) => self.add_packages(&layout, &root, packages)?,
        };
        layout.finish(recipe.name, &layers, recipe.command)?;
        let finished = self.paths.cache.join(".finished-image");
        if finished.exists() {
            fs::remove_dir_all(&finished).map_err(Error::file("delete", &finished))?;
        }
        fs::rename(&directory, &finished).map_err(Error::file("rename", &directory))?;
        fs::remove_dir_all(&work).map_err(Error::file("delete", &work))?;
        Ok(finished)
    }

    /// The tree of the base layer, made once.
    fn base(&self) -> Result<(PathBuf, Tree)> {
        let base = self.paths.cache.join(format!("base-{SUITE}"));
        if !base.exists() {
            let building = self.paths.cache.join(".building-base");
            if building.exists() {
                fs::remove_dir_all(&building).map_err(Error::file("delete", &building))?;
            }
            let (target, mirror) = (building.to_string_lossy(), mirror::find()?);
            let arguments = [
                "--variant=minbase",
                "--skip=cleanup/apt/lists",
                "--aptopt=Acquire::Check-Valid-Until \"false\"",
                "--aptopt=APT::Install-Recommends \"false\"",
                SUITE,
                &target,
                &mirror,
            ];
            rootfs::debootstrap(self.paths, &arguments, "base", self.step)?;
            fs::rename(&building, &base).map_err(Error::file("rename", &building))?;
        }
        let tree = walk(&base)?;
        Ok((base, tree))
    }

    fn add_packages(
        &self,
        layout: &Layout,
        root: &Path,
        packages: &[&[&str]],
    ) -> Result<Vec<Layer>> {
        let (base, base_tree) = self.base()?;
        check(Command::new("cp").arg("-a").arg(&base).arg(root), DEADLINE)?;
        let mut names = Vec::new();
        for alternatives in packages {
            names.push(first_known(root, alternatives)?);
        }
        self.install(root, &names)?;
        self.step.detail("packing");
        let tree = walk(root)?;
        if let Some(gone) = base_tree.keys().find(|path| !tree.contains_key(*path)) {
            let reason = "installing packages removed it from the base".to_owned();
            return Err(Error::invalid(gone.display().to_string(), reason));
        }
        let added = additions((&base, &base_tree), (root, &tree))?;
        let base = layout.add_layer(&base, &base_tree, base_tree.keys())?;
        Ok(vec![base, layout.add_layer(root, &tree, added.iter())?])
    }

    /// apt-get in the root, in namespaces that end with this process.
    fn install(&self, root: &Path, packages: &[&str]) -> Result<()> {
        let root = format!("--root={}", root.display());
        let mut argv = vec!["unshare", "--mount", "--pid", "--fork", "--kill-child"];
        argv.extend([root.as_str(), "--mount-proc", "apt-get", "-q", "-y"]);
        argv.extend(["--no-install-recommends", "install"]);
        argv.extend(packages);
        let mut command = leash::command(&self.paths.program, &argv);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        follow(
            &mut command,
            &self.paths.cache.join("logs/image.log"),
            |line| {
                self.step.detail(line);
            },
        )
    }

    /// busybox with a link for each of its applets, from the hosts' root file system.
    fn add_busybox(&self, layout: &Layout, root: &Path) -> Result<Layer> {
        let busybox = rootfs::find(self.paths)?.join("usr/bin/busybox");
        for directory in ["bin", "etc", "root", "tmp", "proc", "sys", "dev"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        }
        let binary = root.join("bin/busybox");
        fs::copy(&busybox, &binary).map_err(Error::file("copy", &busybox))?;
        for applet in check(Command::new(&busybox).arg("--list"), DEADLINE)?.lines() {
            let link = root.join("bin").join(applet);
            if applet != "busybox" {
                symlink("busybox", &link).map_err(Error::file("link", &link))?;
            }
        }
        let passwd = root.join("etc/passwd");
        fs::write(
            &passwd,
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )
        .map_err(Error::file("write", &passwd))?;
        let tree = walk(root)?;
        layout.add_layer(root, &tree, tree.keys())
    }
}

/// The first of several alternative packages that the archive has.
fn first_known<'a>(root: &Path, alternatives: &[&'a str]) -> Result<&'a str> {
    for package in alternatives {
        let mut show = Command::new("chroot");
        show.arg(root).args(["apt-cache", "show", package]);
        if crate::command::output(&mut show, DEADLINE)?.success() {
            return Ok(package);
        }
    }
    Err(Error::invalid(
        alternatives.join(" | "),
        "the mirror has no such package",
    ))
}
