//! Proving who asks: Basic, and Bearer tokens from a registry's authorization server.
//!
//! See the distribution project's "Token Authentication Specification" and "OAuth2" pages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::HeaderValue;
use reqwest::{Client, Response, Url};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::clients::{Clients, Route};
use super::credentials::Credential;
use super::failure::Failure;
use super::hosts::{Endpoint, TlsPolicy, is_loopback};
use super::keychain::Keychain;

/// A token is not used in its last seconds, or the last quarter of its life if that is less: the
/// request must still arrive.
const MARGIN: Duration = Duration::from_secs(10);
/// What the specification says when the server names no lifetime.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);
/// Tokens are a few KiB; anything larger is not one.
const TOKEN_LIMIT: usize = 1 << 20;

/// What a request is about, as credentials are looked up for it.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    /// The registry's name in the reference, not that of a mirror.
    pub(super) host: &'a str,
    /// The repository.
    pub(super) repository: &'a str,
    /// Token scopes, separated by blanks.
    pub(super) scope: &'a str,
}

/// `Authorization` headers by endpoint and scope, as long as they are valid.
pub(super) struct Authorizer {
    keychain: Arc<Keychain>,
    held: Mutex<HashMap<(String, String), Held>>,
    /// Taken while a header is obtained: whoever was refused at the same time gets the same one.
    turn: tokio::sync::Mutex<()>,
}

struct Held {
    header: HeaderValue,
    until: Option<Instant>,
    challenges: Vec<String>,
}

/// What is in hand for a request.
pub(super) enum InHand {
    /// A header that is valid.
    Valid(HeaderValue),
    /// The challenges in answer to which a header was obtained that is valid no more.
    Outlived(Vec<String>),
    Nothing,
}

impl Authorizer {
    pub(super) fn new(keychain: Keychain) -> Self {
        Self {
            keychain: Arc::new(keychain),
            held: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The header in hand for `subject` at `endpoint`, if any.
    fn header(&self, endpoint: &Endpoint, subject: Subject<'_>) -> Option<HeaderValue> {
        match self.in_hand(endpoint, subject) {
            InHand::Valid(header) => Some(header),
            InHand::Outlived(_) | InHand::Nothing => None,
        }
    }

    /// What is in hand for `subject` at `endpoint`.
    pub(super) fn in_hand(&self, endpoint: &Endpoint, subject: Subject<'_>) -> InHand {
        match self.held().get(&key(endpoint, subject)) {
            None => InHand::Nothing,
            Some(held) if held.until.is_some_and(|until| until <= Instant::now()) => {
                InHand::Outlived(held.challenges.clone())
            }
            Some(held) => InHand::Valid(held.header.clone()),
        }
    }

    /// Obtains a header in answer to the `WWW-Authenticate` headers of a refusal of `refused`.
    /// Those who are refused at the same time get one together.
    pub(super) async fn renew(
        &self,
        clients: &Clients,
        endpoint: &Endpoint,
        subject: Subject<'_>,
        (challenges, refused): (&[String], Option<&HeaderValue>),
    ) -> Result<HeaderValue, Failure> {
        let _turn = self.turn.lock().await;
        if let Some(header) = self.header(endpoint, subject)
            && Some(&header) != refused
        {
            return Ok(header);
        }
        self.obtain(clients, endpoint, subject, challenges).await
    }

    fn held(&self) -> MutexGuard<'_, HashMap<(String, String), Held>> {
        self.held.lock().expect("no panic while headers are held")
    }

    async fn obtain(
        &self,
        clients: &Clients,
        endpoint: &Endpoint,
        subject: Subject<'_>,
        challenges: &[String],
    ) -> Result<HeaderValue, Failure> {
        self.held().remove(&key(endpoint, subject));
        let credential = self.credential(endpoint, subject).await?;
        let parsed: Vec<_> = challenges
            .iter()
            .flat_map(|c| challenge::parse(c))
            .collect();
        let (header, until) = match (parsed.first(), &credential) {
            (Some(Challenge::Bearer { .. }), Some(Credential::RegistryToken(token))) => {
                (sensitive(&format!("Bearer {token}"))?, None)
            }
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                    ..
                }),
                credential,
            ) => {
                let scope = if subject.scope.is_empty() {
                    scope.as_deref()
                } else {
                    None
                }
                .unwrap_or(subject.scope);
                let question = Question {
                    realm,
                    service: service.as_deref(),
                    scope,
                };
                question.ask(clients, endpoint, credential.as_ref()).await?
            }
            (Some(Challenge::Basic), Some(Credential::Password { user, password })) => {
                (basic(user, password)?, None)
            }
            (Some(Challenge::Basic), _) => {
                return Err(Failure::Unauthorized(format!(
                    "no user and password for {} are configured",
                    subject.host
                )));
            }
            (None, _) => {
                return Err(Failure::Unauthorized(
                    "no usable authentication challenge".into(),
                ));
            }
        };
        let held = Held {
            header: header.clone(),
            until,
            challenges: challenges.to_owned(),
        };
        self.held().insert(key(endpoint, subject), held);
        Ok(header)
    }

    /// A mirror has its own credentials, or none: those of the registry are not for it.
    async fn credential(
        &self,
        endpoint: &Endpoint,
        subject: Subject<'_>,
    ) -> Result<Option<Credential>, Failure> {
        let keychain = Arc::clone(&self.keychain);
        let host = credential_host(endpoint, subject);
        let repository = subject.repository.to_owned();
        // A helper or plugin is a process that may take its time.
        tokio::task::spawn_blocking(move || keychain.find(&host, &repository))
            .await
            .map_err(|error| Failure::Configuration(format!("credential lookup: {error}")))?
    }

    /// Forgets a credential that was refused, so that it is asked for anew the next time.
    pub(super) fn distrust(&self, endpoint: &Endpoint, subject: Subject<'_>) {
        self.held().remove(&key(endpoint, subject));
        let host = credential_host(endpoint, subject);
        self.keychain.distrust(&host, subject.repository);
    }
}

