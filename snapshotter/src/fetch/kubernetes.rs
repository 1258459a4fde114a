//! Kubernetes pull secrets, by a kubeconfig: those of type `kubernetes.io/dockerconfigjson` and
//! `kubernetes.io/dockercfg`, listed once and then watched.
//!
//! Two calls of the API are enough for that (Kubernetes API concepts, "Efficient detection of
//! changes"), spoken by the same HTTP client as registries. A secret that changes is known within
//! moments, before anything is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use reqwest::{Client, Response, Url};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::breaker::jittered;
use super::credentials::{Credential, Docker};
use super::kubeconfig::Access;
use crate::error::{Error, Result};

/// The types of secrets, each with the key of its document.
const TYPES: [(&str, &str); 2] = [
    ("kubernetes.io/dockerconfigjson", ".dockerconfigjson"),
    ("kubernetes.io/dockercfg", ".dockercfg"),
];
/// Secrets of one answer to a list.
const PAGE: &str = "200";
/// Longest answer to a list, and longest event of a watch. A secret has 1 MiB at most.
const MAX_PAGE: usize = 64 << 20;
const MAX_EVENT: usize = 4 << 20;
/// Most secrets that are kept.
const MAX_SECRETS: usize = 10_000;
/// How long the server may keep a watch open; then it is begun anew, with new credentials of ours.
const WATCH: Duration = Duration::from_mins(5);
/// Time for a list, or for a watch to begin.
const PATIENCE: Duration = Duration::from_secs(15);
/// The first pause after a failure; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// How long the first one who needs a credential waits for the first list.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// All pull secrets of a cluster, as far as they may be seen.
#[derive(Default)]
pub(super) struct Secrets {
    state: Mutex<State>,
    listed: Condvar,
}

