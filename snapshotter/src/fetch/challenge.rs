//! `WWW-Authenticate` headers (RFC 9110, section 11.6.1), as registries send them.

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from the authorization server at `realm`.
    Bearer {
        /// URL of the token endpoint.
        realm: String,
        /// Name of the registry at that server, if it has one.
        service: Option<String>,
        /// The scope the server thinks the request needs.
        scope: Option<String>,
        /// `invalid_token`, `insufficient_scope`, …
        error: Option<String>,
    },
}

/// All challenges of one header value that this client can answer, in their order.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '\t']).unwrap_or(rest.len());
        let scheme = &rest[..end];
        let (parameters, after) = parameters(&rest[end..]);
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            challenges.extend(bearer(&parameters));
        }
        rest = after.trim_start_matches([' ', ',', '\t']);
    }
    challenges
}

fn bearer(parameters: &[(String, String)]) -> Option<Challenge> {
    let take = |name: &str| {
        parameters
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.clone())
    };
    Some(Challenge::Bearer {
        realm: take("realm")?,
        service: take("service"),
        scope: take("scope"),
        error: take("error"),
    })
}

/// `key=value` pairs from the start of `text`, and what follows the last of them.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut pairs = Vec::new();
    let mut rest = text;
    loop {
        let start = rest.trim_start_matches([' ', ',', '\t']);
        let Some((key, value)) = start.split_once('=') else {
            return (pairs, rest);
        };
        // A blank or comma before the "=" means that the next scheme's name comes first.
        if key.is_empty() || key.contains([' ', ',', '\t']) {
            return (pairs, rest);
        }
        let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
            unquote(quoted)
        } else {
            let end = value.find([',', ' ', '\t']).unwrap_or(value.len());
            (value[..end].to_owned(), &value[end..])
        };
        pairs.push((key.to_owned(), value));
        rest = after;
    }
}

/// The text up to the closing quote with its escapes resolved, and what follows.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
            error: None,
        }
    }

    #[test]
    fn challenges_of_real_registries_are_understood() {
        let cases = [
            (r#"Basic realm="Registry""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://auth.example/token",service="registry.example""#,
                vec![bearer(
                    "https://auth.example/token",
                    Some("registry.example"),
                    None,
                )],
            ),
            (
                r#"Bearer realm="https://a/t", service="s", scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://a/t",
                    Some("s"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (
                r#"Negotiate, Basic realm="x, y=\"z\"", Bearer realm=https://a/t"#,
                vec![Challenge::Basic, bearer("https://a/t", None, None)],
            ),
            (r#"Bearer service="s""#, vec![]),
            ("", vec![]),
            ("Digest qop=auth", vec![]),
        ];
        for (header, expected) in cases {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn an_error_parameter_is_kept() {
        let header = r#"Bearer realm="https://a/t",error="insufficient_scope""#;
        let Challenge::Bearer { error, .. } = parse(header).remove(0) else {
            panic!("not a bearer challenge")
        };
        assert_eq!(error.as_deref(), Some("insufficient_scope"));
    }

    #[test]
    fn an_unterminated_quote_ends_with_the_header() {
        assert_eq!(
            parse(r#"Bearer realm="https://a/t"#),
            [bearer("https://a/t", None, None)]
        );
    }
}
