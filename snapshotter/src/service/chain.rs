//! Chain IDs: the names that containerd gives to layers on top of each other (OCI image
//! specification, "Layer ChainID").
//!
//! containerd works them out from the image's configuration and looks for them before it asks for
//! a layer, whichever image that is of. So a layer must not be committed under a chain ID that its
//! content does not have: it would be another image's.

use super::labels::SNAPSHOT_REF;
use crate::digest::Digest;
use crate::snapshots::record::Record;

/// The chain ID of the layer `diff_id` on top of `parents`, topmost first.
pub(super) fn id(parents: &[Record], diff_id: &Digest) -> String {
    let Some(parent) = parents.first() else {
        return diff_id.to_string();
    };
    // What lies below a lazy layer is lazy, and has the name that it was asked for by.
    let below = parent.labels.get(SNAPSHOT_REF).map_or("", String::as_str);
    join(below, diff_id)
}

/// The chain IDs of layers with these diff IDs, bottom first.
pub(crate) fn ids(diff_ids: &[Digest]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        ids.push(match ids.last() {
            Some(below) => join(below, diff_id),
            None => diff_id.to_string(),
        });
    }
    ids
}

fn join(below: &str, diff_id: &Digest) -> String {
    Digest::of(format!("{below} {diff_id}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_id_of_a_second_layer_is_that_of_the_specification() {
        // `printf 'sha256:%s sha256:%s' A B | sha256sum`
        let below = format!("sha256:{}", "a".repeat(64));
        let diff_id = format!("sha256:{}", "b".repeat(64)).parse().unwrap();
        assert_eq!(
            join(&below, &diff_id),
            "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"
        );
        assert_eq!(id(&[], &diff_id), diff_id.to_string());
        let both = ids(&[below.parse().unwrap(), diff_id]);
        assert_eq!(both, [below.clone(), join(&below, &diff_id)]);
    }
}
