//! Credentials as docker keeps them: `config.json` with `auths`, and credential helpers.
//!
//! Nothing is cached here: files and helpers are asked whenever a registry refuses the token in
//! hand, so a login renewed by any tool is picked up by a running daemon.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;

use super::failure::Failure;

/// docker.io's key in `config.json`, kept from the first version of its API.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// User name by which helpers mark the secret as an identity token.
const TOKEN_USER: &str = "<token>";
/// A helper that hangs must not hang the reads that wait for it.
const HELPER_LIMIT: Duration = Duration::from_secs(10);

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// User name and password.
    Password { user: String, password: String },
    /// An OAuth 2 refresh token, to be exchanged at the token endpoint.
    IdentityToken(String),
    /// A bearer token, used as it is.
    RegistryToken(String),
}

/// Directory with the `config.json` in force: `given`, else `$DOCKER_CONFIG`, else `~/.docker`.
pub(super) fn config_dir(given: Option<&Path>) -> Option<PathBuf> {
    given
        .map(Path::to_owned)
        .or_else(|| std::env::var_os("DOCKER_CONFIG").map(PathBuf::from))
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")))
}

/// The credential for `repository` at `host`, or none for anonymous access.
pub(super) fn find(
    dir: Option<&Path>,
    host: &str,
    repository: &str,
) -> Result<Option<Credential>, Failure> {
    let Some(path) = dir.map(|dir| dir.join("config.json")) else {
        return Ok(None);
    };
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::Configuration(format!("{}: {error}", path.display()))
    };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(&error)),
    };
    let config: DockerConfig = serde_json::from_slice(&text).map_err(|error| unusable(&error))?;
    if let Some((helper, key)) = config.helper(host)
        && let Some(credential) = ask_helper(helper, &key)?
    {
        return Ok(Some(credential));
    }
    config
        .entry(host, repository)
        .map_err(|reason| unusable(&reason))
}

/// A document with logins that is not this machine's: its helpers are not run.
pub(super) struct Docker(DockerConfig);

impl Docker {
    /// Parses a document; a `legacy` one is the table of logins itself.
    pub(super) fn parse(json: &[u8], legacy: bool) -> Result<Self, String> {
        let config = if legacy {
            serde_json::from_slice(json).map(|auths| DockerConfig {
                auths,
                ..DockerConfig::default()
            })
        } else {
            serde_json::from_slice(json)
        };
        let config: DockerConfig = config.map_err(|error| error.to_string())?;
        for (key, entry) in &config.auths {
            entry
                .credential()
                .map_err(|reason| format!("auths entry {key:?}: {reason}"))?;
        }
        Ok(Self(config))
    }

    /// The login for `host/repository`, and the length of the key that it stands under.
    pub(super) fn best(&self, host: &str, repository: &str) -> Option<(usize, Credential)> {
        let (key, entry) = self.0.best(host, repository)?;
        Some((bare(key).len(), entry.credential().ok()??))
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, AuthEntry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl DockerConfig {
    /// The helper in charge of `host`, with the key it knows the host by.
    fn helper(&self, host: &str) -> Option<(&str, String)> {
        let by_host = self
            .cred_helpers
            .iter()
            .find(|(key, _)| bare(key) == bare_host(host));
        if let Some((key, helper)) = by_host {
            return Some((helper, key.clone()));
        }
        let store = self
            .creds_store
            .as_deref()
            .filter(|store| !store.is_empty())?;
        let key = if host == "docker.io" {
            DOCKER_HUB_KEY
        } else {
            host
        };
        Some((store, key.to_owned()))
    }

    /// The entry whose key is the longest path prefix of `host/repository`.
    fn entry(&self, host: &str, repository: &str) -> Result<Option<Credential>, String> {
        self.best(host, repository)
            .map_or(Ok(None), |(key, entry)| {
                entry
                    .credential()
                    .map_err(|reason| format!("auths entry {key:?}: {reason}"))
            })
    }

    fn best(&self, host: &str, repository: &str) -> Option<(&String, &AuthEntry)> {
        let full = format!("{}/{repository}", bare_host(host));
        let matching = |key: &str| {
            full.strip_prefix(bare(key))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let matching = self.auths.iter().filter(|(key, _)| matching(key));
        matching.max_by_key(|(key, _)| bare(key).len())
    }
}

impl AuthEntry {
    fn credential(&self) -> Result<Option<Credential>, String> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::RegistryToken(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(self.identitytoken.clone())));
        }
        let (user, password) = if self.auth.is_empty() {
            (self.username.clone(), self.password.clone())
        } else {
            decode_auth(&self.auth)?
        };
        Ok((!user.is_empty()).then_some(Credential::Password { user, password }))
    }
}

