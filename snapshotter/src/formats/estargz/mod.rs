//! eStargz and legacy stargz: gzip members that a TOC at the blob's end makes seekable.

pub mod footer;
pub mod toc;
