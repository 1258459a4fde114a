//! Templates: checkpoints that clones start from, by an unchanged CRIU.
//!
//! [`memory`] and [`files`] (pure) rewrite CRIU's images so that the memory of a process is a
//! private mapping of one page file, which all clones share; [`wire`] is how messages
//! of images are rewritten without losing what is not understood. [`flatten`] does that to a directory
//! of images, [`store`] keeps templates, [`count`] counts their clones, [`record`] says what one is,
//! [`guard`] (pure) makes the seccomp rules by which sharing is exact, [`awareness`] (pure) how a
//! program learns what it is, [`wanted`] (pure) which containers are to be clones, [`fit`] (pure)
//! which can be, [`hot`] the pages that a first request needs. The operations are those of [`crate::Runtime`].

mod awareness;
mod count;
mod files;
mod fit;
mod flatten;
mod guard;
mod hot;
mod memory;
mod record;
mod store;
mod wanted;
mod wire;

pub(crate) use awareness::{INSIDE, has_generation, signal};
pub(crate) use files::PAGE_FILE;
pub use fit::Fit;
pub(crate) use flatten::flatten;
pub(crate) use guard::Guard;
pub(crate) use hot::{HotRun, list_name, pages_name, parse_list, present_in, write_hot};
pub(crate) use memory::{Memory, PAGE, Run};
pub(crate) use record::{KeptFilesystem, VERSION};
pub use record::{MemoryMode, Template};
pub(crate) use store::TemplateDir;
pub use store::{RECORD as TEMPLATE_RECORD, TEMPLATES, Templates};
pub(crate) use wanted::wanted;
pub use wanted::{CLONE_ANNOTATIONS, WantedTemplate};
