//! The registry client: settings, endpoints, and the one place where requests are retried.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use reqwest::Url;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::{CredentialProviderSection, ProxyRule, RegistrySection};
use crate::error::{Error, Result};

use super::auth::{Authorizer, Subject};
use super::breaker::{self, Breakers, HostHealth};
use super::clients::{Clients, Guard, Route};
use super::credentials;
use super::failure::Failure;
use super::hosts::{self, Capability, Endpoint, TlsPolicy};
use super::keychain::Keychain;
use super::kubeconfig::Access;
use super::kubelet::Plugins;
use super::kubernetes::Secrets;
use super::passed::Passed;
use super::reference::ImageRef;
use super::several::Several;
use super::turns::Turns;

/// First pause between two attempts; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// Two threads keep several TLS streams busy; callers' threads only wait.
const THREADS: usize = 2;

/// Settings of a [`Registry`].
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Directory of `HOST/hosts.toml` files, as containerd's `config_path`.
    pub hosts_dir: Option<PathBuf>,
    /// PEM file of certificate authorities trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// Hosts (with port) that are spoken to without TLS when hosts.toml does not say otherwise.
    pub plain_http: Vec<String>,
    /// Hosts (with port) whose certificate is not checked.
    pub skip_verify: Vec<String>,
    /// Directory of docker's `config.json`; `$DOCKER_CONFIG` or `~/.docker` when not given.
    pub docker_config: Option<PathBuf>,
    /// kubelet's credential provider plugins, asked for what docker's configuration lacks.
    pub credential_provider: Option<CredentialProviderSection>,
    /// What a kubelet has passed by.
    pub passed: Option<Arc<Passed>>,
    /// The kubeconfig of a user who may see the cluster's pull secrets.
    pub kubeconfig: Option<PathBuf>,
    /// Follow redirects of public registries to private addresses, too.
    pub allow_private_redirects: bool,
    /// HTTP proxies for some hosts, such as those of a peer-to-peer distribution.
    pub proxies: Vec<ProxyRule>,
    /// Most requests that are under way to one host at once; 0 for any number.
    pub requests_per_host: usize,
    /// Limit for making one connection.
    pub connect_timeout: Duration,
    /// Longest silence of a server within one attempt.
    pub stall_timeout: Duration,
    /// How long a host may fail before requests to it fail at once.
    pub patience: Duration,
    /// Limit for one read, resolution or existence check with all its attempts.
    pub deadline: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts_dir: None,
            ca: None,
            plain_http: Vec::new(),
            skip_verify: Vec::new(),
            docker_config: None,
            credential_provider: None,
            passed: None,
            kubeconfig: None,
            allow_private_redirects: false,
            proxies: Vec::new(),
            // Less than the node's readers and prefetches may have together, more than each kind has.
            requests_per_host: 32,
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(10),
            patience: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
        }
    }
}

impl From<&RegistrySection> for RegistryConfig {
    fn from(section: &RegistrySection) -> Self {
        Self {
            hosts_dir: section.hosts_dir.clone(),
            ca: section.ca.clone(),
            plain_http: section.plain_http.clone(),
            docker_config: section.docker_config.clone(),
            credential_provider: section.credential_provider.clone(),
            kubeconfig: section
                .kubernetes
                .as_ref()
                .map(|kubernetes| kubernetes.kubeconfig.clone()),
            allow_private_redirects: section.allow_private_redirects,
            proxies: section.proxy.clone(),
            patience: Duration::from_secs(section.patience),
            requests_per_host: section.requests_per_host,
            ..Self::default()
        }
    }
}

/// A client for all registries of one process, shared by all its threads.
///
/// Its methods block; the requests themselves run on two threads of its own. Making one does not
/// touch the network.
pub struct Registry {
    pub(super) session: Arc<Session>,
    runtime: Option<Runtime>,
}

impl Registry {
    /// Starts the client's threads.
    pub fn new(config: RegistryConfig) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("fetch")
            .enable_all()
            .build()
            .map_err(|error| Error::Internal(format!("start fetch threads: {error}")))?;
        let clients = Clients::new(&config);
        let access = config.kubeconfig.as_deref().map(Access::read).transpose()?;
        let keychain = Keychain {
            docker: credentials::config_dir(config.docker_config.as_deref()),
            passed: config.passed.clone(),
            secrets: access.map(|access| Secrets::watch(&access, runtime.handle())),
            plugins: config.credential_provider.clone().map(Plugins::new),
        };
        let session = Arc::new(Session {
            handle: runtime.handle().clone(),
            clients,
            authorizer: Authorizer::new(keychain),
            endpoints: Mutex::default(),
            unlisting: Mutex::default(),
            breakers: Breakers::new(config.patience),
            turns: Turns::new(config.requests_per_host),
            several: Arc::default(),
            config,
        });
        Ok(Self {
            session,
            runtime: Some(runtime),
        })
    }

    /// How the hosts answer that were asked so far.
    pub fn health(&self) -> Vec<HostHealth> {
        self.session.breakers.health()
    }

    /// Runs `work` on the client's threads and waits for it.
    pub(super) fn block<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.session.block(work)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // A plain drop would wait for the threads, which an async caller must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What outlives a call: blobs being read hold it too.
