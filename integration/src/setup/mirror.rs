//! The Debian mirror that this machine's own apt uses; no mirror is named anywhere in xebec.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// One repository of apt's sources.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
}

/// `$XEBEC_MIRROR`, or the URI under which apt finds this machine's own Debian suite.
pub fn find() -> Result<String> {
    if let Ok(mirror) = std::env::var("XEBEC_MIRROR") {
        return Ok(mirror);
    }
    let release = Path::new("/etc/os-release");
    let text = fs::read_to_string(release).map_err(Error::file("read", release))?;
    let suite = codename(&text).ok_or_else(|| Error::invalid("/etc/os-release", "no codename"))?;
    let mut sources = Vec::new();
    for file in files()? {
        let text = fs::read_to_string(&file).map_err(Error::file("read", &file))?;
        let is_deb822 = file
            .extension()
            .is_some_and(|extension| extension == "sources");
        sources.extend(if is_deb822 {
            parse_deb822(&text)
        } else {
            parse_lines(&text)
        });
    }
    choose(&sources, suite).ok_or_else(|| {
        Error::invalid(
            "apt's sources",
            format!("no URI for suite {suite}; set XEBEC_MIRROR"),
        )
    })
}

fn files() -> Result<Vec<std::path::PathBuf>> {
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    let directory = Path::new("/etc/apt/sources.list.d");
    if directory.is_dir() {
        for entry in fs::read_dir(directory).map_err(Error::file("list", directory))? {
            files.push(entry.map_err(Error::file("list", directory))?.path());
        }
    }
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

fn codename(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
}

fn choose(sources: &[Source], suite: &str) -> Option<String> {
    let source = sources
        .iter()
        .find(|source| source.suites.iter().any(|it| it == suite))?;
    Some(source.uri.clone())
}

/// sources.list(5), deb822 style: stanzas of `Key: value`, only the keys that matter here.
fn parse_deb822(text: &str) -> Vec<Source> {
    let stanzas = text.split("\n\n").map(|stanza| {
        let value = |key: &str| {
            let line = stanza.lines().find_map(|line| line.strip_prefix(key))?;
            Some(
                line.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            )
        };
        let uri = value("URIs:")?.into_iter().next()?;
        Some(Source {
            uri,
            suites: value("Suites:")?,
        })
    });
    stanzas.flatten().collect()
}

/// sources.list(5), one line each: `deb [options] URI suite components...`.
fn parse_lines(text: &str) -> Vec<Source> {
    let lines = text.lines().map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        Some(Source {
            uri: words.next()?.into(),
            suites: vec![words.next()?.into()],
        })
    });
    lines.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, suites: &[&str]) -> Source {
        Source {
            uri: uri.into(),
            suites: suites.iter().map(|it| (*it).into()).collect(),
        }
    }

    #[test]
    fn both_styles_of_sources_are_read() {
        let stanzas = "Types: deb\n# a comment\nURIs: http://a/debian\nSuites: s s-updates\n\n\
                       Types: deb\nURIs: http://b/security\nSuites: s-security\n";
        assert_eq!(
            parse_deb822(stanzas),
            [
                source("http://a/debian", &["s", "s-updates"]),
                source("http://b/security", &["s-security"])
            ]
        );
        let lines = "# deb http://no/ s main\ndeb [arch=amd64 signed-by=/k] http://c/debian s main\n\
                     deb-src http://no/ s main\ndeb http://d/ t main\n";
        assert_eq!(
            parse_lines(lines),
            [
                source("http://c/debian", &["s"]),
                source("http://d/", &["t"])
            ]
        );
    }

    #[test]
    fn the_repository_of_the_machines_own_suite_is_chosen() {
        let sources = [
            source("http://x/", &["other"]),
            source("http://y/", &["s-updates", "s"]),
        ];
        assert_eq!(choose(&sources, "s").as_deref(), Some("http://y/"));
        assert_eq!(choose(&sources, "t"), None);
    }

    #[test]
    fn the_codename_is_a_line_of_os_release() {
        assert_eq!(
            codename("ID=debian\nVERSION_CODENAME=bookworm\n"),
            Some("bookworm")
        );
    }
}
