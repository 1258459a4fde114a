//! Where a stream goes, as containerd names it.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// One end of a container's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// `/dev/null`.
    Null,
    /// A named pipe.
    Fifo(PathBuf),
    /// A file to append to.
    File(PathBuf),
    /// A logging program and its arguments.
    Binary {
        /// The program.
        program: PathBuf,
        /// Keys and values of the query, in order.
        arguments: Vec<String>,
    },
}

/// Parses a stream name: a path or `fifo://` (pipe), `file://`, `binary://`, or nothing.
pub(super) fn parse(name: &str) -> Result<Target> {
    let Some((scheme, rest)) = name.split_once("://") else {
        return Ok(if name.is_empty() {
            Target::Null
        } else {
            Target::Fifo(PathBuf::from(name))
        });
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = PathBuf::from(decode(path, name)?);
    if !path.is_absolute() {
        return Err(Error::InvalidArgument(format!(
            "stream {name:?} has no absolute path"
        )));
    }
    match scheme {
        "fifo" => Ok(Target::Fifo(path)),
        "file" => Ok(Target::File(path)),
        "binary" => Ok(Target::Binary {
            program: path,
            arguments: arguments(query, name)?,
        }),
        _ => Err(Error::InvalidArgument(format!(
            "stream {name:?}: scheme {scheme:?} is unknown"
        ))),
    }
}

fn arguments(query: &str, name: &str) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(decode(&key.replace('+', " "), name)?);
        if !value.is_empty() {
            arguments.push(decode(&value.replace('+', " "), name)?);
        }
    }
    Ok(arguments)
}

/// Resolves percent escapes.
fn decode(text: &str, name: &str) -> Result<String> {
    let wrong = || Error::InvalidArgument(format!("stream {name:?}: bad percent escape"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|b| char::from(b).to_digit(16))
                .ok_or_else(wrong)
        };
        let (high, low) = (digit()?, digit()?);
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_stream_is_recognised() {
        let binary = Target::Binary {
            program: "/usr/bin/log ger".into(),
            arguments: vec!["--dir".into(), "/a&b".into(), "-q".into()],
        };
        for (name, target) in [
            ("", Target::Null),
            ("/run/c/stdout", Target::Fifo("/run/c/stdout".into())),
            ("fifo:///run/c/out", Target::Fifo("/run/c/out".into())),
            (
                "file:///var/log/c.log",
                Target::File("/var/log/c.log".into()),
            ),
            ("binary:///usr/bin/log%20ger?--dir=%2Fa%26b&-q", binary),
        ] {
            assert_eq!(parse(name).unwrap(), target, "{name}");
        }
    }

    #[test]
    fn wrong_names_are_refused() {
        for name in [
            "ftp:///x",
            "file://relative",
            "binary://",
            "file:///a%2",
            "file:///a%zz",
        ] {
            let error = parse(name).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
