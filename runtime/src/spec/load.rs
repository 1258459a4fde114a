//! Reading a bundle and its documents.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::amend::{amend_linux, amend_process, drop_nulls, respell_page_sizes};
use super::locate;
use crate::error::{Error, Result};

/// Name of the configuration inside a bundle.
pub(crate) const CONFIG_FILE: &str = "config.json";
/// No configuration is larger.
const CONFIG_MAX: u64 = 64 << 20;

/// A bundle as read from disk.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute path of its directory.
    pub(crate) path: PathBuf,
    /// Absolute path of the configuration.
    pub(crate) file: PathBuf,
    /// Its configuration, parsed but not yet checked.
    pub(crate) spec: Spec,
    /// What was ignored in it, for the log.
    pub(crate) warnings: Vec<String>,
}

/// Reads the bundle at `path`: its `config.json`, or `config` in its place.
pub(crate) fn load_bundle(path: &Path, config: Option<&Path>) -> Result<Bundle> {
    let absolute = |path| std::path::absolute(path).map_err(Error::file("resolve", path));
    // The place itself, as runc has it, which goes there: whatever later becomes of a symlink.
    let path = fs::canonicalize(path).map_err(Error::file("chdir", path))?;
    let file = config.map_or_else(|| Ok(path.join(CONFIG_FILE)), absolute)?;
    let text = match read_config(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let file = file.display();
            return Err(Error::InvalidArgument(format!(
                "JSON specification file {file} not found"
            )));
        }
        Err(e) => return Err(Error::file("open", file)(e)),
    };
    let (spec, warnings) = parse_config(&file, &text)?;
    Ok(Bundle {
        path,
        file,
        spec,
        warnings,
    })
}

/// Parses a configuration, with what was ignored in it.
pub(crate) fn parse_config(file: &Path, text: &[u8]) -> Result<(Spec, Vec<String>)> {
    let parsed: (Spec, _) = parse_document(file, text, &["process"])?;
    if lacks_a_page_size(&parsed.0)
        && let Ok(mut value) = serde_json::from_slice(text)
        && respell_page_sizes(&mut value)
    {
        return parse_document(file, value.to_string().as_bytes(), &["process"]);
    }
    Ok(parsed)
}

fn lacks_a_page_size(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let limits = resources.and_then(|resources| resources.hugepage_limits().as_ref());
    limits.is_some_and(|limits| limits.iter().any(|limit| limit.page_size().is_empty()))
}

/// Reads a regular file of bounded size: a device or a fifo under that name would be read for ever.
fn read_config(file: &Path) -> io::Result<Vec<u8>> {
    let mut opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(file)?;
    let facts = opened.metadata()?;
    if !facts.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if facts.len() > CONFIG_MAX {
        return Err(io::Error::other("larger than 64 MiB"));
    }
    let mut text = vec![0; facts.len() as usize];
    opened.read_exact(&mut text)?;
    Ok(text)
}

/// Parses a stand-alone process document (`exec --process FILE`), with what was ignored in it.
pub(crate) fn parse_process(file: &Path, text: &[u8]) -> Result<(Process, Vec<String>)> {
    parse_document(file, text, &[])
}

/// Parses a stand-alone document of resources (`update --resources FILE`).
pub(crate) fn parse_resources(file: &Path, text: &[u8]) -> Result<LinuxResources> {
    parse_document(file, text, &[]).map(|(resources, _)| resources)
}

/// Parses `text`; what the types are too narrow for is amended when it is met.
fn parse_document<T: DeserializeOwned>(
    file: &Path,
    text: &[u8],
    process_at: &[&str],
) -> Result<(T, Vec<String>)> {
    let first_error = match serde_json::from_slice(text) {
        Ok(document) => return Ok((document, Vec::new())),
        Err(e) => e,
    };
    let refuse = |field: String, reason: &str| Error::Spec {
        file: file.display().to_string(),
        reason: match runcs_words(&field) {
            Some(words) => format!("{words}: {reason}"),
            None => reason.to_owned(),
        },
        field,
    };
    if let Ok(mut value) = serde_json::from_slice::<Value>(text) {
        let process = process_at
            .iter()
            .try_fold(&mut value, |at, key| at.get_mut(*key));
        let amended = process.map(amend_process).unwrap_or_default();
        let linux = value.get_mut("linux").is_some_and(amend_linux);
        if drop_nulls(&mut value) | amended.changed | linux {
            // By way of its text: a second way into the types, from a `Value`, would be a tenth of
            // the whole program, for documents that are rare.
            let text = value.to_string();
            return match serde_json::from_slice(text.as_bytes()) {
                Ok(document) => Ok((document, amended.warnings)),
                Err(e) => {
                    let field = locate::field_at(text.as_bytes(), e.line(), e.column());
                    let reason = e.to_string();
                    // The place is one in a text that nobody has seen.
                    let reason = reason.split(" at line ").next().unwrap_or_default();
                    Err(refuse(field, reason))
                }
            };
        }
    }
    let field = locate::field_at(text, first_error.line(), first_error.column());
    Err(refuse(field, &first_error.to_string()))
}

