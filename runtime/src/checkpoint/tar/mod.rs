//! `tar` as CRIU calls it: the content of each file system in memory is an archive, compressed by
//! gzip, that a program of this name in `PATH` writes and reads. GNU's takes three executions for
//! each of them, with `/dev`, `/run` and `/dev/shm` longer than all the rest of a small checkpoint.
//! Ours does in one what is small and plain; anything else, and any other call, is left to the real one.

mod pack;
mod unpack;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name that CRIU knows it by.
pub(crate) const TAR: &str = "tar";
/// The most that is held in memory: what is larger is for the real one.
const LIMIT: u64 = 4 << 20;
/// What CRIU says before the directory.
const CREATE: [&str; 9] = [
    "--create",
    "--gzip",
    "--no-unquote",
    "--no-wildcards",
    "--one-file-system",
    "--check-links",
    "--preserve-permissions",
    "--sparse",
    "--numeric-owner",
];
const EXTRACT: [&str; 4] = ["--extract", "--gzip", "--no-unquote", "--no-wildcards"];

/// What CRIU wants.
#[derive(Debug, PartialEq, Eq)]
enum Job<'a> {
    /// The content of this directory, on standard output.
    Create(&'a Path),
    /// What standard input holds, in this directory.
    Extract(&'a Path),
}

/// Carries out what the arguments of this process, which was executed as `tar`, ask for; its exit
/// code. Comes back only when it did so itself, or there is nobody else to do it.
pub fn stand_in_for_tar() -> u8 {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let done = match Job::parse(&arguments) {
        Some(Job::Create(directory)) => create(directory),
        Some(Job::Extract(directory)) => extract(directory),
        None => Ok(false),
    };
    match done {
        Ok(true) => 0,
        Ok(false) => hand_over(&arguments),
        Err(error) => {
            eprintln!("tar: {error}");
            2
        }
    }
}

impl<'a> Job<'a> {
    fn parse(arguments: &'a [OsString]) -> Option<Self> {
        let after = |words: &[&str]| {
            let (said, rest) = arguments.split_at_checked(words.len())?;
            said.iter().eq(words).then_some(rest)
        };
        match (after(&CREATE), after(&EXTRACT)) {
            (Some([option, directory, all]), _) if option == "--directory" && all == "." => {
                Some(Self::Create(Path::new(directory)))
            }
            (_, Some([option, directory])) if option == "--directory" => {
                Some(Self::Extract(Path::new(directory)))
            }
            _ => None,
        }
    }
}

/// Whether it was done; nothing has been written if not.
fn create(directory: &Path) -> io::Result<bool> {
    // Whatever cannot be read is for the real one to tell.
    let Ok(Some(archive)) = pack::pack(directory) else {
        return Ok(false);
    };
    let mut output = io::stdout().lock();
    output.write_all(&archive)?;
    output.flush()?;
    Ok(true)
}

/// Whether it was done; if not, the input is again where it was.
fn extract(directory: &Path) -> io::Result<bool> {
    let mut input = fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let start = input.stream_position()?;
    if let Ok(true) = unpack::unpack(&input, directory) {
        return Ok(true);
    }
    // The real one makes anew what is there, and has the words for what is wrong.
    input.seek(SeekFrom::Start(start))?;
    Ok(false)
}

/// Becomes the next `tar` in `PATH` that is not this program.
fn hand_over(arguments: &[OsString]) -> u8 {
    let own = fs::canonicalize("/proc/self/exe").ok();
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let is_another = |file: &PathBuf| fs::canonicalize(file).is_ok_and(|file| Some(file) != own);
    let mut found = env::split_paths(&path).map(|directory| directory.join(TAR));
    let Some(program) = found.find(is_another) else {
        eprintln!("tar: there is no other tar in PATH");
        return 127;
    };
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("tar: {}: {error}", program.display());
    126
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn only_calls_of_crius_are_understood() {
        let create = words(&format!(
            "{} --directory /proc/self/fd/0 .",
            CREATE.join(" ")
        ));
        let directory = Path::new("/proc/self/fd/0");
        assert_eq!(Job::parse(&create), Some(Job::Create(directory)));
        let extract = words(&format!("{} --directory /m", EXTRACT.join(" ")));
        assert_eq!(Job::parse(&extract), Some(Job::Extract(Path::new("/m"))));
        let (last, fewer) = create.split_last().expect("words");
        assert_eq!(Job::parse(fewer), None);
        assert_eq!(
            Job::parse(&[fewer, &[last.clone(), "x".into()]].concat()),
            None
        );
        assert_eq!(Job::parse(&words("--extract --directory /m")), None);
        assert_eq!(Job::parse(&[]), None);
    }
}
