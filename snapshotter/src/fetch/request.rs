//! One request to one endpoint: authorization, redirects, and what a refusal means.

use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{
    AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde::Deserialize;
use tokio::time::timeout;

use super::auth::{InHand, Subject};
use super::clients::Guard;
use super::failure::Failure;
use super::hosts::{Endpoint, TlsPolicy};
use super::pace::Pace;
use super::registry::Session;

/// Longest chain of redirects that is followed.
const MAX_REDIRECTS: usize = 5;
/// A registry's error text longer than this is cut.
const MAX_DETAIL: usize = 300;
/// Bytes of an error body that are looked at.
const MAX_ERROR_BODY: usize = 64 << 10;

impl Session {
    /// Sends a request without body to `path` below the endpoint's API root, and follows redirects.
    /// Gives the answer, whatever its status, and the URL that gave it when it is on another host.
    pub(super) async fn get(
        &self,
        endpoint: &Endpoint,
        subject: Subject<'_>,
        (method, path): (Method, &str),
        headers: &HeaderMap,
    ) -> Result<(Response, Option<Url>), Failure> {
        let mut url = endpoint.url(path, subject.host)?;
        for _ in 0..=MAX_REDIRECTS {
            let foreign = url.origin() != endpoint.base.origin();
            let make = |client: &Client| {
                client
                    .request(method.clone(), url.clone())
                    .headers(headers.clone())
            };
            let response = if foreign {
                self.send_foreign(endpoint, &url, self.config.stall_timeout, make)
                    .await?
            } else {
                self.send_authorized(endpoint, subject, make).await?
            };
            match redirect_target(&response, &url)? {
                Some(target) => url = target,
                None => return Ok((response, foreign.then_some(url))),
            }
        }
        Err(Failure::Protocol(format!(
            "more than {MAX_REDIRECTS} redirects"
        )))
    }

    /// Sends to the endpoint itself, with authorization; a 401 is answered once.
    pub(super) async fn send_authorized(
        &self,
        endpoint: &Endpoint,
        subject: Subject<'_>,
        make: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, Failure> {
        self.send_patiently(endpoint, subject, self.config.stall_timeout, make)
            .await
    }

    /// The same for a request whose body takes longer than a server may be silent.
    pub(super) async fn send_patiently(
        &self,
        endpoint: &Endpoint,
        subject: Subject<'_>,
        patience: Duration,
        make: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, Failure> {
        let route = endpoint.route(&endpoint.base);
        let client = self
            .clients
            .get(&endpoint.base, &endpoint.tls, Guard::Off, route)?;
        let prepare = |authorization| {
            let mut request = make(&client);
            for (name, value) in &endpoint.headers {
                request = request.header(name, value);
            }
            match authorization {
                Some(value) => request.header(AUTHORIZATION, value),
                None => request,
            }
        };
        let held = match self.authorizer.in_hand(endpoint, subject) {
            InHand::Valid(header) => Some(header),
            // Renewed before it is refused. Whatever goes wrong is told by the refusal.
            InHand::Outlived(challenges) => {
                let renewed = self.renew(endpoint, subject, (&challenges, None)).await;
                renewed.ok()
            }
            InHand::Nothing => None,
        };
        let response = send(prepare(held.clone()), patience).await?;
        if response.status().as_u16() != 401 {
            return Ok(response);
        }
        let challenges: Vec<_> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        drop(response);
        let refusal = (challenges.as_slice(), held.as_ref());
        let authorization = self.renew(endpoint, subject, refusal).await?;
        let response = send(prepare(Some(authorization)), patience).await?;
        if response.status().as_u16() == 401 {
            self.authorizer.distrust(endpoint, subject);
            return Err(match self.refusal(response).await {
                Failure::Unauthorized(reason) => {
                    Failure::Unauthorized(format!("the credentials are refused ({reason})"))
                }
                other => other,
            });
        }
        Ok(response)
    }

    async fn renew(
        &self,
        endpoint: &Endpoint,
        subject: Subject<'_>,
        refusal: (&[String], Option<&HeaderValue>),
    ) -> Result<HeaderValue, Failure> {
        let clients = &self.clients;
        let renewal = self.authorizer.renew(clients, endpoint, subject, refusal);
        timeout(self.config.stall_timeout, renewal)
            .await
            .map_err(|_| Failure::Unreachable("the token server does not answer".into()))?
    }

    /// Sends to a host that a redirect of `endpoint` named: it gets no credentials.
    pub(super) async fn send_foreign(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        patience: Duration,
        make: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, Failure> {
        let guard = self.clients.guard(&endpoint.base, url).await?;
        let route = endpoint.route(url);
        let client = self.clients.get(url, &TlsPolicy::default(), guard, route)?;
        send(make(&client), patience).await
    }

    /// The body of an answer, piece by piece.
    pub(super) fn pieces(&self, response: Response) -> Pieces {
        Pieces {
            response,
            patience: self.config.stall_timeout,
            pace: Pace::new(self.config.stall_timeout),
        }
    }

    /// The whole body, which must not be longer than `limit` bytes.
    pub(super) async fn body(&self, response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
        self.pieces(response).all(limit).await
    }

    /// What an answer with an unwanted status means.
    pub(super) async fn refusal(&self, response: Response) -> Failure {
        let status = response.status().as_u16();
        let retry_after = retry_after(response.headers(), SystemTime::now());
        // The status alone is a good enough reason when the text cannot be had.
        let body = self
            .body(response, MAX_ERROR_BODY)
            .await
            .unwrap_or_default();
        let detail = registry_error(&body).unwrap_or_default();
        match status {
            401 | 403 => Failure::Unauthorized(format!("HTTP status {status}{detail}")),
            404 => Failure::NotFound,
            _ => Failure::Status {
                status,
                detail,
                retry_after,
            },
        }
    }
}

/// See [`Session::pieces`].
pub(super) struct Pieces {
    response: Response,
    patience: Duration,
    pace: Pace,
}

impl Pieces {
    /// The next piece, or a failure when the server falls silent or merely trickles.
    pub(super) async fn next(&mut self) -> Result<Option<bytes::Bytes>, Failure> {
        let begun = Instant::now();
        let piece = timeout(self.patience, self.response.chunk())
            .await
            .map_err(|_| stalled(self.patience))??;
        if let Some(piece) = &piece {
            self.pace.count(begun.elapsed(), piece.len())?;
        }
        Ok(piece)
    }

    /// All of them together, which must not be more than `limit` bytes.
    async fn all(mut self, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(piece) = self.next().await? {
            if body.len() + piece.len() > limit {
                return Err(Failure::Protocol(format!(
                    "answer longer than {limit} bytes"
                )));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

/// How long the server wants to be left alone (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value)
            .ok()
            .map(|date| date.duration_since(now).unwrap_or_default()),
    }
}

async fn send(request: RequestBuilder, patience: Duration) -> Result<Response, Failure> {
    timeout(patience, request.send())
        .await
        .map_err(|_| stalled(patience))?
        .map_err(Failure::from)
}

fn stalled(patience: Duration) -> Failure {
    Failure::Unreachable(format!(
        "the server sent nothing for {} s",
        patience.as_secs()
    ))
}

impl Endpoint {
    /// URL of `path` below the API root, which for a mirror names the registry it stands in for.
    pub(super) fn url(&self, path: &str, registry: &str) -> Result<Url, Failure> {
        let mut url = self
            .base
            .join(path)
            .map_err(|error| Failure::Configuration(format!("{}{path}: {error}", self.base)))?;
        if self.is_mirror {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }
}

/// Where a redirecting answer points, resolved against the URL that gave it.
fn redirect_target(response: &Response, from: &Url) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let bad = || Failure::Protocol("redirect without a usable Location".into());
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let target = from.join(location.ok_or_else(bad)?).map_err(|_| bad())?;
    if matches!(target.scheme(), "http" | "https") {
        Ok(Some(target))
    } else {
        Err(bad())
    }
}

/// `: CODE: message` from the error document of the distribution specification.
fn registry_error(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Document = serde_json::from_slice(body).ok()?;
    let first = document.errors.first()?;
    let text = format!(": {}: {}", first.code, first.message);
    Some(
        text.chars()
            .filter(|c| !c.is_control())
            .take(MAX_DETAIL)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_error_text_is_shown_cut_and_cleaned() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\naccess"},{"code":"X"}]}"#;
        assert_eq!(registry_error(body).unwrap(), ": DENIED: noaccess");
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(1000));
        assert_eq!(registry_error(long.as_bytes()).unwrap().len(), MAX_DETAIL);
        assert_eq!(registry_error(b"<html>"), None);
        assert_eq!(registry_error(br#"{"errors":[]}"#), None);
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Fri, 27 Nov 2026 10:00:00 GMT").unwrap();
        for (value, expected) in [
            ("7", Some(7)),
            ("Fri, 27 Nov 2026 10:00:30 GMT", Some(30)),
            ("Fri, 27 Nov 2026 09:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{value}");
        }
    }

    #[test]
    fn only_mirrors_are_told_the_registrys_name() {
        let mut endpoint = Endpoint::new("https", "m:5000").unwrap();
        let url = |endpoint: &Endpoint| endpoint.url("a/b/manifests/v1", "up").unwrap().to_string();
        assert_eq!(url(&endpoint), "https://m:5000/v2/a/b/manifests/v1");
        endpoint.is_mirror = true;
        assert_eq!(url(&endpoint), "https://m:5000/v2/a/b/manifests/v1?ns=up");
    }
}
