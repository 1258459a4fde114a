//! A sealed checkpoint in one file: an age file of a zstd stream of a tar archive of the images, so
//! `age --decrypt | zstd -d | tar x` opens it without us, too.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, Result};
use crate::flat;
use crate::keys::{Identities, Recipients};

/// What a sealed checkpoint is called in a directory of images.
pub const SEALED_FILE: &str = "checkpoint.tar.zst.age";
/// No checkpoint has more files.
const FILES_MAX: usize = 100_000;
/// zstd's level: the next ones cost more than they save of memory's pages.
const LEVEL: i32 = 1;

/// Whether a directory of images holds a sealed checkpoint.
pub fn is_sealed(directory: &Path) -> bool {
    directory.join(SEALED_FILE).exists()
}

/// Seals the images of one directory into a file in another one, which appears there when it is
/// whole and on the disk.
pub fn seal(images: &Path, directory: &Path, recipients: &Recipients) -> Result<()> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(Error::io("mkdir", directory))?;
    let draft = Draft::new(directory)?;
    let file = draft.create()?;
    let sealed = recipients.seal(BufWriter::with_capacity(1 << 20, &file))?;
    let failed = |e| Error::io("write", &draft.0)(e);
    let mut packed = zstd::Encoder::new(sealed, LEVEL).map_err(failed)?;
    pack(images, &mut packed)?;
    let sealed = packed.finish().map_err(failed)?;
    let mut buffered = sealed.finish().map_err(failed)?;
    buffered.flush().map_err(failed)?;
    drop(buffered);
    file.sync_all().map_err(failed)?;
    draft.publish(&directory.join(SEALED_FILE))
}

/// Opens a sealed checkpoint into another directory. Whatever was changed, moved or cut off is an
/// error, and then the directory is of no use.
pub fn unseal(directory: &Path, identities: &Identities, images: &Path) -> Result<()> {
    let path = directory.join(SEALED_FILE);
    let what = path.display().to_string();
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    let sealed = identities.open(&what, file)?;
    unpack(&what, sealed, images)
}

/// A file that is not there yet; without its name it is removed.
struct Draft(PathBuf);

impl Draft {
    fn new(directory: &Path) -> Result<Self> {
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(Error::os("getrandom"))?;
        let number = u64::from_ne_bytes(random);
        Ok(Self(directory.join(format!(".sealing-{number:016x}"))))
    }

    fn create(&self) -> Result<File> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let created = options.open(&self.0);
        created.map_err(Error::io("create", &self.0))
    }

    fn publish(&self, path: &Path) -> Result<()> {
        fs::rename(&self.0, path).map_err(Error::io("rename", path))?;
        let parent = path.parent().unwrap_or(Path::new("."));
        let directory = File::open(parent).and_then(|directory| directory.sync_all());
        directory.map_err(Error::io("sync", parent))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Not there any more once it has its name.
        let _ = fs::remove_file(&self.0);
    }
}

fn pack(images: &Path, output: impl Write) -> Result<()> {
    let mut archive = tar::Builder::new(output);
    for image in flat::open_all(images)? {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(image.size);
        let added = archive.append_data(&mut header, &image.name, image.file.take(image.size));
        added.map_err(Error::io("seal", &image.name))?;
    }
    archive.finish().map_err(Error::os("seal"))
}