/// The host whose credentials are used.
fn credential_host(endpoint: &Endpoint, subject: Subject<'_>) -> String {
    if endpoint.is_mirror {
        endpoint.host()
    } else {
        subject.host.to_owned()
    }
}

fn key(endpoint: &Endpoint, subject: Subject<'_>) -> (String, String) {
    (endpoint.base.to_string(), subject.scope.to_owned())
}

fn sensitive(value: &str) -> Result<HeaderValue, Failure> {
    let mut header = HeaderValue::from_str(value)
        .map_err(|_| Failure::Unauthorized("the credential is not valid in a header".into()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, Failure> {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {pair}"))
}

/// One question to a token server.
struct Question<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scope: &'a str,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Question<'_> {
    async fn ask(
        &self,
        clients: &Clients,
        endpoint: &Endpoint,
        credential: Option<&Credential>,
    ) -> Result<Token, Failure> {
        let realm = self.checked_realm(endpoint)?;
        let same_host = realm.host_str() == endpoint.base.host_str();
        let policy = if same_host {
            endpoint.tls.clone()
        } else {
            TlsPolicy::default()
        };
        let guard = clients.guard(&endpoint.base, &realm).await?;
        let client = clients.get(&realm, &policy, guard, Route::of(&realm))?;
        let response = match credential {
            Some(Credential::IdentityToken(token)) => self.exchange(&client, realm, token).await?,
            Some(Credential::Password { user, password }) => {
                self.get(&client, realm, Some(basic(user, password)?))
                    .await?
            }
            Some(Credential::RegistryToken(_)) | None => self.get(&client, realm, None).await?,
        };
        read_answer(response, credential.is_some()).await
    }

    /// Refuses to send a secret in the clear where the registry itself speaks TLS.
    fn checked_realm(&self, endpoint: &Endpoint) -> Result<Url, Failure> {
        let realm = Url::parse(self.realm)
            .map_err(|error| Failure::Protocol(format!("token realm {:?}: {error}", self.realm)))?;
        let secure = match realm.scheme() {
            "https" => true,
            "http" => {
                endpoint.base.scheme() == "http"
                    || is_loopback(realm.host_str().unwrap_or_default())
            }
            _ => false,
        };
        if secure {
            Ok(realm)
        } else {
            Err(Failure::Protocol(format!(
                "token realm {:?} is not https",
                self.realm
            )))
        }
    }

    async fn get(
        &self,
        client: &Client,
        mut realm: Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Failure> {
        {
            let mut query = realm.query_pairs_mut();
            query.extend_pairs(self.service.map(|service| ("service", service)));
            query.extend_pairs(self.scope.split(' ').map(|scope| ("scope", scope)));
        }
        let mut request = client.get(realm);
        if let Some(authorization) = authorization {
            request = request.header(reqwest::header::AUTHORIZATION, authorization);
        }
        Ok(request.send().await?)
    }

    async fn exchange(
        &self,
        client: &Client,
        realm: Url,
        token: &str,
    ) -> Result<Response, Failure> {
        let mut form = Url::parse("http://form/").expect("a constant URL");
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "xebec-snapshotter")
            .append_pair("service", self.service.unwrap_or_default())
            .append_pair("scope", self.scope)
            .append_pair("refresh_token", token);
        let body = form.query().unwrap_or_default().to_owned();
        let content_type = (
            reqwest::header::CONTENT_TYPE,
            "application/x-www-form-urlencoded",
        );
        Ok(client
            .post(realm)
            .header(content_type.0, content_type.1)
            .body(body)
            .send()
            .await?)
    }
}

/// A header and until when it is valid.
type Token = (HeaderValue, Option<Instant>);

async fn read_answer(mut response: Response, with_credential: bool) -> Result<Token, Failure> {
    let status = response.status();
    if matches!(status.as_u16(), 400 | 401 | 403) {
        let reason = if with_credential {
            "the token server refuses the configured credentials"
        } else {
            "the token server wants credentials and none are configured"
        };
        return Err(Failure::Unauthorized(format!(
            "{reason} (HTTP status {})",
            status.as_u16()
        )));
    }
    if !status.is_success() {
        let detail = " from the token server".to_owned();
        return Err(Failure::Status {
            status: status.as_u16(),
            detail,
            retry_after: None,
        });
    }
    let received = Instant::now();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > TOKEN_LIMIT {
            let reason = "the token server's answer is too large";
            return Err(Failure::Protocol(reason.into()));
        }
        body.extend_from_slice(&piece);
    }
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|error| Failure::Protocol(format!("token server: {error}")))?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| Failure::Protocol("the token server sent no token".into()))?;
    let lifetime = answer
        .expires_in
        .map_or(DEFAULT_LIFETIME, Duration::from_secs);
    let until = received + lifetime.saturating_sub(MARGIN.min(lifetime / 4));
    Ok((sensitive(&format!("Bearer {token}"))?, Some(until)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm_is_accepted(registry: &str, realm: &str) -> bool {
        let mut endpoint = Endpoint::new("https", "h").unwrap();
        endpoint.base = Url::parse(registry).unwrap();
        Question {
            realm,
            service: None,
            scope: "",
        }
        .checked_realm(&endpoint)
        .is_ok()
    }

    #[test]
    fn secrets_do_not_leave_tls() {
        assert!(realm_is_accepted("https://h/v2/", "https://auth/token"));
        assert!(realm_is_accepted("http://h/v2/", "http://auth/token"));
        assert!(realm_is_accepted(
            "https://h/v2/",
            "http://127.0.0.1:5001/token"
        ));
        assert!(!realm_is_accepted("https://h/v2/", "http://auth/token"));
        assert!(!realm_is_accepted("https://h/v2/", "ftp://auth/token"));
        assert!(!realm_is_accepted("https://h/v2/", "not a url"));
    }

    #[test]
    fn an_expired_header_is_not_used() {
        let authorizer = Authorizer::new(Keychain::default());
        let endpoint = Endpoint::new("https", "h").unwrap();
        let subject = Subject {
            host: "h",
            repository: "r",
            scope: "repository:r:pull",
        };
        let now = Instant::now();
        for (until, valid) in [(None, true), (Some(now + MARGIN), true), (Some(now), false)] {
            let header = HeaderValue::from_static("Bearer x");
            authorizer.held.lock().unwrap().insert(
                key(&endpoint, subject),
                Held {
                    header,
                    until,
                    challenges: Vec::new(),
                },
            );
            assert_eq!(authorizer.header(&endpoint, subject).is_some(), valid);
        }
        let other = Subject {
            scope: "repository:r:pull,push",
            ..subject
        };
        assert!(authorizer.header(&endpoint, other).is_none());
    }
}
