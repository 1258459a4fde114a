//! The server of clones' pages, which a launch starts as a program of its own and the launches after
//! it find.

use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Context, Error, Result};

/// The runtime's word for a server whose guard is there already.
const GUARDED: &str = "--guarded";

/// Serves the clones below the state root that `words` begin with.
pub fn serve(words: &[String]) -> Result<()> {
    let (root, line) = match words {
        [root] => (root, None),
        [root, word] if word == GUARDED => {
            let line = std::io::stdin().as_fd().try_clone_to_owned();
            let line = line.context(|| "duplicate standard input".into())?;
            (root, Some(line))
        }
        _ => {
            let text = format!("page-server: a state root was expected, not {words:?}");
            return Err(Error::InvalidArgument(text));
        }
    };
    xebec_runtime::serve_pages(Path::new(root), line).map_err(|error| Error::Runtime {
        operation: "page-server",
        message: error.to_string(),
    })
}
