//! How a program learns that it is a clone: a file that it can read at any time, and a signal that is
//! the first thing to reach its init. Pure.

use std::collections::{BTreeMap, HashMap};

/// Annotation of a container that gets the file.
const GENERATION: &str = "dev.xebec.clone.generation";
/// Annotation with the name or the number of the signal.
const SIGNAL: &str = "dev.xebec.clone.signal";

/// The directory in the container that the file `generation` is in.
pub(crate) const INSIDE: &str = "/run/xebec";

/// Signals that programs are told things by.
const NAMES: [(&str, i32); 5] = [
    ("HUP", libc::SIGHUP),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("CONT", libc::SIGCONT),
    ("WINCH", libc::SIGWINCH),
];
const LAST: i32 = 64;

/// Annotations, as a configuration or a record has them.
pub(crate) trait Annotations {
    fn value(&self, name: &str) -> Option<&str>;
}

impl Annotations for BTreeMap<String, String> {
    fn value(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

impl Annotations for Option<HashMap<String, String>> {
    fn value(&self, name: &str) -> Option<&str> {
        self.as_ref()?.get(name).map(String::as_str)
    }
}

/// Whether a container with these annotations gets the file.
pub(crate) fn has_generation(annotations: &impl Annotations) -> bool {
    annotations.value(GENERATION) == Some("true")
}

/// The signal that a clone gets.
///
/// # Errors
/// The value, if there is no such signal.
pub(crate) fn signal(annotations: &impl Annotations) -> Result<Option<i32>, String> {
    let Some(text) = annotations.value(SIGNAL) else {
        return Ok(None);
    };
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let by_name = NAMES.iter().find(|(known, _)| *known == name);
    let number = by_name.map(|(_, number)| *number).or(name.parse().ok());
    match number.filter(|number| (1..=LAST).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(format!("{SIGNAL}: unknown signal {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        let signal = |text: &str| {
            let annotations = BTreeMap::from([(SIGNAL.to_owned(), text.to_owned())]);
            signal(&annotations)
        };
        for text in ["USR2", "SIGUSR2", "12"] {
            assert_eq!(signal(text), Ok(Some(libc::SIGUSR2)), "{text}");
        }
        for text in ["", "0", "65", "NONE", "-1"] {
            assert!(signal(text).is_err(), "{text}");
        }
        assert_eq!(super::signal(&BTreeMap::new()), Ok(None));
    }
}
