//! Layers that have a name here but are not in the store: the Nydus form of their image made them
//! needless, until somebody builds on them.

use super::chain;
use super::labels::{self, Request};
use super::lowers::needed;
use crate::error::{Error, Result};
use crate::mount::Lazy;
use crate::snapshots::record::Record;

/// Pulls the layers that the tree of `parents`, topmost first, needs and that are not here.
pub(super) fn complete(lazy: &Lazy, parents: &[Record]) -> Result<()> {
    for at in (0..needed(parents).len()).rev() {
        let is_here = |layer| lazy.contains(layer);
        if !parents[at].layer.is_none_or(is_here) {
            pull(lazy, &parents[at], &parents[at + 1..])?;
        }
    }
    Ok(())
}

/// Pulls the layer of a record as if it were asked for now.
fn pull(lazy: &Lazy, record: &Record, below: &[Record]) -> Result<()> {
    let Request::Layer { target, mut source } = labels::read(&record.labels)? else {
        let what = format!("snapshot {}: nothing says where its layer is", record.id);
        return Err(Error::Internal(what));
    };
    source.alone = true;
    let refused = |reason: &str| {
        let what = format!("layer {} of image {}", source.layer, source.image);
        Error::FailedPrecondition(format!("{what}, which was not needed so far, {reason}"))
    };
    let layer = lazy.add_layer(&source)?;
    let layer = layer.ok_or_else(|| refused("cannot be kept lazily"))?;
    match lazy.diff_id(layer)? {
        Some(diff_id) if chain::id(below, &diff_id) != target => Err(refused(
            "has another diff ID than its image's configuration says",
        )),
        _ => Ok(()),
    }
}