pub(super) fn decode_auth(auth: &str) -> Result<(String, String), String> {
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(auth.trim())
        .map_err(|_| "auth is not base64".to_owned())?;
    let text = String::from_utf8(decoded).map_err(|_| "auth is not UTF-8".to_owned())?;
    let (user, password) = text.split_once(':').ok_or("auth holds no user:password")?;
    // docker pads the secret with NULs on some platforms.
    Ok((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// A config key without scheme, API version and trailing slash.
fn bare(key: &str) -> &str {
    let key = key
        .split_once("://")
        .map_or(key, |(_, rest)| rest)
        .trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    if key == "docker.io" || key == "registry-1.docker.io" {
        "index.docker.io"
    } else {
        key
    }
}

fn bare_host(host: &str) -> &str {
    if host == "docker.io" {
        "index.docker.io"
    } else {
        host
    }
}

/// Runs `docker-credential-NAME get` (docker's credential helper protocol).
fn ask_helper(name: &str, key: &str) -> Result<Option<Credential>, Failure> {
    let program = format!("docker-credential-{name}");
    let unusable =
        |error: &dyn std::fmt::Display| Failure::Configuration(format!("{program}: {error}"));
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| unusable(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input says what is wrong by its exit code.
        let _ = writeln!(stdin, "{key}");
    }
    let (success, output) = wait_bounded(child).map_err(|error| unusable(&error))?;
    if !success {
        let text = output.trim();
        if text.to_ascii_lowercase().contains("not found") {
            return Ok(None);
        }
        return Err(unusable(&text));
    }
    parse_helper_answer(&output).map_err(|error| unusable(&error))
}

/// Exit state and output of `child`, which is killed when it takes too long.
pub(super) fn wait_bounded(mut child: Child) -> std::io::Result<(bool, String)> {
    let mut stdout = child.stdout.take();
    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut output = String::new();
        let result = stdout
            .as_mut()
            .map_or(Ok(0), |pipe| pipe.read_to_string(&mut output));
        // The receiver is gone only when the limit has passed.
        let _ = sender.send(result.map(|_| output));
    });
    let Ok(output) = receiver.recv_timeout(HELPER_LIMIT) else {
        child.kill()?;
        child.wait()?;
        return Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "no answer within 10 s",
        ));
    };
    let status = child.wait()?;
    reader
        .join()
        .map_err(|_| std::io::Error::other("reader thread failed"))?;
    Ok((status.success(), output?))
}

