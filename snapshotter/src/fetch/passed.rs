//! Credentials that passed by: a kubelet hands those of a pod's pull secrets to the container
//! runtime with each `PullImage`, and we stand between them.
//!
//! A lazy layer is read long after its pull, by this daemon or its successor, so that they are kept
//! in a file that only its owner can read.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::credentials::{Credential, decode_auth};
use super::reference::ImageRef;
use crate::error::{Error, Result};

/// Most repositories that are remembered; the one that was pulled longest ago is forgotten.
const MAX_HELD: usize = 1024;
/// How long a credential that the registry has refused is not offered.
const REFUSED: Duration = Duration::from_mins(5);

/// A login as the container runtime interface has it (`runtime.v1.AuthConfig`).
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `USER:PASSWORD`, in place of the two.
    pub auth: String,
    /// The registry that it is for; empty for that of the image.
    pub server_address: String,
    /// An OAuth 2 refresh token.
    pub identity_token: String,
    /// A bearer token.
    pub registry_token: String,
}

impl Login {
    fn credential(&self) -> std::result::Result<Option<Credential>, String> {
        if !self.registry_token.is_empty() {
            return Ok(Some(Credential::RegistryToken(self.registry_token.clone())));
        }
        if !self.identity_token.is_empty() {
            return Ok(Some(Credential::IdentityToken(self.identity_token.clone())));
        }
        if !self.auth.is_empty() {
            let (user, password) = decode_auth(&self.auth)?;
            return Ok(Some(Credential::Password { user, password }));
        }
        let (user, password) = (self.username.clone(), self.password.clone());
        Ok((!user.is_empty()).then_some(Credential::Password { user, password }))
    }

    /// Whether it is for the registry `host`.
    fn is_for(&self, host: &str) -> bool {
        let address = self.server_address.as_str();
        let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
        let bare = bare.split('/').next().unwrap_or_default();
        let hub = |name: &str| name == "docker.io" || name.ends_with(".docker.io");
        bare.is_empty() || bare == host || (hub(bare) && hub(host))
    }
}

/// What passed by, by repository (`HOST/PATH`).
pub struct Passed {
    file: PathBuf,
    held: Mutex<BTreeMap<String, Held>>,
}

#[derive(Serialize, Deserialize)]
struct Held {
    login: Login,
    /// Seconds since 1970.
    at: u64,
    #[serde(skip)]
    refused: Option<Instant>,
}

