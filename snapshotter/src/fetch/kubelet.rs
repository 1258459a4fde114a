//! Credentials from kubelet's credential provider plugins: its `CredentialProviderConfig` file and
//! the exec protocol `credentialprovider.kubelet.k8s.io/v1`.
//!
//! The plugins of a cloud give out passwords that live for hours. They are asked again when what
//! they gave has outlived its time, or when the registry has refused it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::CredentialProviderSection;

use super::credentials::{Credential, wait_bounded};
use super::failure::Failure;

/// The version of the protocol that is spoken.
const VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

/// The plugins, and what they gave.
pub(super) struct Plugins {
    section: CredentialProviderSection,
    held: Mutex<HashMap<Key, Held>>,
}

/// A plugin's name, and what its answer is for: an image, a registry, or everything.
type Key = (String, String);

struct Held {
    until: Instant,
    auth: BTreeMap<String, Login>,
}

#[derive(Deserialize)]
struct ConfigFile {
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    #[serde(rename = "apiVersion")]
    version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'static str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: String,
    kind: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum CacheKeyType {
    Image,
    Registry,
    Global,
}

#[derive(Deserialize, Clone)]
struct Login {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Plugins {
    pub(super) fn new(section: CredentialProviderSection) -> Self {
        Self {
            section,
            held: Mutex::default(),
        }
    }

