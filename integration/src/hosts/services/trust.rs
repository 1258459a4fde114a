//! The certificate authority of a host, made anew for each.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::Service;
use super::config::{CA, CERTIFICATE, KEY};
use crate::error::{Error, Result};
use crate::hosts::site::Site;

/// The bundle that every TLS client of the host reads.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Makes an authority and a certificate for the registries, and has the host trust it.
pub(super) fn install(site: &Site) -> Result<()> {
    let (authority, certificate, key) =
        issue().map_err(|error| Error::invalid("a certificate", error))?;
    site.write(CA, &authority)?;
    site.write(CERTIFICATE, certificate)?;
    site.write(KEY, key)?;
    let path = site.path(BUNDLE);
    let mut bundle = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    bundle.push_str(&authority);
    site.write(BUNDLE, bundle)
}

/// PEM texts: the authority's certificate, the registries' certificate, its key.
fn issue() -> std::result::Result<(String, String, String), rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "xebec test authority");
    let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let names = [
        Service::TLS_REGISTRY,
        Service::PRIVATE_REGISTRY,
        "127.0.0.1",
        "localhost",
    ]
    .map(|host| host.split(':').next().unwrap_or_default().to_owned());
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    Ok((issuer.pem(), certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_certificate_is_issued_with_its_key_and_authority() {
        let (authority, certificate, key) = super::issue().unwrap();
        assert!(authority.starts_with("-----BEGIN CERTIFICATE"));
        assert_ne!(authority, certificate);
        assert!(key.contains("PRIVATE KEY"));
    }
}
