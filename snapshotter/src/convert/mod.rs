//! Image tools: converting images into lazily readable formats.
//!
//! [`convert`] takes an image from one [`Place`] to another; [`copy()`] does so without a change. A layer goes through it twice: `spool`
//! decompresses it into a nameless file and lists its entries; `estargz` writes them again in the
//! order that `order` gives, with every chunk a gzip member of its own, or `zstdchunked` as they
//! are, with every chunk a zstd frame, and a `tarsplit`. `hot` cuts files into chunks. Members and
//! frames are made by the threads of `member`; `target` knows the formats. The same input gives the
//! same digests.

mod archive;
mod beside;
mod containerd;
mod copy;
mod entry;
mod estargz;
mod guided;
mod hot;
mod image;
mod inspect;
mod layer;
mod layout;
mod member;
mod nydus;
mod optimize;
mod order;
mod place;
mod progress;
mod reuse;
mod spool;
mod store;
pub(crate) mod tar;
mod target;
mod tarsplit;
mod undo;
mod zstdchunked;

pub use archive::{Archive, ArchiveKind};
pub use containerd::ContainerdImage;
pub use copy::copy;
pub use guided::{Optimized, convert_by_profile};
pub use image::{Format, ImageReport, Options, Report, convert, default_temp_dir};
pub use inspect::{
    How, InspectOptions, InspectedLayer, Inspection, LayerFormat, Seen, StartUp, Waste, Wasted,
    inspect,
};
pub use layer::LayerReport;
pub use layout::Layout;
pub use optimize::{Trial, optimize};
pub use order::parse_list;
pub use place::Place;
pub use progress::Observer;
pub use target::Target;
pub use undo::Undo;