    /// The credential for `image` (`HOST/REPOSITORY`), from the first plugin that has one. Blocks
    /// for as long as the plugins may take.
    pub(super) fn find(&self, image: &str) -> Result<Option<Credential>, Failure> {
        let path = &self.section.config;
        let unusable =
            |reason: String| Failure::Configuration(format!("{}: {reason}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        let config: ConfigFile =
            serde_norway::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        for provider in &config.providers {
            if !provider
                .match_images
                .iter()
                .any(|glob| matches(glob, image))
            {
                continue;
            }
            if let Some(login) = self.login(provider, image)? {
                return Ok(Some(Credential::Password {
                    user: login.username,
                    password: login.password,
                }));
            }
        }
        Ok(None)
    }

    /// Forgets what was given for `image`: it was refused.
    pub(super) fn forget(&self, image: &str) {
        let keys = [
            CacheKeyType::Image,
            CacheKeyType::Registry,
            CacheKeyType::Global,
        ];
        let keys = keys.map(|kind| scope(kind, image));
        self.held().retain(|(_, scope), _| !keys.contains(scope));
    }

    fn login(&self, provider: &Provider, image: &str) -> Result<Option<Login>, Failure> {
        for kind in [
            CacheKeyType::Image,
            CacheKeyType::Registry,
            CacheKeyType::Global,
        ] {
            let key = (provider.name.clone(), scope(kind, image));
            if let Some(held) = self.held().get(&key)
                && Instant::now() < held.until
                && let Some(login) = select(&held.auth, image)
            {
                return Ok(Some(login));
            }
        }
        let unusable = |reason: String| {
            Failure::Configuration(format!("credential provider {}: {reason}", provider.name))
        };
        let answer = self.ask(provider, image).map_err(unusable)?;
        let lifetime = answer
            .cache_duration
            .as_deref()
            .unwrap_or(&provider.default_cache_duration);
        let lifetime = duration(lifetime)
            .ok_or_else(|| unusable(format!("{lifetime:?} is not a duration")))?;
        let auth = answer.auth.unwrap_or_default();
        let login = select(&auth, image);
        if let Some(until) = Instant::now().checked_add(lifetime)
            && !lifetime.is_zero()
        {
            let key = (provider.name.clone(), scope(answer.cache_key_type, image));
            self.held().insert(key, Held { until, auth });
        }
        Ok(login)
    }

    fn ask(&self, provider: &Provider, image: &str) -> Result<Answer, String> {
        if provider.version != VERSION {
            return Err(format!(
                "apiVersion {:?} is not {VERSION}",
                provider.version
            ));
        }
        if provider.name.contains('/') {
            return Err("a name is no path".to_owned());
        }
        let question = Question {
            api_version: VERSION,
            kind: "CredentialProviderRequest",
            image,
        };
        let question = serde_json::to_string(&question).map_err(|error| error.to_string())?;
        let variables = provider.env.iter().map(|one| (&one.name, &one.value));
        let mut child = Command::new(self.section.bin_dir.join(&provider.name))
            .args(&provider.args)
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that does not read its input says what is wrong by its exit code.
            let _ = stdin.write_all(question.as_bytes());
        }
        let (success, output) = wait_bounded(child).map_err(|error| error.to_string())?;
        if !success {
            return Err("it ended with an error".to_owned());
        }
        let answer: Answer =
            serde_json::from_str(&output).map_err(|error| format!("its answer: {error}"))?;
        if answer.api_version != VERSION || answer.kind != "CredentialProviderResponse" {
            return Err(format!(
                "its answer is a {} of {}",
                answer.kind, answer.api_version
            ));
        }
        Ok(answer)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Key, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an answer is remembered for.
fn scope(kind: CacheKeyType, image: &str) -> String {
    match kind {
        CacheKeyType::Image => image.to_owned(),
        CacheKeyType::Registry => image.split('/').next().unwrap_or_default().to_owned(),
        CacheKeyType::Global => String::new(),
    }
}

/// The login of the most specific pattern that matches; empty ones mean anonymous access.
fn select(auth: &BTreeMap<String, Login>, image: &str) -> Option<Login> {
    let mut matching = auth.iter().rev().filter(|(glob, _)| matches(glob, image));
    let (_, login) = matching.next()?;
    (!login.username.is_empty() || !login.password.is_empty()).then(|| login.clone())
}

/// Whether `image` (`HOST[:PORT]/PATH`) is one of `pattern`: the same number of parts in the host's
/// name, in each of which `*` and `?` stand for characters of that part; the same port; and a path
/// that begins with the pattern's.
fn matches(pattern: &str, image: &str) -> bool {
    let split = |text: &str| {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        (name.to_owned(), port.to_owned(), path.to_owned())
    };
    let (pattern, image) = (split(pattern), split(image));
    let (globs, parts) = (pattern.0.split('.'), image.0.split('.'));
    pattern.1 == image.1
        && image.2.starts_with(&pattern.2)
        && globs.clone().count() == parts.clone().count()
        && globs
            .zip(parts)
            .all(|(glob, part)| is_like(glob.as_bytes(), part.as_bytes()))
}

/// Whether a part of a name is like a glob. Without recursion: each `*` only moves on.
fn is_like(glob: &[u8], part: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star = None;
    while from < part.len() {
        match glob.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == part[from] => {
                (at, from) = (at + 1, from + 1);
            }
            _ => match &mut star {
                Some((star_at, taken)) => {
                    *taken += 1;
                    (at, from) = (*star_at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    glob[at..].iter().all(|byte| *byte == b'*')
}

/// A duration in Go's spelling, such as `1h30m` or `0s`; none that is negative.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    #[test]
    fn images_match_as_kubelet_matches_them() {
        for (pattern, image, expected) in [
            (
                "*.dkr.ecr.*.amazonaws.com",
                "1.dkr.ecr.eu-1.amazonaws.com/a",
                true,
            ),
            (
                "*.dkr.ecr.*.amazonaws.com",
                "dkr.ecr.eu-1.amazonaws.com/a",
                false,
            ),
            ("*.azurecr.io", "my.azurecr.io/a/b", true),
            ("*.azurecr.io", "a.my.azurecr.io/a", false),
            ("gcr.io", "gcr.io/a", true),
            ("gcr.io/team", "gcr.io/team/a", true),
            ("gcr.io/team", "gcr.io/other/a", false),
            ("registry.io:8080/path", "registry.io:8080/path/a", true),
            ("registry.io:8080/path", "registry.io/path/a", false),
            ("r*g.io", "reg.io/a", true),
            ("r*g.io", "rig.ioo/a", false),
            ("a*b*c.io", "aXbYbc.io/a", true),
            ("https://gcr.io", "gcr.io/a", true),
        ] {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let seconds = |text| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("12h"), Some(43_200.0));
        assert_eq!(seconds("1h2m3.5s"), Some(3723.5));
        assert_eq!(seconds("0s"), Some(0.0));
        for bad in ["", "5", "5 s", "h", "-5s", "5d"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    /// Plugins in `dir`: one that counts how often it is asked and gives `answer`.
    fn plugins(dir: &Path, answer: &str) -> Plugins {
        let script = format!(
            "#!/bin/sh\necho \"$1 $FROM $(cat)\" >> {0}/asked\ncat {0}/answer\n",
            dir.display()
        );
        let program = dir.join("cloud");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.join("answer"), answer).unwrap();
        let config = dir.join("config.yaml");
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
             - name: cloud\n  apiVersion: {VERSION}\n  matchImages: [\"*.cloud.example\"]\n  \
             defaultCacheDuration: 1h\n  args: [get]\n  env:\n  - {{name: FROM, value: here}}\n"
        );
        fs::write(&config, text).unwrap();
        Plugins::new(CredentialProviderSection {
            config,
            bin_dir: dir.to_owned(),
        })
    }

    fn answer(kind: &str, more: &str) -> String {
        format!(
            r#"{{"apiVersion":"{VERSION}","kind":"CredentialProviderResponse",
                "cacheKeyType":"{kind}",{more}
                "auth":{{"*.cloud.example":{{"username":"u","password":"p"}}}}}}"#
        )
    }

    fn asked(dir: &Path) -> Vec<String> {
        let text = fs::read_to_string(dir.join("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_plugin_is_asked_by_the_protocol_and_its_answer_is_kept_for_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = plugins(dir.path(), &answer("Registry", ""));
        let expected = Credential::Password {
            user: "u".to_owned(),
            password: "p".to_owned(),
        };
        for image in ["a.cloud.example/x", "a.cloud.example/y"] {
            assert!(plugins.find(image).unwrap() == Some(expected.clone()));
        }
        let question = asked(dir.path());
        assert_eq!(question.len(), 1, "{question:?}");
        assert!(question[0].starts_with("get here {"), "{question:?}");
        assert!(question[0].contains(r#""image":"a.cloud.example/x""#));
        plugins.forget("a.cloud.example/y");
        plugins.find("a.cloud.example/x").unwrap();
        plugins.find("b.cloud.example/x").unwrap();
        assert_eq!(
            asked(dir.path()).len(),
            3,
            "refused once, and another registry"
        );
        assert!(plugins.find("elsewhere.example/x").unwrap().is_none());
        assert_eq!(asked(dir.path()).len(), 3, "not asked for others' images");
    }

    #[test]
    fn an_answer_that_is_not_to_be_kept_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = plugins(dir.path(), &answer("Global", r#""cacheDuration":"0s","#));
        for _ in 0..2 {
            assert!(plugins.find("a.cloud.example/x").unwrap().is_some());
        }
        assert_eq!(asked(dir.path()).len(), 2);
    }

    #[test]
    fn what_is_wrong_with_a_plugin_is_said_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = plugins(dir.path(), "no json");
        let failure = |plugins: &Plugins| match plugins.find("a.cloud.example/x") {
            Err(failure) => failure.to_string(),
            Ok(_) => panic!("it gave a credential"),
        };
        assert!(failure(&plugins).contains("cloud"), "{}", failure(&plugins));
        fs::write(
            dir.path().join("answer"),
            answer("Image", r#""cacheDuration":"1","#),
        )
        .unwrap();
        assert!(failure(&plugins).contains("duration"));
        fs::remove_file(dir.path().join("cloud")).unwrap();
        assert!(failure(&plugins).contains("cloud"));
        fs::write(dir.path().join("config.yaml"), "providers: 1").unwrap();
        assert!(failure(&plugins).contains("config.yaml"));
    }
}
