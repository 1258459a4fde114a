//! All sources of credentials, in their order: docker's configuration, what a kubelet has passed
//! by, the cluster's pull secrets, kubelet's plugins.

use std::path::PathBuf;
use std::sync::Arc;

use super::credentials::{self, Credential};
use super::failure::Failure;
use super::kubelet::Plugins;
use super::kubernetes::Secrets;
use super::passed::Passed;

/// Where credentials come from.
#[derive(Default)]
pub(super) struct Keychain {
    /// Directory of docker's `config.json`.
    pub(super) docker: Option<PathBuf>,
    pub(super) passed: Option<Arc<Passed>>,
    pub(super) secrets: Option<Arc<Secrets>>,
    pub(super) plugins: Option<Plugins>,
}

impl Keychain {
    /// The credential for `repository` at `host`, or none for anonymous access. Blocks for as long
    /// as helpers and plugins may take.
    pub(super) fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>, Failure> {
        let name = format!("{host}/{repository}");
        if let Some(found) = credentials::find(self.docker.as_deref(), host, repository)? {
            return Ok(Some(found));
        }
        let passed = self.passed.as_ref();
        if let Some(found) = passed.and_then(|passed| passed.find(&name)) {
            return Ok(Some(found));
        }
        let secrets = self.secrets.as_ref();
        if let Some(found) = secrets.and_then(|secrets| secrets.find(host, repository)) {
            return Ok(Some(found));
        }
        match &self.plugins {
            Some(plugins) => plugins.find(&name),
            None => Ok(None),
        }
    }

    /// Forgets a credential that was refused, so that another one is looked for the next time.
    pub(super) fn distrust(&self, host: &str, repository: &str) {
        let name = format!("{host}/{repository}");
        if let Some(passed) = &self.passed {
            passed.refuse(&name);
        }
        if let Some(plugins) = &self.plugins {
            plugins.forget(&name);
        }
    }
}