/// Unpacks what was read from anywhere: regular files by harmless names, once each. Public for fuzzing.
#[doc(hidden)]
pub fn unpack(what: &str, sealed: impl Read, images: &Path) -> Result<()> {
    let bad = |e: io::Error| Error::malformed(what, e);
    let mut plain = zstd::Decoder::new(sealed).map_err(bad)?;
    plain.window_log_max(27).map_err(bad)?;
    let mut archive = tar::Archive::new(&mut plain);
    // Raw: an extension would be read into memory, whatever its size.
    for (count, entry) in archive.entries().map_err(bad)?.raw(true).enumerate() {
        let mut entry = entry.map_err(bad)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if count >= FILES_MAX || !entry.header().entry_type().is_file() {
            return Err(Error::malformed(
                what,
                format!("entry {name:?} is not one of a checkpoint"),
            ));
        }
        let mut file = flat::create(images, &name)?;
        io::copy(&mut entry, &mut file).map_err(Error::io("unseal", &name))?;
    }
    // Only the end of the stream tells that nothing was cut off.
    io::copy(&mut plain, &mut io::sink()).map_err(bad)?;
    let mut sealed = plain.finish();
    let rest = io::copy(&mut sealed, &mut io::sink()).map_err(bad)?;
    if rest > 0 {
        return Err(Error::malformed(what, "more than an archive"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret as _;

    use super::*;

    fn person() -> (Recipients, Identities) {
        let identity = age::x25519::Identity::generate();
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("key");
        fs::write(&file, identity.to_string().expose_secret()).expect("written");
        let recipients = Recipients::parse(&[identity.to_public().to_string()]);
        (
            recipients.expect("a recipient"),
            Identities::read(&[file]).expect("an identity"),
        )
    }

    fn sealed_by(recipients: &Recipients) -> tempfile::TempDir {
        let images = tempfile::tempdir().expect("temporary directory");
        for (name, content) in [
            ("a.img", vec![1; 200_000]),
            ("b.img", b"secret words".repeat(20)),
        ] {
            fs::write(images.path().join(name), content).expect("written");
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        seal(images.path(), directory.path(), recipients).expect("sealed");
        directory
    }

    fn opened(directory: &Path, identities: &Identities) -> Result<Vec<u8>> {
        let images = tempfile::tempdir().expect("temporary directory");
        unseal(directory, identities, images.path())?;
        Ok(fs::read(images.path().join("b.img")).expect("read"))
    }

    #[test]
    fn a_sealed_file_is_opened_by_its_recipients_and_by_nobody_when_a_bit_is_changed() {
        let (recipients, identities) = person();
        let directory = sealed_by(&recipients);
        let plain = b"secret words".repeat(20);
        assert_eq!(
            opened(directory.path(), &identities).expect("opened"),
            plain
        );
        assert!(opened(directory.path(), &person().1).is_err());
        let file = directory.path().join(SEALED_FILE);
        let whole = fs::read(&file).expect("read");
        assert!(!whole.windows(6).any(|bytes| bytes == b"secret"));
        for place in 0..whole.len() {
            let mut other = whole.clone();
            other[place] ^= 1;
            fs::write(&file, &other).expect("written");
            assert!(
                opened(directory.path(), &identities).is_err(),
                "bit of byte {place}"
            );
            fs::write(&file, &whole[..place]).expect("written");
            assert!(
                opened(directory.path(), &identities).is_err(),
                "cut at {place}"
            );
        }
        fs::write(&file, [&whole[..], b"x"].concat()).expect("written");
        assert!(opened(directory.path(), &identities).is_err(), "more");
        assert_eq!(
            fs::read_dir(directory.path()).expect("a directory").count(),
            1
        );
    }

    #[test]
    fn an_archive_of_anything_but_files_is_refused_whoever_has_sealed_it() {
        let hostile: [(&str, tar::EntryType); 4] = [
            ("../out", tar::EntryType::Regular),
            ("link", tar::EntryType::Symlink),
            ("device", tar::EntryType::Char),
            ("a.img", tar::EntryType::GNULongName),
        ];
        for (name, kind) in hostile {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_cksum();
            let mut archive = tar::Builder::new(Vec::new());
            archive.append(&header, io::empty()).expect("added");
            let packed =
                zstd::encode_all(&*archive.into_inner().expect("ended"), 1).expect("packed");
            let images = tempfile::tempdir().expect("temporary directory");
            let error = unpack("x", &*packed, images.path())
                .expect_err(name)
                .to_string();
            assert!(error.contains(name), "{error}");
            assert_eq!(fs::read_dir(images.path()).expect("a directory").count(), 0);
        }
    }

    #[test]
    fn a_key_that_is_none_is_named_but_a_secret_is_not() {
        let error = Recipients::parse(&["age1nonsense".to_owned()])
            .expect_err("none")
            .to_string();
        assert!(error.contains("age1nonsense"), "{error}");
        assert!(Recipients::parse(&["/no/such/file".to_owned()]).is_err());
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("key");
        fs::write(&file, "AGE-SECRET-KEY-1NONSENSE").expect("written");
        let error = Identities::read(&[&file]).err().expect("none").to_string();
        assert!(
            error.contains("/key") && !error.contains("NONSENSE"),
            "{error}"
        );
    }
}