pub(super) struct Session {
    pub(super) handle: Handle,
    pub(super) config: RegistryConfig,
    pub(super) clients: Clients,
    pub(super) authorizer: Authorizer,
    endpoints: Mutex<HashMap<String, Arc<[Arc<Endpoint>]>>>,
    /// Hosts that have said that they list no referrers: they are not asked again.
    pub(super) unlisting: Mutex<HashSet<String>>,
    pub(super) breakers: Arc<Breakers>,
    turns: Turns,
    /// Which hosts answer requests for several ranges.
    pub(super) several: Arc<Several>,
}

impl Session {
    /// Spawned rather than polled here: works from any thread, and chunks of an answer do not wake
    /// the caller one by one.
    pub(super) fn block<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // The receiver waits until this has happened.
            let _ = sender.send(work.await);
        });
        receiver
            .recv()
            .unwrap_or_else(|_| Err(Error::Internal("the registry client has shut down".into())))
    }

    /// Runs `operation` against the endpoints of `image`'s registry that offer `capability`, in
    /// their order, until one succeeds; again after a pause while the failure of the last one, the
    /// registry itself, may be passing; all of it within the deadline. Endpoints that have not
    /// answered for some time are left out. `action` says what is attempted, in the error.
    pub(super) async fn attempt<T, F, Fut>(
        self: &Arc<Self>,
        image: &ImageRef,
        capability: Capability,
        action: &str,
        operation: F,
    ) -> Result<T>
    where
        F: Fn(Arc<Self>, Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        self.attempt_within(self.config.deadline, image, capability, action, operation)
            .await
    }

    /// The same with another limit than the configured one.
    pub(super) async fn attempt_within<T, F, Fut>(
        self: &Arc<Self>,
        limit: Duration,
        image: &ImageRef,
        capability: Capability,
        action: &str,
        operation: F,
    ) -> Result<T>
    where
        F: Fn(Arc<Self>, Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        self.attempt_avoiding(&[], limit, image, capability, action, operation)
            .await
    }

    /// The same without the hosts `avoided`, unless there are no others.
    pub(super) async fn attempt_avoiding<T, F, Fut>(
        self: &Arc<Self>,
        avoided: &[String],
        limit: Duration,
        image: &ImageRef,
        capability: Capability,
        action: &str,
        operation: F,
    ) -> Result<T>
    where
        F: Fn(Arc<Self>, Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let mut last = (
            image.host().to_owned(),
            Failure::Unreachable("no answer yet".into()),
        );
        let until = Instant::now() + limit;
        let rounds = self.rounds((image, capability, avoided), until, &mut last, operation);
        let failure = match timeout_at(until, rounds).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Deadline {
                seconds: limit.as_secs(),
                last: last.1.to_string(),
            },
        };
        Err(failure.into_error(format!("{action} of {} from {}", image.name(), last.0)))
    }

    async fn rounds<T, F, Fut>(
        self: &Arc<Self>,
        (image, capability, avoided): (&ImageRef, Capability, &[String]),
        until: Instant,
        last: &mut (String, Failure),
        operation: F,
    ) -> Result<T, Failure>
    where
        F: Fn(Arc<Self>, Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            let all = self.endpoints(image.host()).await?;
            let able = self.able(&all, capability, avoided);
            if able.is_empty() {
                let reason = format!("no host of {} offers {capability:?}", image.host());
                return Err(Failure::Configuration(reason));
            }
            for endpoint in able {
                match self.try_at(endpoint, &operation).await {
                    Ok(value) => return Ok(value),
                    Err(failure) => *last = (endpoint.label(), failure),
                }
            }
            if !last.1.is_transient() {
                return Err(last.1.clone());
            }
            let wanted = last.1.retry_after().unwrap_or_default();
            let wait = breaker::jittered(pause).max(wanted);
            if Instant::now() + wait >= until {
                // It will not have succeeded in time: whoever waits is told now.
                return Err(last.1.clone());
            }
            sleep(wait).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// The endpoints to try, in their order: without those that are avoided or were convicted of
    /// wrong bytes, unless there are no others.
    fn able<'a>(
        &self,
        all: &'a [Arc<Endpoint>],
        capability: Capability,
        avoided: &[String],
    ) -> Vec<&'a Arc<Endpoint>> {
        let able = all.iter().filter(|endpoint| endpoint.can(capability));
        let able: Vec<_> = able.collect();
        let is_good = |endpoint: &&&Arc<Endpoint>| {
            let label = endpoint.label();
            !avoided.contains(&label) && !self.breakers.is_convicted(&label)
        };
        let good: Vec<_> = able.iter().filter(is_good).copied().collect();
        if good.is_empty() || capability == Capability::Push {
            able
        } else {
            good
        }
    }

    /// The endpoint that is asked first for `capability`, if one was asked before.
    pub(super) fn first(&self, image: &ImageRef, capability: Capability) -> Option<Arc<Endpoint>> {
        let known = self.known().get(image.host()).cloned()?;
        let able = self.able(&known, capability, &[]);
        able.first().map(|endpoint| Arc::clone(endpoint))
    }

    /// Whether there are hosts for `image` that are not among `avoided`.
    pub(super) fn has_others(
        &self,
        image: &ImageRef,
        capability: Capability,
        avoided: &[String],
    ) -> bool {
        let known = self.known().get(image.host()).cloned();
        let mut able = known.iter().flat_map(|all| all.iter());
        able.any(|endpoint| endpoint.can(capability) && !avoided.contains(&endpoint.label()))
    }

    /// One attempt at one endpoint, if it is in order.
    async fn try_at<T, F, Fut>(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        operation: &F,
    ) -> Result<T, Failure>
    where
        F: Fn(Arc<Self>, Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        // Before the breaker is asked: who waits here has not failed.
        let _turn = self.turns.take(endpoint.label()).await;
        let pass = self
            .breakers
            .admit(endpoint.label())
            .map_err(|wait| Failure::Shunned {
                wait,
                last: String::new(),
            })?;
        match operation(Arc::clone(self), Arc::clone(endpoint)).await {
            Err(failure) if failure.is_outage() => {
                tracing::debug!(host = endpoint.label(), %failure, "registry request failed");
                Err(match pass.failed() {
                    Some(wait) => Failure::Shunned {
                        wait,
                        last: format!(" ({failure})"),
                    },
                    None => failure,
                })
            }
            outcome => {
                pass.answered();
                outcome
            }
        }
    }

    /// The places that answer for `host`, found once and then remembered.
    async fn endpoints(&self, host: &str) -> Result<Arc<[Arc<Endpoint>]>, Failure> {
        if let Some(known) = self.known().get(host) {
            return Ok(Arc::clone(known));
        }
        let (found, certain) = self.find_endpoints(host).await?;
        let found = hosts::with_proxies(found, &self.config.proxies)?;
        let found: Arc<[_]> = found.into_iter().map(Arc::new).collect();
        if certain {
            self.known().insert(host.to_owned(), Arc::clone(&found));
        }
        Ok(found)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<[Arc<Endpoint>]>>> {
        self.endpoints
            .lock()
            .expect("no panic while endpoints are held")
    }

    /// The endpoints of `host`, and whether that will not change.
    async fn find_endpoints(&self, host: &str) -> Result<(Vec<Endpoint>, bool), Failure> {
        if let Some(dir) = &self.config.hosts_dir
            && let Some(endpoints) = hosts::from_directory(dir, host)?
        {
            return Ok((endpoints, true));
        }
        let listed = |list: &[String]| list.iter().any(|entry| entry == host);
        if listed(&self.config.plain_http) {
            return Ok((vec![Endpoint::new("http", host)?], true));
        }
        let mut secure = Endpoint::new("https", host)?;
        if host == "docker.io" {
            secure = Endpoint::new("https", "registry-1.docker.io")?;
        }
        let unverified = listed(&self.config.skip_verify) || hosts::is_loopback(host);
        if !unverified || secure.base.port().is_none() {
            secure.tls.skip_verify = listed(&self.config.skip_verify);
            return Ok((vec![secure], true));
        }
        // As containerd does, a registry on this machine may speak either, and its certificate is
        // not checked: nobody is between. The same goes for one that is declared insecure.
        let plain = Endpoint::new("http", host)?;
        secure.tls.skip_verify = true;
        Ok(match self.speaks_tls(&plain.base).await {
            Some(true) => (vec![secure], true),
            Some(false) => (vec![plain], true),
            None => (vec![plain], false),
        })
    }

    /// Whether a server wants TLS, judged by its answer to a plain request; none when it is down.
    async fn speaks_tls(&self, base: &Url) -> Option<bool> {
        let client = self
            .clients
            .get(base, &TlsPolicy::default(), Guard::Off, Route::of(base))
            .ok()?;
        match tokio::time::timeout(self.config.stall_timeout, client.get(base.clone()).send()).await
        {
            Ok(Ok(response)) => Some(response.status().as_u16() == 400),
            Ok(Err(error)) if error.is_connect() => None,
            Ok(Err(_)) => Some(true),
            Err(_) => None,
        }
    }
}

/// The subject of a request about `image` with the given access.
pub(super) fn subject<'a>(image: &'a ImageRef, scope: &'a str) -> Subject<'a> {
    Subject {
        host: image.host(),
        repository: image.repository(),
        scope,
    }
}

/// Token scope for reading `image`'s repository.
pub(super) fn pull_scope(image: &ImageRef) -> String {
    format!("repository:{}:pull", image.repository())
}
