//! Man pages and shell completions, made from the command line's own description.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

use crate::error::{Error, Result};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell to write completions for, on standard output
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Directory to write one page a command into; made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    io::stdout()
        .write_all(&script)
        .map_err(Error::io("write", Path::new("standard output")))
}

pub(super) fn man(args: &ManArgs, command: Command) -> Result<()> {
    std::fs::create_dir_all(&args.dir).map_err(Error::io("create", &args.dir))?;
    clap_mangen::generate_to(command, &args.dir).map_err(Error::io("write man pages in", &args.dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_visible_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let args = ManArgs {
            dir: dir.path().join("man1"),
        };
        man(&args, super::super::Cli::command()).unwrap();
        for page in [
            "xebec-snapshotter",
            "xebec-snapshotter-serve",
            "xebec-snapshotter-image-convert",
        ] {
            let path = args.dir.join(format!("{page}.1"));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{page}: {e}"));
            assert!(text.contains(".TH"), "{page}");
        }
        assert!(!args.dir.join("xebec-snapshotter-man.1").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let args = ManArgs {
            dir: file.path().join("man1"),
        };
        let error = man(&args, super::super::Cli::command())
            .unwrap_err()
            .to_string();
        assert!(error.contains("man1"), "{error}");
    }
}
