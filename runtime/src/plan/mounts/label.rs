//! `linux.mountLabel`, and as which option of a file system it is given.

use oci_spec::runtime::Spec;

use super::super::FieldError;

/// Annotation of crun's that chooses the option.
const CONTEXT_TYPE: &str = "run.oci.mount_context_type";

/// Options of a file system that take a label (mount(8)).
const OPTIONS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// The SELinux label of the container's mounts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountLabel<'a> {
    pub(crate) text: &'a str,
    /// One of [`OPTIONS`].
    pub(crate) option: &'static str,
}

impl<'a> MountLabel<'a> {
    /// The label of a configuration, if it has one.
    pub(crate) fn of(spec: &'a Spec) -> Result<Option<Self>, FieldError> {
        let label = spec
            .linux()
            .as_ref()
            .and_then(|it| it.mount_label().as_deref());
        let Some(text) = label.filter(|label| !label.is_empty()) else {
            return Ok(None);
        };
        let annotations = spec.annotations().as_ref();
        let option = match annotations.and_then(|all| all.get(CONTEXT_TYPE)) {
            None => OPTIONS[0],
            Some(wanted) => OPTIONS
                .into_iter()
                .find(|option| option == wanted)
                .ok_or_else(|| {
                    let reason = format!("{wanted} is none of {}", OPTIONS.join(", "));
                    FieldError::new(&format!("annotations[{CONTEXT_TYPE}]"), &reason)
                })?,
        };
        Ok(Some(Self { text, option }))
    }
}

/// Whether an option's value is a label, which may have commas.
pub(crate) fn takes_label(option: &[u8]) -> bool {
    OPTIONS.iter().any(|known| known.as_bytes() == option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(annotations: &str) -> Result<Option<&'static str>, String> {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","linux":{{"mountLabel":"u:o:t:s0"}},"annotations":{annotations}}}"#
        );
        let spec: Spec = serde_json::from_str(&text).expect("well formed");
        let label = MountLabel::of(&spec).map_err(|e| e.field)?;
        Ok(label.map(|label| label.option))
    }

    #[test]
    fn an_annotation_chooses_the_option_that_takes_the_label() {
        assert_eq!(option("{}"), Ok(Some("context")));
        let chosen = option(r#"{"run.oci.mount_context_type":"rootcontext"}"#);
        assert_eq!(chosen, Ok(Some("rootcontext")));
        let refused = option(r#"{"run.oci.mount_context_type":"all"}"#).expect_err("unknown");
        assert!(refused.contains("run.oci.mount_context_type"));
    }
}
