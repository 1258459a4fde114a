//! Hooks, laid out for `execve`.

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
    /// The environment is not of its own, but what hooks of its kind inherit.
    pub(crate) inherits: bool,
    pub(crate) timeout: Option<Duration>,
}

/// Lays out a list of hooks; `kind` is for errors. A hook without an `env` of its own gets `env`.
pub(crate) fn plan(
    kind: &str,
    list: Option<&Vec<Hook>>,
    env: &[CString],
) -> Result<Vec<HookPlan>, FieldError> {
    list.into_iter()
        .flatten()
        .enumerate()
        .map(|(index, hook)| plan_one(&format!("hooks.{kind}[{index}]"), hook, env))
        .collect()
}

fn plan_one(field: &str, hook: &Hook, inherited: &[CString]) -> Result<HookPlan, FieldError> {
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
        env: match hook.env() {
            Some(_) => CStrArray::new(strings(hook.env())?, false),
            None => CStrArray::new(inherited.to_vec(), false),
        },
        inherits: hook.env().is_none(),
        timeout,
    })
}

/// Checks the hooks that the runtime runs itself, now or later in the container's life; whether
/// some of them run while the container is created.
pub(super) fn check_for_the_runtime(hooks: &Hooks) -> Result<bool, FieldError> {
    // The deprecated kind is still what most users of hooks configure.
    #[allow(deprecated)]
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        plan(kind, list.as_ref(), &[])?;
    }
    Ok(kinds[..2]
        .iter()
        .any(|(_, list)| list.as_ref().is_some_and(|list| !list.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_environment_are_taken_as_they_are_given() {
        let own = r#"{"path":"/bin/h","args":["zeroth","b"],"env":["B=2","A=1","A=3"]}"#;
        let list = [own, r#"{"path":"/bin/h"}"#, r#"{"path":"/bin/h","env":[]}"#]
            .map(|json| serde_json::from_str(json).expect("well formed"));
        let env = [c"FROM=us".to_owned()];
        let hooks = plan("poststop", Some(&list.to_vec()), &env).expect("valid");
        assert_eq!(
            hooks[0].argv.strings(),
            [c"zeroth".to_owned(), c"b".to_owned()]
        );
        assert_eq!(hooks[0].env.strings().len(), 3);
        assert_eq!(hooks[1].argv.strings(), [c"/bin/h".to_owned()]);
        assert_eq!(hooks[1].env.strings(), env);
        assert!(hooks[2].env.strings().is_empty());
    }

    #[test]
    fn hooks_need_an_absolute_path_and_a_positive_timeout() {
        for (json, fine) in [
            (r#"{"path":"/bin/h","timeout":3}"#, true),
            (r#"{"path":"bin/h"}"#, false),
            (r#"{"path":"/bin/h","timeout":0}"#, false),
        ] {
            let hook: Hook = serde_json::from_str(json).expect("well formed");
            assert_eq!(
                plan("createContainer", Some(&vec![hook]), &[]).is_ok(),
                fine,
                "{json}"
            );
        }
    }
}
