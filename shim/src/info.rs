//! `-info` and `-v`: what this shim and its runtime can do.

use std::io::{Read, Write};

use prost::Message;
use prost_types::Any;
use xebec_proto::types::{RuntimeInfo, RuntimeVersion};

use crate::engine::Engine;
use crate::error::{Context, Error, Result};
use crate::options::Options;

/// Name under which containerd knows this shim.
const NAME: &str = "io.containerd.xebec.v2";
/// Type that containerd expects around the JSON of OCI features.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Annotation by which containerd 2.2 and later learn what they need not mount beforehand.
const ALLOW_MOUNTS: &str = "containerd.io/runtime-allow-mounts";
/// Types of mounts that the shim makes as the snapshotter describes them, EROFS from files too.
const MOUNTS: &str = "bind,overlay,erofs";

/// Prints a `RuntimeInfo` for the options on standard input.
pub fn info() -> Result<()> {
    let mut stdin = Vec::new();
    std::io::stdin()
        .read_to_end(&mut stdin)
        .context(|| "read standard input".into())?;
    let any = Any::decode(stdin.as_slice())
        .map_err(|error| Error::InvalidArgument(format!("standard input: {error}")))?;
    let any = (!any.type_url.is_empty()).then_some(any);
    let options = Options::decode(any.as_ref())?;
    let features = Engine::new(&options, "", None).features()?;
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: String::new(),
        }),
        options: any,
        features: Some(Any {
            type_url: FEATURES.to_owned(),
            value: features,
        }),
        annotations: [(ALLOW_MOUNTS.to_owned(), MOUNTS.to_owned())].into(),
    };
    std::io::stdout()
        .write_all(&info.encode_to_vec())
        .context(|| "print the information".into())
}

/// Prints the version for people.
pub fn version() -> Result<()> {
    let text = format!(
        "containerd-shim-xebec-v2:\n  Version: {}\n",
        env!("CARGO_PKG_VERSION")
    );
    std::io::stdout()
        .write_all(text.as_bytes())
        .context(|| "print the version".into())
}