/// What runc says of a value that is none of those known for this field; clients look for it.
fn runcs_words(field: &str) -> Option<&'static str> {
    const WORDS: [(&str, &str); 7] = [
        ("linux.memoryPolicy.flags", "invalid memory policy flag"),
        ("linux.memoryPolicy", "invalid memory policy mode"),
        ("linux.personality.domain", "invalid personality domain"),
        ("process.ioPriority.class", "invalid ioPriority.Class"),
        ("process.rlimits", "wrong rlimit value"),
        ("process.scheduler.policy", "invalid scheduler policy"),
        ("process.scheduler", "scheduler policy is required"),
    ];
    let known = WORDS.iter().find(|(start, _)| {
        let rest = field.strip_prefix(start);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    });
    known.map(|(_, words)| *words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Spec, Vec<String>)> {
        parse_config(Path::new("config.json"), text.as_bytes())
    }

    #[test]
    fn a_wrong_type_is_reported_with_the_path_of_its_field() {
        let text = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":"root","gid":0},"cwd":"/"}}"#;
        let error = parse(text).expect_err("uid is no number").to_string();
        assert!(
            error.starts_with("config.json: process.user.uid: "),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_beside_what_is_amended_is_what_is_reported() {
        let text = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","args":7}}"#;
        let error = parse(text).expect_err("args are no list").to_string();
        assert!(
            error.starts_with("config.json: process.args: ") && !error.contains("line"),
            "{error}"
        );
    }

    #[test]
    fn a_process_without_a_user_is_roots() {
        for user in ["", r#""user":{},"#, r#""user":{"umask":18},"#] {
            let text = format!(r#"{{"ociVersion":"1.0.2","process":{{{user}"cwd":"/"}}}}"#);
            let (spec, _) = parse(&text).expect("complete");
            let user = spec.process().as_ref().expect("process").user();
            assert_eq!((user.uid(), user.gid()), (0, 0));
        }
    }

    #[test]
    fn null_is_the_same_as_nothing() {
        let text = r#"{"ociVersion":"1.0.2","mounts":null,"hooks":null,"process":{"cwd":"/",
            "user":null,"args":["a"]},"linux":{"namespaces":[{"type":"pid","path":null}]}}"#;
        let (spec, warnings) = parse(text).expect("complete");
        assert_eq!(spec.process().as_ref().expect("process").user().uid(), 0);
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_word_that_is_not_known_is_refused_in_runcs_words() {
        let with = |linux: &str| {
            let text = format!(r#"{{"ociVersion":"1.0.2","linux":{linux}}}"#);
            parse(&text).expect_err("not known").to_string()
        };
        let error = with(r#"{"memoryPolicy":{"mode":"BIND"}}"#);
        assert!(
            error.contains("linux.memoryPolicy.mode: invalid memory policy mode: "),
            "{error}"
        );
        let error = with(r#"{"memoryPolicy":{"mode":"MPOL_BIND","flags":["F"]}}"#);
        assert!(
            error.contains("flags[0]: invalid memory policy flag: "),
            "{error}"
        );
    }

    #[test]
    fn a_page_size_may_be_spelt_as_runcs_own_tests_spell_it() {
        let text = r#"{"ociVersion":"1.0.2","linux":{"resources":{"hugepageLimits":[
            {"pagesize":"2MB","limit":2097152}]}}}"#;
        let (spec, _) = parse(text).expect("complete");
        assert!(!lacks_a_page_size(&spec));
    }

    #[test]
    fn broken_json_is_reported_with_its_place() {
        let error = parse("{\"ociVersion\": \"1.0.2\",\n \"process\": {").expect_err("truncated");
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn an_unknown_capability_is_dropped_with_a_warning() {
        let text = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"cwd":"/",
            "capabilities":{"bounding":["CAP_KILL","CAP_TO_COME","CAP_SYS_ADMIN"]}}}"#;
        let (spec, warnings) = parse(text).expect("only a warning");
        let process = spec.process().as_ref().expect("process");
        let caps = process
            .capabilities()
            .as_ref()
            .and_then(|c| c.bounding().as_ref());
        assert_eq!(caps.map(std::collections::HashSet::len), Some(2));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("CAP_TO_COME"));
    }
}