#[derive(Default)]
struct State {
    /// By type, then namespace and name.
    known: [BTreeMap<String, Docker>; TYPES.len()],
    /// Types that were listed, or failed to be, at least once.
    tried: [bool; TYPES.len()],
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Secret>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Secret {
    metadata: Meta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

/// Why a watch has ended.
enum End {
    /// The server closes it after its time.
    Over,
    /// What we know is too old to go on from: everything is listed again.
    Stale,
}

impl Secrets {
    /// Begins to list and watch by `access`, on the runtime of the caller.
    pub(super) fn watch(access: &Access, handle: &tokio::runtime::Handle) -> Arc<Self> {
        let secrets = Arc::new(Self::default());
        for (kind, (name, _)) in TYPES.iter().enumerate() {
            let (access, weak) = (access.clone(), Arc::downgrade(&secrets));
            handle.spawn(async move {
                let mut pause = FIRST_PAUSE;
                while let Some(secrets) = weak.upgrade() {
                    let outcome = secrets.follow(&access, kind).await;
                    secrets.tried(kind);
                    drop(secrets);
                    if let Err(error) = outcome {
                        let server = access.server();
                        tracing::warn!(server, name, %error, "pull secrets are not watched for a while");
                        sleep(jittered(pause)).await;
                        pause = (pause * 2).min(LAST_PAUSE);
                    } else {
                        pause = FIRST_PAUSE;
                    }
                }
            });
        }
        secrets
    }

    /// The credential for `repository` at `host`, of whichever secret has the longest matching
    /// entry. Waits a moment for the first list.
    pub(super) fn find(&self, host: &str, repository: &str) -> Option<Credential> {
        let untried = |state: &mut State| state.tried.contains(&false);
        let waited = self
            .listed
            .wait_timeout_while(self.lock(), FIRST_LIST, untried);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let all = state.known.iter().flat_map(BTreeMap::values);
        let matching = all.filter_map(|docker| docker.best(host, repository));
        matching.max_by_key(|(len, _)| *len).map(|(_, found)| found)
    }

    /// Lists all secrets of a type, and watches them until the watch cannot go on.
    async fn follow(&self, access: &Access, kind: usize) -> Result<()> {
        let mut version = self.list(&access.client()?, access, kind).await?;
        self.tried(kind);
        loop {
            // Made anew each time: certificates and tokens of ours are renewed in their files.
            let client = access.client()?;
            let watch = self.watch_from(&client, access, kind, &mut version);
            match timeout(WATCH + PATIENCE, watch).await {
                Ok(Ok(End::Over)) | Err(_) => {}
                Ok(Ok(End::Stale)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    async fn list(&self, client: &Client, access: &Access, kind: usize) -> Result<String> {
        let mut known = BTreeMap::new();
        let mut next = String::new();
        loop {
            let mut query = vec![("limit", PAGE)];
            if !next.is_empty() {
                query.push(("continue", &next));
            }
            let mut response = get(client, access, kind, &query).await?;
            let mut body = Vec::new();
            while let Some(piece) = piece(access, &mut response, PATIENCE).await? {
                body.extend_from_slice(&piece);
                bounded(access, body.len(), MAX_PAGE)?;
            }
            let list: List =
                serde_json::from_slice(&body).map_err(|error| access.broken(&error))?;
            bounded(access, known.len() + list.items.len(), MAX_SECRETS)?;
            known.extend(list.items.iter().filter_map(|secret| read(secret, kind)));
            if list.metadata.next.is_empty() {
                tracing::info!(
                    kind = TYPES[kind].0,
                    secrets = known.len(),
                    "pull secrets are known"
                );
                self.lock().known[kind] = known;
                return Ok(list.metadata.resource_version);
            }
            next = list.metadata.next;
        }
    }

    async fn watch_from(
        &self,
        client: &Client,
        access: &Access,
        kind: usize,
        version: &mut String,
    ) -> Result<End> {
        let seconds = WATCH.as_secs().to_string();
        let query = [
            ("watch", "1"),
            ("allowWatchBookmarks", "1"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", version),
        ];
        let mut response = match get(client, access, kind, &query).await {
            Err(Error::Registry { reason, .. }) if reason.contains("410") => return Ok(End::Stale),
            response => response?,
        };
        let mut line = Vec::new();
        while let Some(piece) = piece(access, &mut response, WATCH + PATIENCE).await? {
            for part in piece.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                bounded(access, line.len(), MAX_EVENT)?;
                if line.ends_with(b"\n") {
                    let event =
                        serde_json::from_slice(&line).map_err(|error| access.broken(&error))?;
                    line.clear();
                    if let Some(end) = self.take(event, kind, version) {
                        return Ok(end);
                    }
                }
            }
        }
        Ok(End::Over)
    }

    /// Takes in one event of a watch.
    fn take(&self, event: Event, kind: usize, version: &mut String) -> Option<End> {
        if event.kind == "ERROR" {
            return Some(End::Stale);
        }
        let Ok(secret) = serde_json::from_value::<Secret>(event.object) else {
            return Some(End::Stale);
        };
        version.clone_from(&secret.metadata.resource_version);
        if event.kind == "BOOKMARK" {
            return None;
        }
        let mut state = self.lock();
        let known = &mut state.known[kind];
        known.remove(&key(&secret.metadata));
        if event.kind != "DELETED" && known.len() < MAX_SECRETS {
            known.extend(read(&secret, kind));
        }
        None
    }

    fn tried(&self, kind: usize) {
        self.lock().tried[kind] = true;
        self.listed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(meta: &Meta) -> String {
    format!("{}/{}", meta.namespace, meta.name)
}

/// A secret's document; one that cannot be read is named and left out.
fn read(secret: &Secret, kind: usize) -> Option<(String, Docker)> {
    let key = key(&secret.metadata);
    let parsed = match secret.data.get(TYPES[kind].1) {
        None => Err(format!("it has no {}", TYPES[kind].1)),
        Some(text) => base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_err(|error| error.to_string())
            .and_then(|json| Docker::parse(&json, kind == 1)),
    };
    match parsed {
        Ok(docker) => Some((key, docker)),
        Err(reason) => {
            tracing::warn!(secret = key, reason, "not a pull secret that can be used");
            None
        }
    }
}

async fn get(
    client: &Client,
    access: &Access,
    kind: usize,
    query: &[(&str, &str)],
) -> Result<Response> {
    let mut url = Url::parse(&format!("{}/api/v1/secrets", access.server()))
        .map_err(|error| access.broken(&error))?;
    url.query_pairs_mut()
        .append_pair("fieldSelector", &format!("type={}", TYPES[kind].0))
        .extend_pairs(query);
    let request = access.authorize(client.get(url))?;
    let response = timeout(PATIENCE, request.send())
        .await
        .map_err(|_| access.unreachable("no answer"))?
        .map_err(|error| access.unreachable(&super::failure::Failure::from(error)))?;
    let status = response.status().as_u16();
    match status {
        200 => Ok(response),
        401 | 403 => Err(Error::Unauthorized {
            what: access.what(),
            reason: format!("HTTP status {status}: it must allow to list and watch secrets"),
        }),
        _ => Err(Error::Registry {
            what: access.what(),
            reason: format!("HTTP status {status}"),
        }),
    }
}

async fn piece(
    access: &Access,
    response: &mut Response,
    patience: Duration,
) -> Result<Option<bytes::Bytes>> {
    timeout(patience, response.chunk())
        .await
        .map_err(|_| access.unreachable("it has fallen silent"))?
        .map_err(|error| access.unreachable(&super::failure::Failure::from(error)))
}

fn bounded(access: &Access, len: usize, limit: usize) -> Result<()> {
    if len <= limit {
        return Ok(());
    }
    Err(access.broken(&format!("an answer of more than {limit}")))
}
