//! `manifest.json`, by which docker finds images in an archive.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fetch::ImageRef;

/// Most layers of one image: overlayfs takes 500, and docker fewer.
const MAX_LAYERS: usize = 1000;

/// One image of an archive. Further fields (`Parent`, `LayerSources`) say nothing that is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Item {
    /// Name in the archive of the configuration.
    pub(super) config: String,
    /// What it is called.
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) repo_tags: Vec<String>,
    /// Names in the archive of the layers, bottom first.
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) layers: Vec<String>,
}

/// Docker writes `null` for an image without a tag.
fn or_empty<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The images that `json` lists; `what` names it in errors.
pub(super) fn parse(json: &[u8], what: &str) -> Result<Vec<Item>> {
    let malformed = |reason: String| Error::Malformed {
        what: what.to_owned(),
        reason,
    };
    let items: Vec<Item> =
        serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
    for item in &items {
        if item.layers.len() > MAX_LAYERS {
            let count = item.layers.len();
            return Err(malformed(format!("an image of {count} layers")));
        }
    }
    Ok(items)
}

/// The image called `name`, the one at `@NUMBER`, or the only one.
pub(super) fn select<'a>(items: &'a [Item], name: Option<&str>, what: &str) -> Result<&'a Item> {
    let tags = || -> Vec<&str> {
        let tags = items.iter().flat_map(|item| &item.repo_tags);
        tags.map(String::as_str).collect()
    };
    let Some(name) = name else {
        return match items {
            [item] => Ok(item),
            [] => Err(Error::NotFound(format!("an image in {what}"))),
            _ => Err(Error::InvalidArgument(format!(
                "{what} holds several images: name one of {}",
                tags().join(", ")
            ))),
        };
    };
    let missing = || Error::NotFound(format!("{name} in {what} (it has {})", tags().join(", ")));
    if let Some(number) = name.strip_prefix('@') {
        let number: usize = number.parse().map_err(|_| missing())?;
        return items.get(number).ok_or_else(missing);
    }
    let wanted = full(name);
    let is_wanted = |tag: &String| tag == name || (wanted.is_some() && full(tag) == wanted);
    items
        .iter()
        .find(|item| item.repo_tags.iter().any(is_wanted))
        .ok_or_else(missing)
}

/// The name with all that docker leaves out.
fn full(name: &str) -> Option<String> {
    ImageRef::parse(name).ok().map(|name| name.to_string())
}

/// `manifest.json` for one image.
pub(super) fn write(item: Item) -> Result<Vec<u8>> {
    serde_json::to_vec(&[item])
        .map_err(|error| Error::Internal(format!("manifest.json as JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = br#"[{"Config":"4b.json","RepoTags":["busybox:latest","h:5000/b:v1"],
        "Layers":["aa/layer.tar","bb/layer.tar"],"Parent":"x"}]"#;
    const NEW: &[u8] = br#"[{"Config":"blobs/sha256/4b","RepoTags":null,
        "Layers":["blobs/sha256/aa"],"LayerSources":{"sha256:aa":{"size":1}}},
        {"Config":"blobs/sha256/5b","RepoTags":["busybox:glibc"],"Layers":null}]"#;

    #[test]
    fn old_and_new_lists_are_read() {
        let old = parse(OLD, "a").unwrap();
        assert_eq!(old[0].config, "4b.json");
        assert_eq!(old[0].layers, ["aa/layer.tar", "bb/layer.tar"]);
        let new = parse(NEW, "a").unwrap();
        assert_eq!(new[0].layers, ["blobs/sha256/aa"]);
        assert!(new[0].repo_tags.is_empty() && new[1].layers.is_empty());
    }

    #[test]
    fn an_image_is_found_by_any_spelling_of_its_name_or_by_number() {
        let (old, new) = (parse(OLD, "a").unwrap(), parse(NEW, "a").unwrap());
        for name in [
            None,
            Some("busybox"),
            Some("docker.io/library/busybox:latest"),
            Some("h:5000/b:v1"),
            Some("@0"),
        ] {
            assert_eq!(select(&old, name, "a").unwrap().config, "4b.json");
        }
        let found = select(&new, Some("busybox:glibc"), "a").unwrap();
        assert_eq!(found.config, "blobs/sha256/5b");
        for (name, says) in [
            (None, "several images"),
            (Some("busybox"), "it has busybox:glibc"),
            (Some("@2"), "@2"),
            (Some("@x"), "@x"),
        ] {
            let error = select(&new, name, "archive a").unwrap_err().to_string();
            assert!(
                error.contains(says) && error.contains("archive a"),
                "{error}"
            );
        }
        assert!(select(&[], None, "a").is_err());
    }

    #[test]
    fn forged_lists_are_refused_by_name() {
        let many = format!(
            r#"[{{"Config":"c","Layers":[{}"x"]}}]"#,
            r#""x","#.repeat(MAX_LAYERS)
        );
        for text in ["", "{}", r#"[{"Layers":[]}]"#, r#"[{"Config":7}]"#, &many] {
            let error = parse(text.as_bytes(), "manifest.json of a").unwrap_err();
            let error = error.to_string();
            assert!(
                error.starts_with("manifest.json of a: malformed"),
                "{error}"
            );
        }
    }
}
