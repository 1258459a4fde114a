//! Registry access: references, credentials, hosts, blobs by range, pull and push.

mod reference;
mod source;

pub use reference::ImageRef;
pub use source::{BlobSource, FileBlob};
