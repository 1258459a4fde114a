//! The QEMU process of a VM host and its disks.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::guest::{JOB_FILE, JOB_LABEL, Job, PORTS};
use crate::command::{DEADLINE, check};
use crate::error::{Error, Result};
use crate::hosts::leash;
use crate::setup::disk::make_ext4;

/// Files in the scratch directory that the machine writes.
pub(super) const STDOUT: &str = "stdout";
pub(super) const STDERR: &str = "stderr";
pub(super) const STATUS: &str = "status";
pub(super) const CONSOLE: &str = "console";

/// Memory in MiB and processors.
const MEMORY: &str = "4096";
const PROCESSORS: &str = "2";

/// What a first boot does for a machine that lives longer than one job.
const MASKED: [&str; 5] = [
    "e2scrub_reap",
    "ldconfig",
    "systemd-hwdb-update",
    "systemd-journal-catalog-update",
    "systemd-update-done",
];

/// The pieces of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MachinePlan {
    /// This crate's own program.
    pub(crate) program: PathBuf,
    /// The root file system: the kernel is taken from it. Debian's has NVMe and ext4 built in, so
    /// with the root disk on NVMe it needs no initrd, which saves half of the time to boot.
    pub(crate) rootfs: PathBuf,
    /// The same as a disk image; never written.
    pub(crate) disk: PathBuf,
    /// What goes onto the job's disk: (file here, path there).
    pub(crate) content: Vec<(PathBuf, PathBuf)>,
    /// Further words for the kernel's command line.
    pub(crate) kernel: Vec<String>,
    /// What the machine is to do.
    pub(crate) job: Job,
}

impl MachinePlan {
    /// Makes the job's disk and starts QEMU.
    pub(crate) fn launch(&self, scratch: &Path) -> Result<Child> {
        let job = self.make_job_disk(scratch)?;
        let console = scratch.join("qemu.log");
        let log = fs::File::create(&console).map_err(Error::file("create", &console))?;
        let errors = log.try_clone().map_err(Error::file("open", &console))?;
        let mut qemu = leash::command(&self.program, &self.argv(scratch, &job)?);
        // Writes to the root disk go to a temporary file that QEMU unlinks at once.
        qemu.env("TMPDIR", scratch)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        qemu.spawn().map_err(Error::system("start QEMU"))
    }

    fn make_job_disk(&self, scratch: &Path) -> Result<PathBuf> {
        let content = scratch.join("job");
        fs::create_dir(&content).map_err(Error::file("create", &content))?;
        for (from, to) in &self.content {
            let to = content.join(to);
            let parent = to.parent().unwrap_or(&content);
            fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
            check(Command::new("cp").arg("-rL").arg(from).arg(&to), DEADLINE)?;
        }
        let file = content.join(JOB_FILE);
        let job = serde_json::to_vec(&self.job).map_err(|e| Error::invalid("the job", e))?;
        fs::write(&file, job).map_err(Error::file("write", &file))?;
        let size = tree_size(&content)? * 5 / 4 + (64 << 20);
        let image = scratch.join("job.img");
        make_ext4(&self.program, &image, size, JOB_LABEL, &content)?;
        Ok(image)
    }

    fn argv(&self, scratch: &Path, job: &Path) -> Result<Vec<OsString>> {
        let (emulator, machine, console) = if cfg!(target_arch = "aarch64") {
            ("qemu-system-aarch64", "virt", "ttyAMA0")
        } else {
            ("qemu-system-x86_64", "pc", "ttyS0")
        };
        let boot = self.rootfs.join("boot");
        let masked: String = MASKED
            .map(|unit| format!(" systemd.mask={unit}.service"))
            .concat();
        let words = self.kernel.iter().flat_map(|word| [" ", word.as_str()]);
        let words = words.collect::<String>();
        // On a loaded machine an emulated timer can fail the check that no_timer_check leaves out.
        let command_line = format!(
            "console={console} panic=-1 root=/dev/nvme0n1 rw mitigations=off quiet fsck.mode=skip \
             no_timer_check{masked}{words}"
        );
        let mut argv: Vec<OsString> = [emulator, "-machine", machine, "-accel", "tcg,thread=multi"]
            .into_iter()
            .chain([
                "-cpu", "max", "-smp", PROCESSORS, "-m", MEMORY, "-display", "none",
            ])
            .chain(["-no-reboot", "-nodefaults", "-device", "virtio-serial-pci"])
            .chain(["-append", &command_line])
            .map(OsString::from)
            .collect();
        argv.extend([
            "-kernel".into(),
            newest(&boot, "vmlinuz-")?.into_os_string(),
        ]);
        let file =
            |options: &str, path: &Path| OsString::from(format!("{options}{}", path.display()));
        for (options, path) in [
            (
                "format=raw,if=none,id=root,cache=unsafe,snapshot=on,file=",
                self.disk.as_path(),
            ),
            ("format=raw,if=virtio,readonly=on,file=", job),
        ] {
            argv.extend(["-drive".into(), file(options, path)]);
        }
        argv.extend(["-device".into(), "nvme,serial=root,drive=root".into()]);
        argv.extend(["-serial".into(), file("file:", &scratch.join(CONSOLE))]);
        for (port, name) in PORTS.into_iter().zip([STDOUT, STDERR, STATUS]) {
            let chardev = format!("file,id={name},path=");
            argv.extend(["-chardev".into(), file(&chardev, &scratch.join(name))]);
            let device = format!("virtserialport,chardev={name},name={port}");
            argv.extend(["-device".into(), device.into()]);
        }
        Ok(argv)
    }
}

/// The file with this prefix; of several versions the last by name.
fn newest(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = None;
    for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let path = entry.map_err(Error::file("list", directory))?.path();
        let fits = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        if fits && found.as_ref().is_none_or(|best| path > *best) {
            found = Some(path);
        }
    }
    found.ok_or_else(|| Error::invalid(directory.display().to_string(), format!("no {prefix}*")))
}

fn tree_size(directory: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
        let entry = entry.map_err(Error::file("list", directory))?;
        let metadata = entry
            .metadata()
            .map_err(Error::file("examine", &entry.path()))?;
        size += if metadata.is_dir() {
            tree_size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_disk_is_never_written_and_the_newest_kernel_boots() {
        let rootfs = tempfile::tempdir().unwrap();
        fs::create_dir(rootfs.path().join("boot")).unwrap();
        for name in ["vmlinuz-7.1", "vmlinuz-7.2", "config-7.9"] {
            fs::write(rootfs.path().join("boot").join(name), "").unwrap();
        }
        let plan = MachinePlan {
            program: "/p".into(),
            rootfs: rootfs.path().into(),
            disk: "/cache/disk.img".into(),
            content: Vec::new(),
            kernel: vec!["quiet2=1".into()],
            job: Job {
                argv: Vec::new(),
                services: Vec::new(),
            },
        };
        let argv = plan.argv(Path::new("/s"), Path::new("/s/job.img")).unwrap();
        let line = argv
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        assert!(line.contains("snapshot=on,file=/cache/disk.img"), "{line}");
        assert!(line.contains("readonly=on,file=/s/job.img"), "{line}");
        assert!(line.contains("boot/vmlinuz-7.2 "), "{line}");
        assert!(line.contains(" quiet2=1 "), "{line}");
    }
}