fn parse_helper_answer(text: &str) -> serde_json::Result<Option<Credential>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        secret: String,
    }
    let Answer { username, secret } = serde_json::from_str(text)?;
    Ok(match username.as_str() {
        TOKEN_USER => Some(Credential::IdentityToken(secret)),
        "" => None,
        _ => Some(Credential::Password {
            user: username,
            password: secret,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password {
            user: user.into(),
            password: password.into(),
        }
    }

    fn entry(config: &str, host: &str, repository: &str) -> Option<Credential> {
        let config: DockerConfig = serde_json::from_str(config).unwrap();
        config.entry(host, repository).unwrap()
    }

    #[test]
    fn the_entry_of_a_host_is_found_however_its_key_is_written() {
        for key in [
            "h:5000",
            "https://h:5000",
            "http://h:5000/",
            "https://h:5000/v2/",
        ] {
            // "dTpwOnc=" is u:p:w; only the first colon separates.
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"dTpwOnc="}}}}}}"#);
            assert!(
                entry(&config, "h:5000", "a/b") == Some(password("u", "p:w")),
                "{key}"
            );
            assert!(entry(&config, "h", "a/b").is_none(), "{key}");
            assert!(entry(&config, "h:50000", "a/b").is_none(), "{key}");
        }
    }

    #[test]
    fn docker_hub_is_found_by_its_old_key() {
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#;
        assert!(entry(config, "docker.io", "library/busybox") == Some(password("u", "p")));
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let config = r#"{"auths":{"h":{"auth":"YTph"},"h/team":{"auth":"Yjpi"}}}"#;
        assert!(entry(config, "h", "team/app") == Some(password("b", "b")));
        assert!(entry(config, "h", "teams/app") == Some(password("a", "a")));
    }

    #[test]
    fn tokens_come_before_passwords_and_empty_entries_mean_anonymous() {
        let config = r#"{"auths":{"h":{"auth":"YTph","identitytoken":"t"},"i":{},
                         "j":{"registrytoken":"r"}}}"#;
        assert!(entry(config, "h", "x") == Some(Credential::IdentityToken("t".into())));
        assert!(entry(config, "i", "x").is_none());
        assert!(entry(config, "j", "x") == Some(Credential::RegistryToken("r".into())));
    }

    #[test]
    fn a_broken_file_is_named_and_an_absent_one_means_anonymous() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(Some(dir.path()), "h", "x").unwrap().is_none());
        for text in ["{", r#"{"auths":{"h":{"auth":"???"}}}"#] {
            fs::write(dir.path().join("config.json"), text).unwrap();
            let Err(failure) = find(Some(dir.path()), "h", "x") else {
                panic!("{text} was accepted")
            };
            assert!(failure.to_string().contains("config.json"), "{failure}");
        }
    }

    #[test]
    fn helpers_are_chosen_by_host_then_by_store() {
        let config: DockerConfig =
            serde_json::from_str(r#"{"credHelpers":{"h:5000":"one"},"credsStore":"two"}"#).unwrap();
        assert_eq!(config.helper("h:5000"), Some(("one", "h:5000".into())));
        assert_eq!(
            config.helper("docker.io"),
            Some(("two", DOCKER_HUB_KEY.into()))
        );
    }

    #[test]
    fn helper_answers_are_told_apart() {
        let answer = |text| parse_helper_answer(text).unwrap();
        assert!(
            answer(r#"{"ServerURL":"h","Username":"u","Secret":"p"}"#) == Some(password("u", "p"))
        );
        assert!(
            answer(r#"{"Username":"<token>","Secret":"t"}"#)
                == Some(Credential::IdentityToken("t".into()))
        );
        assert!(answer(r#"{"Username":"","Secret":""}"#).is_none());
        assert!(parse_helper_answer("credentials").is_err());
    }

    #[test]
    fn a_helper_that_is_not_installed_is_named() {
        let Err(failure) = ask_helper("that-does-not-exist", "h") else {
            panic!("an absent helper answered")
        };
        assert!(
            failure
                .to_string()
                .contains("docker-credential-that-does-not-exist")
        );
    }

    #[test]
    fn a_helpers_output_and_exit_code_are_both_seen() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("helper");
        fs::write(
            &script,
            "#!/bin/sh\nread key\necho \"asked for $key\"\nexit 3\n",
        )
        .unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new("/bin/sh")
            .arg(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "host.example").unwrap();
        let (success, output) = wait_bounded(child).unwrap();
        assert!(!success);
        assert_eq!(output.trim(), "asked for host.example");
    }
}
