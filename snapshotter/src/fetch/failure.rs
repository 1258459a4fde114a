//! Why one registry request failed, and whether asking again may help.

use std::time::Duration;

use crate::error::Error;

/// The outcome of one attempt, before the caller adds what was attempted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// Credentials are missing or wrong.
    #[error("{0}")]
    Unauthorized(String),
    /// The registry does not have it.
    #[error("not found")]
    NotFound,
    /// Any other status than the wanted one.
    #[error("HTTP status {status}{detail}")]
    Status {
        status: u16,
        detail: String,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// No connection, or one that broke.
    #[error("{0}")]
    Unreachable(String),
    /// Not asked, or not again, since the host has not answered for some time.
    #[error("no answer for some time, asked again in {wait:.1?} at the earliest{last}")]
    Shunned { wait: Duration, last: String },
    /// The time set for one request with its retries ran out.
    #[error("no complete answer within {seconds} s ({last})")]
    Deadline { seconds: u64, last: String },
    /// An answer that breaks the protocol, such as a range request answered with everything.
    #[error("{0}")]
    Protocol(String),
    /// Content that is not what its digest promises.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Digest { expected: String, actual: String },
    /// A local setting (hosts.toml, certificate, credential helper) that cannot be used.
    #[error("configuration: {0}")]
    Configuration(String),
}

impl Failure {
    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether the host, or what stands before it, is out of order.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Status { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }

    /// How long the server wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The crate's error, with `what` was attempted on which image at which host.
    pub(super) fn into_error(self, what: String) -> Error {
        match self {
            Self::Unauthorized(reason) => Error::Unauthorized { what, reason },
            Self::NotFound => Error::NotFound(what),
            Self::Shunned { .. } => Error::Shunned {
                what,
                reason: self.to_string(),
            },
            Self::Unreachable(_) | Self::Deadline { .. } => Error::Unavailable {
                what,
                reason: self.to_string(),
            },
            Self::Status { .. } if self.is_transient() => Error::Unavailable {
                what,
                reason: self.to_string(),
            },
            Self::Status { .. } | Self::Protocol(_) => Error::Registry {
                what,
                reason: self.to_string(),
            },
            Self::Digest { expected, actual } => Error::DigestMismatch {
                what,
                expected,
                actual,
            },
            Self::Configuration(reason) => Error::Unusable { what, reason },
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        // The chain's last links say what happened ("connection refused"); the first names the URL,
        // which may carry a signed query.
        let error = error.without_url();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        if error.is_builder() || is_certificate(&error) {
            Self::Configuration(text)
        } else {
            Self::Unreachable(text)
        }
    }
}

/// Whether TLS failed for a reason that no retry will change: an untrusted or wrong certificate.
fn is_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // An I/O error's source is that of the error inside it, not the error inside it.
    let inside = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    match inside {
        Some(inside) => is_certificate(inside),
        None => error.source().is_some_and(is_certificate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_time_may_heal_is_retried() {
        let status = |status| Failure::Status {
            status,
            detail: String::new(),
            retry_after: None,
        };
        for (failure, transient) in [
            (status(500), true),
            (status(503), true),
            (status(429), true),
            (status(400), false),
            (status(416), false),
            (Failure::NotFound, false),
            (Failure::Unauthorized("denied".into()), false),
            (Failure::Unreachable("connection refused".into()), true),
            (Failure::Protocol("no Content-Range".into()), false),
        ] {
            assert_eq!(failure.is_transient(), transient, "{failure}");
        }
    }

    #[test]
    fn a_host_that_says_anything_sensible_is_not_out_of_order() {
        let status = |status| Failure::Status {
            status,
            detail: String::new(),
            retry_after: None,
        };
        assert!(status(503).is_outage() && Failure::Unreachable(String::new()).is_outage());
        for failure in [status(500), status(429), Failure::NotFound] {
            assert!(!failure.is_outage(), "{failure}");
        }
    }

    #[test]
    fn a_wrong_certificate_is_found_however_deep_it_lies() {
        use std::io::Error as IoError;
        let of = |error: rustls::Error| IoError::other(IoError::other(error));
        let wrong = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(is_certificate(&of(wrong)));
        assert!(!is_certificate(&of(rustls::Error::HandshakeNotComplete)));
        assert!(!is_certificate(&IoError::from_raw_os_error(111)));
    }
}