impl fmt::Debug for Passed {
    /// Without any secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passed")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Passed {
    /// What an earlier daemon has kept in `file`. One that cannot be read is begun anew: it holds
    /// nothing that the next pull does not bring again.
    pub fn open(file: PathBuf) -> Self {
        let held = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "credentials of earlier pulls are lost");
                BTreeMap::new()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(file = %file.display(), %error, "credentials of earlier pulls are lost");
                }
                BTreeMap::new()
            }
        };
        let held = Mutex::new(held);
        Self { file, held }
    }

    /// Remembers the login by which `image` is pulled.
    pub fn remember(&self, image: &ImageRef, login: Login) -> Result<()> {
        if !login.is_for(image.host()) {
            return Ok(());
        }
        let usable = login.credential().map_err(|reason| Error::Unusable {
            what: format!("the login for {}", image.name()),
            reason,
        })?;
        if usable.is_none() {
            return Ok(());
        }
        let mut held = self.lock();
        let known = held.get(&image.name());
        let is_known = known.is_some_and(|known| known.login == login && known.refused.is_none());
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let fresh = Held {
            login,
            at: at.as_secs(),
            refused: None,
        };
        held.insert(image.name(), fresh);
        if is_known {
            return Ok(());
        }
        if held.len() > MAX_HELD
            && let Some((oldest, _)) = held.iter().min_by_key(|(_, held)| held.at)
        {
            let oldest = oldest.clone();
            held.remove(&oldest);
        }
        write(&self.file, &held)
    }

    /// The credential for a repository.
    pub(super) fn find(&self, repository: &str) -> Option<Credential> {
        let held = self.lock();
        let known = held.get(repository)?;
        let is_refused = known.refused.is_some_and(|since| since.elapsed() < REFUSED);
        // It was usable when it came.
        (!is_refused).then(|| known.login.credential().ok().flatten())?
    }

    /// Notes that the registry has refused it.
    pub(super) fn refuse(&self, repository: &str) {
        if let Some(known) = self.lock().get_mut(repository) {
            known.refused = Some(Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces the file, so that it is whole at any time.
fn write(file: &Path, held: &BTreeMap<String, Held>) -> Result<()> {
    let json = serde_json::to_vec(held).map_err(|error| Error::Internal(error.to_string()))?;
    let new = file.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut out| out.write_all(&json))
        .and_then(|()| fs::rename(&new, file));
    written.map_err(Error::io("write", file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn image(reference: &str) -> ImageRef {
        ImageRef::parse(reference).unwrap()
    }

    fn login(user: &str) -> Login {
        Login {
            username: user.to_owned(),
            password: "p".to_owned(),
            ..Login::default()
        }
    }

    fn user(passed: &Passed, repository: &str) -> Option<String> {
        match passed.find(repository)? {
            Credential::Password { user, .. } => Some(user),
            _ => None,
        }
    }

    #[test]
    fn a_login_is_kept_for_its_repository_and_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("logins.json");
        let passed = Passed::open(file.clone());
        passed
            .remember(&image("h.example/a/b:v1"), login("old"))
            .unwrap();
        passed
            .remember(&image("h.example/a/b:v2"), login("new"))
            .unwrap();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for passed in [passed, Passed::open(file.clone())] {
            assert_eq!(user(&passed, "h.example/a/b").as_deref(), Some("new"));
            assert_eq!(user(&passed, "h.example/a"), None);
        }
        fs::write(&file, "{").unwrap();
        assert_eq!(user(&Passed::open(file), "h.example/a/b"), None);
    }

    #[test]
    fn what_is_refused_is_not_offered_until_it_is_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let passed = Passed::open(dir.path().join("logins.json"));
        let image = image("h.example/a:v1");
        passed.remember(&image, login("u")).unwrap();
        passed.refuse("h.example/a");
        assert_eq!(user(&passed, "h.example/a"), None);
        passed.remember(&image, login("u")).unwrap();
        assert_eq!(user(&passed, "h.example/a").as_deref(), Some("u"));
    }

    #[test]
    fn every_kind_of_login_is_understood_and_one_for_another_registry_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let passed = Passed::open(dir.path().join("logins.json"));
        let image = image("h.example:5000/a:v1");
        let empty = Login::default();
        let auth = Login {
            auth: "dTpw".to_owned(),
            ..empty.clone()
        };
        let token = Login {
            registry_token: "t".to_owned(),
            ..empty.clone()
        };
        let identity = Login {
            identity_token: "i".to_owned(),
            ..empty.clone()
        };
        let wrong = Login {
            auth: "!".to_owned(),
            ..empty.clone()
        };
        let foreign = Login {
            server_address: "https://other/v1/".to_owned(),
            ..login("x")
        };
        let own = Login {
            server_address: "https://h.example:5000/v1/".to_owned(),
            ..login("y")
        };
        passed.remember(&image, empty).unwrap();
        assert_eq!(user(&passed, "h.example:5000/a"), None);
        passed.remember(&image, auth).unwrap();
        assert_eq!(user(&passed, "h.example:5000/a").as_deref(), Some("u"));
        passed.remember(&image, foreign).unwrap();
        assert_eq!(user(&passed, "h.example:5000/a").as_deref(), Some("u"));
        passed.remember(&image, own).unwrap();
        assert_eq!(user(&passed, "h.example:5000/a").as_deref(), Some("y"));
        assert!(passed.remember(&image, wrong).is_err());
        for (login, is_token) in [(token, true), (identity, false)] {
            passed.remember(&image, login).unwrap();
            let found = passed.find("h.example:5000/a").unwrap();
            assert_eq!(matches!(found, Credential::RegistryToken(_)), is_token);
        }
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let passed = Passed::open(dir.path().join("logins.json"));
        for number in 0..MAX_HELD + 10 {
            passed
                .remember(&image(&format!("h.example/a{number}:v1")), login("u"))
                .unwrap();
        }
        assert_eq!(passed.lock().len(), MAX_HELD);
    }
}
