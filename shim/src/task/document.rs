//! Documents of the OCI runtime specification that requests carry as JSON inside an `Any`.

use prost_types::Any;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The JSON object in `any`, which must be one of the type `kind`. Its fields are the runtime's to
/// judge; what is not such a document at all is refused before anything is kept of it.
pub(super) fn of(any: Option<Any>, kind: &str) -> Result<Vec<u8>> {
    let Some(any) = any else {
        return Err(Error::InvalidArgument(format!("no {kind} in the request")));
    };
    let named = any.type_url.rsplit('/').next().unwrap_or_default();
    if !named.is_empty() && named != kind {
        let text = format!("{:?} in the request where a {kind} belongs", any.type_url);
        return Err(Error::InvalidArgument(text));
    }
    let is_object = any.value.trim_ascii_start().starts_with(b"{");
    match serde_json::from_slice::<IgnoredAny>(&any.value) {
        Ok(_) if is_object => Ok(any.value),
        Ok(_) => Err(Error::InvalidArgument(format!("{kind}: no JSON object"))),
        Err(error) => Err(Error::InvalidArgument(format!("{kind}: {error}"))),
    }
}

/// An exec's process, which gets a terminal if the request says so, whatever the document says.
pub(super) fn process(any: Option<Any>, terminal: bool) -> Result<Vec<u8>> {
    #[derive(Deserialize)]
    struct Process {
        #[serde(default)]
        terminal: bool,
    }
    let json = of(any, "Process")?;
    let wrong = |error: serde_json::Error| Error::InvalidArgument(format!("Process: {error}"));
    let process: Process = serde_json::from_slice(&json).map_err(wrong)?;
    if process.terminal == terminal {
        return Ok(json);
    }
    let mut process: Map<String, Value> = serde_json::from_slice(&json).map_err(wrong)?;
    process.insert("terminal".to_owned(), terminal.into());
    serde_json::to_vec(&process).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::{of, process};
    use prost_types::Any;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.into(),
            value: value.into(),
        }
    }

    #[test]
    fn only_a_json_object_of_the_right_type_passes() {
        let process = "types.containerd.io/opencontainers/runtime-spec/1/Process";
        assert_eq!(of(Some(any(process, b"{}")), "Process").unwrap(), b"{}");
        assert_eq!(of(Some(any("", b"{\"a\":1}")), "Process").unwrap().len(), 7);
        for (any, part) in [
            (None, "no Process"),
            (Some(any("acme/Thing", b"{}")), "acme/Thing"),
            (Some(any(process, b"{")), "EOF"),
            (Some(any(process, b"[1]")), "no JSON object"),
        ] {
            let error = of(any, "Process").unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_request_decides_about_the_terminal() {
        let json = br#"{"args":["a"],"terminal":true}"#;
        assert_eq!(process(Some(any("", json)), true).unwrap(), json);
        let without = br#"{"args":["a"],"terminal":false}"#;
        assert_eq!(process(Some(any("", json)), false).unwrap(), without);
        let wrong = Some(any("", b"{\"terminal\":1}"));
        assert!(process(wrong, true).is_err());
    }
}
