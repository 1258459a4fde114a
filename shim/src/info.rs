//! `-info`, `-v` and `--help`: what this shim and its runtime can do.

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

/// How the program is used.
const HELP: &str = "\
containerd's shim that runs containers with the xebec runtime.

Usage: containerd-shim-xebec-v2 [FLAGS] ACTION

Actions of containerd, which runs them in the bundle:
  start    find or make the shim of a container and print its address
  delete   clean up after a shim that is gone
Actions for people:
  debug    print what a running shim knows of itself, its containers, their
           processes and streams, and of the last calls, as JSON
Instead of an action:
  -info    print a RuntimeInfo for the options on standard input (protobuf)
  -v       print the version
  --help   print this text

Flags, with one dash or two, before the action:
  -namespace NS         containerd namespace (k8s.io, default, moby, ...)
  -id ID                container
  -address PATH         containerd's socket (debug: /run/containerd/containerd.sock)
  -publish-binary PATH  containerd's program (start)
  -bundle DIR           bundle (default: the current directory; debug: what
                        containerd has for namespace and id)
  -socket PATH          socket of the shim (debug)
  -debug                verbose log (start)

Examples:
  containerd-shim-xebec-v2 -namespace k8s.io -id 3f2a... debug
  containerd-shim-xebec-v2 -socket /run/containerd/s/1c9f... debug | jq .containers

The exit code is 1 after an error, which standard error tells in one line.
";

/// Prints how the program is used.
pub fn help() -> Result<()> {
    std::io::stdout()
        .write_all(HELP.as_bytes())
        .context(|| "print the help".into())
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
