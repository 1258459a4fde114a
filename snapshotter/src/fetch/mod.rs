//! Registry access: references, credentials, hosts, blobs by range, pull and push.
//!
//! [`Registry`] is the one client of a process. A request goes to the endpoints that `hosts`
//! names, with the authorization that `auth` holds, by the connections that `clients` keeps; only
//! `registry` decides when it is tried again. Nothing here trusts an answer's length or range, and
//! whoever takes whole content (manifests, pulled blobs) gets it with its digest checked.

pub mod artifact;
mod auth;
mod blob;
mod breaker;
mod challenge;
mod clients;
mod credentials;
mod dns;
#[cfg(test)]
mod excess;
mod failure;
#[cfg(test)]
mod hostile;
mod hosts;
mod keychain;
mod kubeconfig;
mod kubelet;
mod kubernetes;
pub mod manifest;
#[cfg(test)]
mod mirrors;
pub mod multipart;
#[cfg(test)]
mod outage;
mod pace;
mod passed;
mod platform;
mod pull;
mod push;
mod range;
mod reference;
mod referrers;
mod registry;
mod request;
#[cfg(test)]
mod scattered;
mod several;
mod source;
#[cfg(test)]
mod tokens;
mod trust;
mod turns;

pub use blob::RemoteBlob;
pub use breaker::{BreakerState, HostHealth};
pub use clients::plain_client;
pub use passed::{Login, Passed};
pub use platform::Platform;
pub use pull::{BlobReader, FetchedManifest};
pub use reference::ImageRef;
pub use registry::{Registry, RegistryConfig};
pub use source::{BlobSource, FileBlob};
pub(crate) use source::{by_other_hosts, is_spoilt};
