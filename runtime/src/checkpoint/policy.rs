//! Whether memory may be written in the open: an operator can say that it may not, and then nobody
//! who uses the library, a shim neither, gets around it.

use std::env;
use std::path::Path;

use super::CriuOptions;
use crate::error::{Error, Result};

/// Set to anything but nothing and `0`, it forbids checkpoints that are not sealed.
const VARIABLE: &str = "XEBEC_REQUIRE_ENCRYPTION";
/// So does the existence of this file.
const FILE: &str = "/etc/xebec/require-encryption";

/// Refuses a dump in the open where there is a policy against it.
pub(crate) fn check(criu: &CriuOptions) -> Result<()> {
    if criu.sealed {
        return Ok(());
    }
    let variable = env::var_os(VARIABLE).is_some_and(|value| !value.is_empty() && value != "0");
    let reason = if variable {
        VARIABLE
    } else if Path::new(FILE).exists() {
        FILE
    } else {
        return Ok(());
    };
    Err(Error::Unsupported(format!(
        "only encrypted checkpoints are allowed here ({reason}): use --encrypt-to"
    )))
}
