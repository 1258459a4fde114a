//! A kubeconfig: which API server, what its certificate is checked by, and who asks.
//!
//! Of the ways to prove who asks, client certificates, tokens and token files are known here, not
//! plugins (`exec`) and providers, which are for people.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, RequestBuilder};
use serde::Deserialize;

use crate::error::{Error, Result};

/// The way to one API server.
#[derive(Clone)]
pub(super) struct Access {
    path: PathBuf,
    cluster: Cluster,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize, Clone, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

impl Access {
    /// Reads a kubeconfig's current context.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let unusable = |reason: String| Error::Unusable {
            what: format!("kubeconfig {}", path.display()),
            reason,
        };
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let file: File = serde_norway::from_str(&text).map_err(|e| unusable(e.to_string()))?;
        let missing = |kind: &str, name: &str| unusable(format!("no {kind} {name:?} in it"));
        let current = &file.current_context;
        let mut contexts = file.contexts.into_iter();
        let context = contexts.find(|one| one.name == *current);
        let context = context.ok_or_else(|| missing("context", current))?.context;
        let mut clusters = file.clusters.into_iter();
        let cluster = clusters.find(|one| one.name == context.cluster);
        let mut cluster = cluster
            .ok_or_else(|| missing("cluster", &context.cluster))?
            .cluster;
        let mut users = file.users.into_iter();
        let user = users.find(|one| one.name == context.user);
        let user = user.ok_or_else(|| missing("user", &context.user))?.user;
        if user.exec.is_some() || user.auth_provider.is_some() {
            let reason = "a user who is known by exec or auth-provider is not understood here";
            return Err(unusable(reason.to_owned()));
        }
        if !cluster.server.starts_with("https://") {
            let reason = format!("server {:?} is not https", cluster.server);
            return Err(unusable(reason));
        }
        cluster
            .server
            .truncate(cluster.server.trim_end_matches('/').len());
        Ok(Self {
            path: path.to_owned(),
            cluster,
            user,
        })
    }

    /// URL of the API server, without a slash at its end.
    pub(super) fn server(&self) -> &str {
        &self.cluster.server
    }

    /// A client of its own, with what the certificates' files hold now.
    pub(super) fn client(&self) -> Result<Client> {
        super::clients::provide_crypto();
        let mut builder = Client::builder()
            .user_agent(concat!("xebec-snapshotter/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(std::time::Duration::from_secs(5));
        let ca = self.content(
            self.cluster.certificate_authority.as_deref(),
            self.cluster.certificate_authority_data.as_deref(),
        )?;
        if self.cluster.insecure_skip_tls_verify {
            builder = builder
                .tls_certs_only([])
                .tls_danger_accept_invalid_certs(true);
        } else if let Some(ca) = ca {
            let bundle = Certificate::from_pem_bundle(&ca).map_err(|e| self.unusable(&e))?;
            builder = builder.tls_certs_only(bundle);
        }
        let user = &self.user;
        let certificate = self.content(
            user.client_certificate.as_deref(),
            user.client_certificate_data.as_deref(),
        )?;
        if let Some(mut pem) = certificate {
            if let Some(key) =
                self.content(user.client_key.as_deref(), user.client_key_data.as_deref())?
            {
                pem.push(b'\n');
                pem.extend(key);
            }
            let identity = Identity::from_pem(&pem).map_err(|e| self.unusable(&e))?;
            builder = builder.identity(identity);
        }
        builder.build().map_err(|error| self.unusable(&error))
    }

    /// Adds the token in force.
    pub(super) fn authorize(&self, request: RequestBuilder) -> Result<RequestBuilder> {
        if let Some(file) = &self.user.token_file {
            let file = self.beside(file);
            let token = fs::read_to_string(&file).map_err(Error::io("read", &file))?;
            return Ok(request.bearer_auth(token.trim()));
        }
        Ok(match &self.user.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    }

    /// What is asked for, in errors.
    pub(super) fn what(&self) -> String {
        format!("pull secrets of {}", self.server())
    }

    pub(super) fn unreachable(&self, reason: &(impl Display + ?Sized)) -> Error {
        Error::Unavailable {
            what: self.what(),
            reason: reason.to_string(),
        }
    }

    /// The error for an answer that makes no sense.
    pub(super) fn broken(&self, reason: &(impl Display + ?Sized)) -> Error {
        Error::Registry {
            what: self.what(),
            reason: reason.to_string(),
        }
    }

    fn unusable(&self, reason: &impl Display) -> Error {
        Error::Unusable {
            what: format!("kubeconfig {}", self.path.display()),
            reason: reason.to_string(),
        }
    }

    /// Data given in the file itself, or in another one.
    fn content(&self, file: Option<&Path>, data: Option<&str>) -> Result<Option<Vec<u8>>> {
        if let Some(data) = data {
            let decoded = base64::engine::general_purpose::STANDARD.decode(data.trim());
            return decoded.map(Some).map_err(|error| self.unusable(&error));
        }
        let Some(file) = file.map(|file| self.beside(file)) else {
            return Ok(None);
        };
        fs::read(&file).map(Some).map_err(Error::io("read", &file))
    }

    /// Paths are relative to the kubeconfig.
    fn beside(&self, file: &Path) -> PathBuf {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        directory.join(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r"
apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: there, context: {cluster: b, user: b}}
- {name: here, context: {cluster: a, user: a, namespace: x}}
clusters:
- {name: a, cluster: {server: 'https://k.example:6443/', insecure-skip-tls-verify: true}}
users:
- {name: a, user: {tokenFile: token}}
- {name: e, user: {exec: {command: aws}}}
";

    fn read(text: &str) -> Result<Access> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, text).unwrap();
        Access::read(&path)
    }

    #[test]
    fn the_current_context_decides() {
        let access = read(GOOD).unwrap();
        assert_eq!(access.server(), "https://k.example:6443");
        assert!(access.user.token_file.is_some() && access.client().is_ok());
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (from, to, reason) in [
            ("context: here", "context: nowhere", "nowhere"),
            ("cluster: a", "cluster: c", "\"c\""),
            ("user: a,", "user: u,", "\"u\""),
            ("user: a,", "user: e,", "exec"),
            ("https://k", "http://k", "not https"),
            ("contexts:", "contexts: 1", "contexts"),
        ] {
            let error = match read(&GOOD.replacen(from, to, 1)) {
                Ok(_) => panic!("{to}"),
                Err(error) => error.to_string(),
            };
            assert!(
                error.contains(reason) && error.contains("/config"),
                "{error}"
            );
        }
    }
}
