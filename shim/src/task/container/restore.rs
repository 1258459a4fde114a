//! A container that comes from a checkpoint or a template: its creation only prepares it, and its start is the
//! restore.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use xebec_proto::task::CreateTaskRequest;
use xebec_runtime::WantedTemplate;

use super::checkpoint::{Work, explain};
use super::{Container, Told};
use crate::error::{Error, Result};
use crate::io::{Io, Stream};
use crate::log;
use crate::options::Options;
use crate::supervisor::message::{Change, Images, Origin, TemplateClone};
use crate::task::keys;
use crate::task::service::Shim;
use crate::task::timings::Stopwatch;
use crate::trace;

impl Container {
    /// Where init is, if the request to create or an annotation says so. A template is refused here
    /// that is not there or does not fit, when nothing has been made.
    pub(super) async fn origin(
        &self,
        shim: &Shim,
        request: &CreateTaskRequest,
        (options, annotations): (&Options, &BTreeMap<String, String>),
    ) -> Result<Option<Origin>> {
        let work = Work::of(&self.bundle, &options.criu_work_path).path;
        if !request.checkpoint.is_empty() {
            let path = PathBuf::from(&request.checkpoint);
            return Ok(Some(Origin::Checkpoint(Images { path, work })));
        }
        let wanted = WantedTemplate::of(annotations)
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        // What holds a pod's namespaces has the pod's annotations, too.
        let Some(wanted) = wanted.filter(|_| self.told == Told::Containerd) else {
            return Ok(None);
        };
        let clone = TemplateClone {
            templates: options.templates(),
            wanted,
            work,
        };
        let (engine, bundle, checked) = (self.engine.clone(), self.bundle.clone(), clone.clone());
        shim.blocking(move || engine.check_clone(&bundle, &checked))
            .await?;
        Ok(Some(Origin::Template(clone)))
    }

    /// Starts a container by restoring it. After a failure it is as before, and can be started again.
    pub(super) async fn restore(self: &Rc<Self>, shim: &Rc<Shim>, origin: &Origin) -> Result<()> {
        let mut watch = Stopwatch::start();
        shim.link
            .commit_soon(vec![self.init.keep_launching(&self.id)]);
        let work = Work::of(&self.bundle, origin.work());
        let restored = match work.make() {
            Ok(()) => self.launch_restored(shim, origin).await,
            Err(error) => Err(error),
        };
        let bundle = self.bundle.clone();
        let restored = restored.map_err(|error| explain(error, &work, "restore.log", &bundle));
        work.remove(shim).await;
        if let Err(error) = restored {
            self.undo_restore(shim).await;
            return Err(error);
        }
        self.restore.replace(None);
        let start = watch.lap("restore");
        trace::note(&[start]);
        self.announce_start(shim);
        self.watch(shim, &self.init);
        self.took(start.micros());
        Ok(())
    }

    async fn launch_restored(&self, shim: &Shim, origin: &Origin) -> Result<()> {
        let (io, streams) = Io::open(&self.init.names, &self.setting, "").await?;
        let hold = self.hold(shim);
        let restored = self.engine.restore(&self.id, &self.bundle, origin, streams);
        let pid = restored.await?;
        self.settle(shim, pid, hold, io).await
    }

    /// Takes back a restore that failed half-way.
    async fn undo_restore(&self, shim: &Shim) {
        let (engine, id) = (self.engine.clone(), self.id.clone());
        let removed = shim.blocking(move || engine.delete(&id, true)).await;
        if let Err(error) = removed {
            log::with(&[("id", &self.id)]).error(format_args!("clean up: {error}"));
        }
        let prefix = keys::process(&self.id, "");
        let mut changes = vec![Change::Drop { prefix }];
        let pid = self.init.pid();
        if pid != 0 {
            shim.exits.wait(pid).await;
            shim.exits.forget(pid);
            self.init.launched(0);
            changes.push(Change::Forget { pid });
        }
        drop(self.init.io.take());
        changes.push(self.init.keep(&self.id));
        shim.link.commit(changes, Vec::new());
    }

    /// An earlier worker was restoring: what it has restored is taken over, and what it has not, or
    /// has with a terminal that was lost with it, is taken back to be restored again.
    pub(super) async fn inherit_restore(&self, shim: &Shim, mut streams: BTreeMap<String, Stream>) {
        let pid = streams.remove(keys::PID);
        let pid = pid.and_then(|pid| pid.record.parse().ok()).unwrap_or(0);
        self.init.launched(pid);
        if pid != 0 && !self.init.names.terminal {
            self.inherit_streams(&self.init, streams);
            if let Err(error) = self.look_at_init(shim, pid) {
                log::with(&[("id", &self.id)]).error(format_args!("take over: {error}"));
            }
            self.restore.replace(None);
            self.announce_start(shim);
            return;
        }
        // Whoever asked for it will ask again, and reads its output already.
        let prefix = keys::process(&self.id, "");
        let change = Change::TakeBack { prefix };
        shim.link.commit(vec![change], Vec::new());
        self.undo_restore(shim).await;
    }
}
