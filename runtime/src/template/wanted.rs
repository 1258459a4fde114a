//! Of which template a container is to be a clone, as its annotations say. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::awareness::Annotations;
use super::record::MemoryMode;
use crate::error::{Error, Result};
use crate::state::ContainerId;

/// How the names of all such annotations begin.
pub const CLONE_ANNOTATIONS: &str = "dev.xebec.clone.";
/// Annotation with the name of the template. A pod's annotations are those of all its containers:
/// followed by a dot and a container's name it is for that one alone.
const TEMPLATE: &str = "dev.xebec.clone.template";
/// Annotation that says where the memory comes from, for all or one in the same way.
const MEMORY: &str = "dev.xebec.clone.memory";

/// What containerd and CRI-O say of a pod's containers: their kind, and their name in it.
const KINDS: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];
const NAMES: [&str; 2] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.container.name",
];
/// The kind that only holds a pod's namespaces, and has its annotations, too.
const SANDBOX: &str = "sandbox";

/// A template that a container is to be a clone of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedTemplate {
    /// Its name: an annotation never leads out of the directory of templates.
    pub name: ContainerId,
    /// Where the memory comes from.
    pub memory: MemoryMode,
}

impl WantedTemplate {
    /// What these annotations ask for, if they ask for a clone at all.
    ///
    /// # Errors
    /// Names the annotation that makes no sense.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>> {
        wanted(annotations)
    }
}

/// The same of any annotations.
pub(crate) fn wanted(annotations: &impl Annotations) -> Result<Option<WantedTemplate>> {
    let is_sandbox = |key: &&str| annotations.value(key) == Some(SANDBOX);
    if KINDS.iter().any(is_sandbox) {
        return Ok(None);
    }
    let container = NAMES.iter().find_map(|key| annotations.value(key));
    let find = |key: &str| {
        let own = container.map(|name| format!("{key}.{name}"));
        let own = own.and_then(|key| annotations.value(&key).map(|value| (key, value)));
        own.or_else(|| Some((key.to_owned(), annotations.value(key)?)))
    };
    let wrong = |key: &str, reason: &dyn std::fmt::Display| {
        Error::InvalidArgument(format!("annotation {key}: {reason}"))
    };
    let Some((key, name)) = find(TEMPLATE) else {
        return Ok(None);
    };
    let no_name = |_| wrong(&key, &format_args!("{name:?} is no name of a template"));
    let name = name.parse().map_err(no_name)?;
    let memory = match find(MEMORY) {
        Some((key, mode)) => mode.parse().map_err(|error| wrong(&key, &error))?,
        None => MemoryMode::Eager,
    };
    Ok(Some(WantedTemplate { name, memory }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> Result<Option<(String, MemoryMode)>> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let annotations = annotations.iter().map(own).collect();
        let wanted = WantedTemplate::of(&annotations)?;
        Ok(wanted.map(|wanted| (wanted.name.to_string(), wanted.memory)))
    }

    #[test]
    fn a_container_names_a_template_and_how_it_has_its_memory() {
        let template = ("dev.xebec.clone.template", "warm");
        let found = |mode| Some(("warm".to_owned(), mode));
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[("dev.xebec.clone.memory", "share")]).unwrap(), None);
        assert_eq!(of(&[template]).unwrap(), found(MemoryMode::Eager));
        let share = [template, ("dev.xebec.clone.memory", "share")];
        assert_eq!(of(&share).unwrap(), found(MemoryMode::Share));
    }

    #[test]
    fn of_a_pods_containers_each_may_have_its_own_and_the_one_that_holds_it_has_none() {
        let name = |name| ("io.kubernetes.cri.container-name", name);
        let one = ("dev.xebec.clone.template.web", "warm");
        let all = ("dev.xebec.clone.template", "other");
        let memory = ("dev.xebec.clone.memory.web", "uffd");
        let found = |name: &str, mode| Some((name.to_owned(), mode));
        let web = of(&[one, all, memory, name("web")]).unwrap();
        assert_eq!(web, found("warm", MemoryMode::Uffd));
        let side = of(&[one, all, memory, name("side")]).unwrap();
        assert_eq!(side, found("other", MemoryMode::Eager));
        assert_eq!(of(&[one, name("side")]).unwrap(), None);
        for kind in KINDS {
            assert_eq!(of(&[all, (kind, "sandbox")]).unwrap(), None, "{kind}");
        }
    }

    #[test]
    fn no_annotation_leads_out_of_the_directory_of_templates() {
        for name in ["", "/srv/mine", "../mine", "a/b", ".."] {
            let error = of(&[("dev.xebec.clone.template", name)]).expect_err(name);
            let error = error.to_string();
            assert!(error.contains("dev.xebec.clone.template: "), "{error}");
        }
        let wrong = [
            ("dev.xebec.clone.template", "t"),
            ("dev.xebec.clone.memory", "all"),
        ];
        let error = of(&wrong).expect_err("no mode").to_string();
        assert!(error.contains("dev.xebec.clone.memory: "), "{error}");
    }
}
