//! Hooks that the child runs, laid out for `execve`.

use std::ffi::CString;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};

use super::{FieldError, c_string};
use crate::sys::CStrArray;

/// One hook, ready to be executed.
#[derive(Debug)]
pub(crate) struct HookPlan {
    pub(crate) path: CString,
    pub(crate) argv: CStrArray,
    pub(crate) env: CStrArray,
    pub(crate) timeout: Option<Duration>,
}

/// Lays out a list of hooks; `kind` is for errors.
pub(super) fn plan(kind: &str, list: Option<&Vec<Hook>>) -> Result<Vec<HookPlan>, FieldError> {
    list.into_iter()
        .flatten()
        .enumerate()
        .map(|(index, hook)| plan_one(&format!("hooks.{kind}[{index}]"), hook))
        .collect()
}

fn plan_one(field: &str, hook: &Hook) -> Result<HookPlan, FieldError> {
    if !hook.path().is_absolute() {
        return Err(FieldError::new(field, "path must be absolute"));
    }
    let path = c_string(field, hook.path().as_os_str().as_encoded_bytes())?;
    let strings = |list: &Option<Vec<String>>| {
        list.iter()
            .flatten()
            .map(|s| c_string(field, s.as_bytes()))
            .collect::<Result<Vec<_>, _>>()
    };
    let mut argv = strings(hook.args())?;
    if argv.is_empty() {
        argv.push(path.clone());
    }
    let timeout = match hook.timeout() {
        Some(secs) if secs <= 0 => {
            return Err(FieldError::new(field, "timeout must be greater than zero"));
        }
        secs => secs.map(|secs| Duration::from_secs(secs as u64)),
    };
    Ok(HookPlan {
        path,
        argv: CStrArray::new(argv, false),
        env: CStrArray::new(strings(hook.env())?, false),
        timeout,
    })
}

/// Whether hooks are to be run by the parent while the container is created.
pub(super) fn any_for_the_runtime(hooks: &Hooks) -> bool {
    // The deprecated kind is still what most users of hooks configure.
    #[allow(deprecated)]
    let prestart = hooks.prestart();
    [prestart, hooks.create_runtime()]
        .into_iter()
        .any(|l| l.as_ref().is_some_and(|l| !l.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_need_an_absolute_path_and_a_positive_timeout() {
        for (json, fine) in [
            (r#"{"path":"/bin/h","timeout":3}"#, true),
            (r#"{"path":"bin/h"}"#, false),
            (r#"{"path":"/bin/h","timeout":0}"#, false),
        ] {
            let hook: Hook = serde_json::from_str(json).expect("well formed");
            assert_eq!(
                plan("createContainer", Some(&vec![hook])).is_ok(),
                fine,
                "{json}"
            );
        }
    }
}
