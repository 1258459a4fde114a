//! What is not shown: values that look like secrets, by the name that they go by or by themselves.

const MASK: &str = "***";
const NAMES: [&str; 12] = [
    "SECRET",
    "TOKEN",
    "PASSW",
    "PASSPHRASE",
    "PWD",
    "KEY",
    "CREDENTIAL",
    "AUTH",
    "PRIVATE",
    "COOKIE",
    "SESSION",
    "SALT",
];
/// The directory where a shell is has one of these in its name.
const HARMLESS: [&str; 2] = ["PWD", "OLDPWD"];
const VALUES: [&str; 8] = [
    "-----BEGIN",
    "eyJ",
    "AKIA",
    "ghp_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "AGE-SECRET-KEY-",
];

/// `NAME=value` with the value masked where it has to be.
pub(super) fn masked(assignment: &str) -> String {
    let Some((name, value)) = assignment.split_once('=') else {
        return if is_secret(assignment) {
            MASK.to_owned()
        } else {
            assignment.to_owned()
        };
    };
    let upper = name.to_ascii_uppercase();
    let named = NAMES.iter().any(|word| upper.contains(word)) && !HARMLESS.contains(&name);
    if !value.is_empty() && (named || is_secret(value)) {
        format!("{name}={MASK}")
    } else {
        assignment.to_owned()
    }
}

/// Arguments, with the value of an option masked that follows it as a word of its own, too.
pub(super) fn masked_arguments(arguments: &[String]) -> Vec<String> {
    let mut hide = false;
    let mask = |argument: &String| {
        if std::mem::take(&mut hide) {
            return MASK.to_owned();
        }
        let upper = argument.to_ascii_uppercase();
        hide = argument.starts_with('-')
            && !argument.contains('=')
            && NAMES.iter().any(|word| upper.contains(word));
        // A script is not an assignment: only its first word can be.
        match argument.split_once('=') {
            Some((name, _)) if name.contains(char::is_whitespace) => argument.clone(),
            _ => masked(argument),
        }
    };
    arguments.iter().map(mask).collect()
}

fn is_secret(value: &str) -> bool {
    let has_password = value.split_once("://").is_some_and(|(_, rest)| {
        let authority = rest.split('/').next().unwrap_or(rest);
        authority
            .rsplit_once('@')
            .is_some_and(|(user, _)| user.contains(':'))
    });
    has_password || VALUES.iter().any(|beginning| value.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_and_the_rest_is_shown() {
        for (shown, expected) in [
            ("PATH=/usr/bin:/bin", "PATH=/usr/bin:/bin"),
            ("PWD=/srv", "PWD=/srv"),
            ("DB_PASSWORD=hush", "DB_PASSWORD=***"),
            ("api_token=hush", "api_token=***"),
            ("AWS_SECRET_ACCESS_KEY=hush", "AWS_SECRET_ACCESS_KEY=***"),
            ("URL=postgres://me:hush@db/x", "URL=***"),
            ("URL=https://db/x:y", "URL=https://db/x:y"),
            ("PEM=-----BEGIN RSA", "PEM=***"),
            ("TOKEN=", "TOKEN="),
        ] {
            assert_eq!(masked(shown), expected);
        }
        let words = ["mysql", "--password", "hush", "--port=1", "--token=x"].map(str::to_owned);
        assert_eq!(
            masked_arguments(&words),
            ["mysql", "--password", "***", "--port=1", "--token=***"]
        );
    }
}
