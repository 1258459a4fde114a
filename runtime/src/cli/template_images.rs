//! `template push` and `template pull`: templates as images, by the help of `xebec-snapshotter`,
//! which knows registries.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use xebec_checkpoints::{Tree, oci};
use xebec_runtime::{ContainerId, Error, Result, TEMPLATE_RECORD, Templates};

use super::kept::refused;
use super::snapshotter::{Said, run};

const CHUNK_SIZE: &str = "--chunk-size";
/// Bytes that are fetched for a page, if not told otherwise: memory is read in no order.
const CHUNK: &str = "65536";
/// What is packed, besides the record, what is needed first coming first; a template need not have it.
const PARTS: [&str; 3] = ["hot", "eager", "tmpfs"];

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec template push web-warm registry.example/web:warm\n  xebec template push web-warm 127.0.0.1:5000/web:warm -- --plain-http"
)]
pub(super) struct Push {
    /// Name of the template
    name: String,
    /// The image that it becomes: HOST/NAME:TAG
    #[arg(value_name = "REF")]
    image: String,
    /// Further options of `xebec-snapshotter image convert`
    #[arg(last = true)]
    options: Vec<OsString>,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec template pull registry.example/web:warm web-warm\n  xebec clone --detach --memory uffd --bundle /bundles/web web-warm web-1"
)]
pub(super) struct Pull {
    /// The image: HOST/NAME:TAG
    #[arg(value_name = "REF")]
    image: String,
    /// Name of the template, which it has had already
    name: String,
    /// Further options of `xebec-snapshotter image mount`
    #[arg(last = true)]
    options: Vec<OsString>,
}

impl Push {
    pub(super) fn carry_out(self, templates: &Templates) -> Result<u8> {
        let name: ContainerId = self.name.parse()?;
        let (directory, record) = templates.portable(&name)?;
        let draft = directory.with_file_name(format!("@push-{name}-{}", std::process::id()));
        make_directory(&draft)?;
        let pushed = pack(&draft, &directory, &record).and_then(|layout| {
            let source = format!("oci:{}", layout.display());
            let mut words = vec!["image", "convert", "--to", "zstd-chunked"];
            if !self.options.iter().any(|option| option == CHUNK_SIZE) {
                words.extend([CHUNK_SIZE, CHUNK]);
            }
            words.extend([&*source, &self.image]);
            run(&words, &self.options, Said::Shown)
        });
        let removed = fs::remove_dir_all(&draft).map_err(Error::file("remove", draft));
        pushed.and(removed).map(|()| 0)
    }
}

/// Makes a layout of a template; its directory.
fn pack(draft: &Path, template: &Path, record: &[u8]) -> Result<PathBuf> {
    let path = draft.join("layer.tar");
    let file = File::create_new(&path).map_err(Error::file("create", &path))?;
    let mut tree = Tree::new(file);
    let parts = PARTS.iter().filter(|part| template.join(part).exists());
    let packed = tree
        .add_bytes(TEMPLATE_RECORD, record)
        .and_then(|()| {
            parts
                .into_iter()
                .try_for_each(|part| tree.add(Path::new(part), &template.join(part)))
        })
        .and_then(|()| tree.finish());
    packed.map_err(|e| refused(&e))?;
    let mut layer = File::open(&path).map_err(Error::file("open", &path))?;
    let layout = draft.join("layout");
    let about = BTreeMap::from([("dev.xebec.template".to_owned(), "1".to_owned())]);
    oci::write_image(&layout, "template", &mut layer, about).map_err(|e| refused(&e))?;
    fs::remove_file(&path).map_err(Error::file("remove", path))?;
    Ok(layout)
}

impl Pull {
    pub(super) fn carry_out(self, templates: &Templates) -> Result<u8> {
        let name: ContainerId = self.name.parse()?;
        let place = templates.place(&name);
        make_directory(&place)?;
        let shown = place.display().to_string();
        let pulled = run(
            &["image", "mount", &self.image, &shown],
            &self.options,
            Said::Shown,
        )
        .and_then(|()| templates.get(&name).map(drop));
        if let Err(error) = pulled {
            // The cause is what the caller has to hear of.
            let _ = remove(templates, &name);
            return Err(error);
        }
        Ok(0)
    }
}

/// Removes a template, or takes one away that is an image.
pub(super) fn remove(templates: &Templates, name: &ContainerId) -> Result<()> {
    let place = templates.place(name);
    let device = |path: &Path| fs::symlink_metadata(path).map(|found| found.dev()).ok();
    let parent = place.parent().unwrap_or(&place);
    if device(&place).is_none() || device(&place) == device(parent) {
        return templates.remove(name);
    }
    let shown = place.display().to_string();
    run(&["image", "unmount", &shown], &[], Said::Shown)?;
    fs::remove_dir(&place).map_err(Error::file("remove", place))
}

fn make_directory(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    if let Some(parent) = path.parent() {
        let mut parents = DirBuilder::new();
        parents.recursive(true).mode(0o700);
        parents
            .create(parent)
            .map_err(Error::file("mkdir", parent))?;
    }
    builder.create(path).map_err(Error::file("mkdir", path))
}
