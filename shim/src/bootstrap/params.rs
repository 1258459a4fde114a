//! What `start` learns from its standard input and the bundle's `config.json`.

use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::Any;
use xebec_proto::bootstrap::BootstrapParams;

use crate::args::Args;
use crate::error::{Context, Error, Result};
use crate::options;

/// Annotations that put several containers into one shim, the stronger one first.
const GROUP_ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];
/// Messages that containerd packs into the options of a handler.
const OPTION_TYPES: [&str; 2] = ["containerd.runc.v1.Options", "runtimeoptions.v1.Options"];

/// Reads the options from standard input. Up to containerd 2.2 it is an `Any`; later it is a
/// bootstrap message, whose first field is the id instead of a type, and which also fills in
/// what the command line lacks.
pub(super) fn options_from_stdin(bytes: &[u8], args: &mut Args) -> Result<Option<Any>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let malformed =
        |error: prost::DecodeError| Error::InvalidArgument(format!("standard input: {error}"));
    if let Ok(any) = Any::decode(bytes)
        && any.type_url != args.id
        && (any.type_url.contains('/') || OPTION_TYPES.contains(&any.type_url.as_str()))
    {
        return Ok(Some(any));
    }
    let params = BootstrapParams::decode(bytes).map_err(malformed)?;
    if !args.id.is_empty() && params.instance_id != args.id {
        let text = format!(
            "standard input is about {:?}, not {:?}",
            params.instance_id, args.id
        );
        return Err(Error::InvalidArgument(text));
    }
    fill(&mut args.id, params.instance_id);
    fill(&mut args.namespace, params.namespace);
    fill(&mut args.address, params.containerd_grpc_address);
    fill(&mut args.publish_binary, params.containerd_binary);
    fill(&mut args.events, params.containerd_ttrpc_address);
    args.socket_directory = params.socket_dir.map(PathBuf::from);
    args.debug |= params.log_level < 0;
    let mut extensions = params
        .extensions
        .into_iter()
        .filter_map(|extension| extension.value);
    Ok(extensions
        .find(|any| OPTION_TYPES.contains(&any.type_url.rsplit('/').next().unwrap_or_default())))
}

fn fill(slot: &mut String, value: String) {
    if slot.is_empty() {
        *slot = value;
    }
}

/// The key under which containers share a shim: an annotation, or else the id.
pub(super) fn group(bundle: &Path, id: &str) -> Result<String> {
    let path = bundle.join("config.json");
    let json = match std::fs::read(&path) {
        // The bundle of a sandbox that the shim itself is to make.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(id.to_owned()),
        result => result.context(|| format!("read {}", path.display()))?,
    };
    group_in(&json, id)
        .map_err(|error| Error::InvalidArgument(format!("{}: {error}", path.display())))
}

fn group_in(config: &[u8], id: &str) -> serde_json::Result<String> {
    let annotations = options::annotations(config)?;
    let named = GROUP_ANNOTATIONS
        .iter()
        .find_map(|key| annotations.get(*key));
    Ok(named.map_or_else(|| id.to_owned(), String::clone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Action;
    use xebec_proto::bootstrap::Extension;
    use xebec_proto::{pack, runc_options};

    fn args(id: &str) -> Args {
        Args {
            action: Action::Start,
            namespace: String::new(),
            address: String::new(),
            publish_binary: String::new(),
            id: id.into(),
            bundle: None,
            socket: None,
            debug: false,
            events: String::new(),
            socket_directory: None,
            rest: Vec::new(),
        }
    }

    fn options() -> Any {
        pack(&runc_options::Options {
            binary_name: "crun".into(),
            ..Default::default()
        })
    }

    #[test]
    fn the_old_and_the_new_standard_input_give_the_same_options() {
        let params = BootstrapParams {
            instance_id: "containerd.task/1".into(),
            namespace: "k8s.io".into(),
            log_level: -4,
            containerd_grpc_address: "/c.sock".into(),
            containerd_ttrpc_address: "unix:///c.sock.ttrpc".into(),
            socket_dir: Some("/run/sockets".into()),
            extensions: vec![
                Extension {
                    value: Some(Any {
                        type_url: "acme.Spec".into(),
                        value: vec![1],
                    }),
                },
                Extension {
                    value: Some(options()),
                },
            ],
            ..Default::default()
        };
        let mut new = args("containerd.task/1");
        let decoded = options_from_stdin(&params.encode_to_vec(), &mut new).unwrap();
        assert_eq!(decoded, Some(options()));
        assert_eq!(
            (&*new.namespace, &*new.address, new.debug),
            ("k8s.io", "/c.sock", true)
        );
        assert_eq!(new.events, "unix:///c.sock.ttrpc");
        assert_eq!(new.socket_directory, Some("/run/sockets".into()));

        let mut old = args("c1");
        let decoded = options_from_stdin(&options().encode_to_vec(), &mut old).unwrap();
        assert_eq!(decoded, Some(options()));
        assert_eq!(old, args("c1"));
        assert_eq!(options_from_stdin(&[], &mut old).unwrap(), None);
    }

    #[test]
    fn standard_input_that_is_neither_is_refused() {
        assert!(options_from_stdin(&[0xff, 0xff], &mut args("c")).is_err());
        let other = BootstrapParams {
            instance_id: "d".into(),
            ..Default::default()
        };
        let error = options_from_stdin(&other.encode_to_vec(), &mut args("c")).unwrap_err();
        assert!(error.to_string().contains("\"d\""), "{error}");
    }

    #[test]
    fn the_group_comes_from_annotations_or_is_the_id() {
        let sandbox = r#""io.kubernetes.cri.sandbox-id":"pod""#;
        let label = r#""io.containerd.runc.v2.group":"mine""#;
        for (config, group) in [
            ("{}".to_owned(), "c"),
            (r#"{"annotations":null}"#.to_owned(), "c"),
            (format!(r#"{{"annotations":{{{sandbox}}}}}"#), "pod"),
            (
                format!(r#"{{"annotations":{{{sandbox},{label}}}}}"#),
                "mine",
            ),
        ] {
            assert_eq!(group_in(config.as_bytes(), "c").unwrap(), group, "{config}");
        }
        assert!(group_in(b"{", "c").is_err());
    }
}
