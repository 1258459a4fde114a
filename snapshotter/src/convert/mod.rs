//! Image tools: converting images into lazily readable formats.
//!
//! [`convert`] takes an image from one [`Place`] to another. A layer goes through it twice: `spool`
//! decompresses it into a nameless file and lists its entries, `estargz` writes them again in the
//! order that `order` gives, with every chunk a gzip member of its own, made by the threads of
//! `member`. The same input gives the same digests.

mod beside;
mod entry;
mod estargz;
mod image;
mod inspect;
mod layer;
mod layout;
mod member;
mod order;
mod place;
mod progress;
mod reuse;
mod spool;
pub(crate) mod tar;

pub use image::{
    DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, Format, ImageReport, Options, Report, convert,
    default_temp_dir,
};
pub use inspect::{InspectedLayer, Inspection, LayerFormat, inspect};
pub use layer::LayerReport;
pub use layout::Layout;
pub use order::parse_list;
pub use place::Place;
pub use progress::Observer;
