//! CRIU's image files, as far as a restore has to look into them.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use prost::Message as _;
use xebec_proto::criu_images::{CgroupEntry, MountEntry};

use super::messages::{Kind, messages};
use crate::error::{Error, Result};

/// The beginning of the names of images of mounts.
const MOUNTS_NAME: &str = "mountpoints-";
/// No such file is larger.
const SIZE_MAX: u64 = 16 << 20;

/// Whether the dumped container had made cgroups below its own; not when there is nothing about
/// cgroups in the images.
///
/// # Errors
/// The file is damaged.
pub(crate) fn has_cgroups(images: &Path) -> Result<bool> {
    let path = images.join("cgroup.img");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::file("open", path)(e)),
    };
    let content = read(file, &path)?;
    let damaged = |reason: &str| damaged(&path, reason);
    let message = messages(&content, Kind::Cgroups).and_then(|all| all.first().copied());
    let message = message.ok_or_else(|| damaged("not an image of cgroups"))?;
    let entry = CgroupEntry::decode(message).map_err(|e| damaged(&e.to_string()))?;
    // Hierarchies of version 1 have names, and no cgroup of the container's.
    let unified = entry
        .controllers
        .iter()
        .filter(|tree| tree.cnames.iter().all(String::is_empty));
    let mut directories = unified.flat_map(|tree| &tree.dirs);
    Ok(directories.any(|dir| !dir.children.is_empty()))
}

/// What the images call the sources of mounts that come from outside.
///
/// # Errors
/// A file is damaged.
pub(crate) fn external_mounts(images: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(images).map_err(Error::file("read", images))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("read", images))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(MOUNTS_NAME) {
            continue;
        }
        let content = read(
            File::open(&path).map_err(Error::file("open", &path))?,
            &path,
        )?;
        let all = messages(&content, Kind::Mounts);
        let all = all.ok_or_else(|| damaged(&path, "not an image of mounts"))?;
        for message in all {
            let entry = MountEntry::decode(message).map_err(|e| damaged(&path, &e.to_string()))?;
            names.extend(entry.ext_key);
        }
    }
    Ok(names)
}

fn read(file: File, path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(SIZE_MAX)
        .read_to_end(&mut content)
        .map_err(Error::file("read", path))?;
    Ok(content)
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::InvalidArgument(format!("{}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use xebec_proto::criu_images::{CgroupDir, CgroupTree};

    use super::super::messages::encode;
    use super::*;

    fn image(entry: &CgroupEntry) -> Vec<u8> {
        encode(Kind::Cgroups, &[entry.encode_to_vec()])
    }

    fn tree(children: Vec<CgroupDir>) -> CgroupEntry {
        let top = CgroupDir {
            dir_name: "c".to_owned(),
            children,
        };
        CgroupEntry {
            controllers: vec![CgroupTree {
                cnames: vec![String::new()],
                dirs: vec![top],
            }],
        }
    }

    #[test]
    fn cgroups_below_the_containers_are_found_in_the_images() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("cgroup.img");
        assert!(!has_cgroups(directory.path()).expect("no file"));
        std::fs::write(&file, image(&tree(Vec::new()))).expect("written");
        assert!(!has_cgroups(directory.path()).expect("an image"));
        std::fs::write(&file, image(&tree(vec![CgroupDir::default()]))).expect("written");
        assert!(has_cgroups(directory.path()).expect("an image"));
    }

    #[test]
    fn mounts_from_outside_are_told_by_their_names() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let names = || external_mounts(directory.path());
        assert_eq!(names().expect("no file"), Vec::<String>::new());
        let entries = [None, Some("/data"), Some("/run/x")].map(|name| {
            let ext_key = name.map(str::to_owned);
            MountEntry {
                ext_key,
                ..MountEntry::default()
            }
            .encode_to_vec()
        });
        let whole = encode(Kind::Mounts, &entries);
        let file = directory.path().join("mountpoints-13.img");
        std::fs::write(&file, &whole).expect("written");
        assert_eq!(names().expect("an image"), ["/data", "/run/x"]);
        std::fs::write(&file, &whole[..whole.len() - 1]).expect("written");
        let error = names().expect_err("damaged").to_string();
        assert!(error.contains("mountpoints-13.img"), "{error}");
    }

    #[test]
    fn a_damaged_image_is_refused_with_its_name() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let whole = image(&tree(vec![CgroupDir::default()]));
        let mut longer = whole.clone();
        longer[8] = 0xff;
        let mut garbled = whole.clone();
        garbled[12] = 0xff;
        for bad in [&[][..], &whole[..9], &longer, &garbled] {
            std::fs::write(directory.path().join("cgroup.img"), bad).expect("written");
            let error = has_cgroups(directory.path()).expect_err("damaged");
            assert!(error.to_string().contains("cgroup.img"), "{error}");
        }
    }
}
