//! `checkpoint --export`: an archive or image in the place of a directory of images.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use xebec_checkpoints::archive::Compression;
use xebec_checkpoints::export::{Exported, image_of, write_archive};
use xebec_checkpoints::{ConfigDump, Room, oci};
use xebec_runtime::{
    CheckpointRequest, ContainerId, ContainerState, CriuOptions, Error, Result, Status, rfc3339,
};

use super::Context;
use super::kept::refused;

#[derive(Args, Debug)]
pub(super) struct Export {
    /// Write an archive as podman does, or an image into the new layout oci:DIR
    #[arg(long = "export", value_name = "FILE|oci:DIR", conflicts_with_all = ["pre_dump", "image_path"])]
    to: Option<String>,
    /// Compression of the archive
    #[arg(long, value_name = "KIND", default_value = "zstd", requires = "to")]
    compress: Kind,
    /// The image of the container's root file system, as the archive is to name it
    #[arg(long, value_name = "REF", requires = "to")]
    image: Option<String>,
    /// Id of that image, without which podman imports no archive
    #[arg(long, value_name = "ID", requires = "image")]
    image_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    None,
    Gzip,
    Zstd,
}

impl Export {
    /// Whether an archive is asked for.
    pub(super) fn is_wanted(&self) -> bool {
        self.to.is_some()
    }

    /// Makes the archive. The container stands still meanwhile; it ends only when the archive is
    /// there.
    pub(super) fn carry_out(
        &self,
        context: &Context,
        mut request: CheckpointRequest,
    ) -> Result<()> {
        let runtime = &context.runtime;
        let id = request.id.clone();
        let state = runtime.state(&id)?;
        let target = Target::of(self.to.as_deref().unwrap_or_default());
        let room = Room::make_in(target.parent()).map_err(|e| refused(&e))?;
        let goes_on = request.leave_running;
        request.criu = CriuOptions {
            image_path: room.path().join("images"),
            ..request.criu
        };
        request.leave_running = true;
        let was_running = state.status == Status::Running;
        if was_running {
            runtime.pause(&id)?;
        }
        let made = runtime
            .checkpoint(request)
            .and_then(|()| self.write(context, &id, &state, &room, &target));
        if was_running && (goes_on || made.is_err()) {
            let resumed = runtime.resume(&id);
            return made.and(resumed);
        }
        made
    }

    fn write(
        &self,
        context: &Context,
        id: &ContainerId,
        state: &ContainerState,
        room: &Room,
        target: &Target,
    ) -> Result<()> {
        let config = context.runtime.config_path(id)?;
        let exported = Exported {
            images: &room.path().join("images"),
            config: &config,
            rootfs: &state.rootfs,
            container: self.describe(state, &config)?,
        };
        let compression = match self.compress {
            Kind::None => Compression::None,
            Kind::Gzip => Compression::Gzip,
            Kind::Zstd => Compression::Zstd,
        };
        let archive = match target {
            Target::Archive(path) => path.clone(),
            Target::Layout(_) => room.path().join("layer"),
        };
        write_archive(&exported, &archive, room.path(), compression).map_err(|e| refused(&e))?;
        if let Target::Layout(directory) = target {
            let mut layer = File::open(&archive).map_err(Error::file("open", &archive))?;
            let name = format!("checkpoint/{}:latest", exported.container.name);
            oci::write_layout(directory, &name, &mut layer, &exported.container)
                .map_err(|e| refused(&e))?;
        }
        Ok(())
    }

    fn describe(&self, state: &ContainerState, config: &Path) -> Result<ConfigDump> {
        let text = std::fs::read(config).map_err(Error::file("read", config))?;
        let config = serde_json::from_slice(&text)
            .map_err(|e| Error::InvalidArgument(format!("{}: {e}", config.display())))?;
        let image = self.image.clone();
        let image = image.or_else(|| image_of(&config).map(str::to_owned));
        Ok(ConfigDump {
            id: state.id.clone(),
            name: state.id.clone(),
            rootfs_image_name: image.unwrap_or_default(),
            rootfs_image_id: self.image_id.clone().unwrap_or_default(),
            runtime: "xebec".to_owned(),
            created_time: state.created.clone(),
            checkpointed_at: rfc3339(SystemTime::now()),
            ..ConfigDump::default()
        })
    }
}

/// Where a checkpoint goes.
pub(super) enum Target {
    Archive(PathBuf),
    Layout(PathBuf),
}

impl Target {
    pub(super) fn of(text: &str) -> Self {
        match text.strip_prefix("oci:") {
            Some(directory) => Self::Layout(directory.into()),
            None => Self::Archive(text.into()),
        }
    }

    /// What is in the making is on the same file system.
    pub(super) fn parent(&self) -> &Path {
        let (Self::Archive(path) | Self::Layout(path)) = self;
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}
