//! How a container is taken away.

use xebec_proto::events;
use xebec_proto::task::DeleteResponse;

use super::{Container, DRAIN};
use crate::error::{Error, Result};
use crate::supervisor::Exit;
use crate::supervisor::message::Change;
use crate::task::keys;
use crate::task::process::{Process, timestamp};
use crate::task::service::Shim;
use crate::task::state::{Operation, State};
use crate::{io, mounts};

/// Exit status of one that is deleted before it was restored, as of any other that is killed then.
const KILLED: u32 = 128 + 9;

impl Container {
    /// Deletes the container. After an error it can be tried again; who tries while another
    /// caller is at it, because its client has lost patience, gets the same answer.
    pub(in crate::task) async fn delete(&self, shim: &Shim) -> Result<DeleteResponse> {
        self.end_created().await?;
        let _turn = self.init.turn.lock().await;
        if self.init.state() == State::Deleted {
            return Ok(deleted(&self.init));
        }
        self.end_unborn();
        self.init.check(Operation::Delete)?;
        let mut io = self.init.io.take();
        io.drain(DRAIN).await;
        drop(io);
        self.remove(shim, false).await?;
        self.init.set_state(State::Deleted);
        let response = deleted(&self.init);
        let event = events::TaskDelete {
            container_id: self.id.clone(),
            pid: response.pid,
            exit_status: response.exit_status,
            exited_at: response.exited_at,
            id: self.id.clone(),
        };
        let prefix = keys::container(&self.id);
        let changes = vec![Change::Drop { prefix }];
        self.publish(shim, changes, "/tasks/delete", &event);
        Ok(response)
    }

    /// A created init is ended before its container is deleted, so that its exit comes first.
    async fn end_created(&self) -> Result<()> {
        if self.init.state() != State::Created || self.init.pid() == 0 {
            return Ok(());
        }
        match self.init.kill(libc::SIGKILL) {
            Ok(()) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        self.init.wait().await;
        Ok(())
    }

    /// Removes what the runtime holds and unmounts the rootfs.
    pub(super) async fn remove(&self, shim: &Shim, force: bool) -> Result<()> {
        let (engine, id, bundle) = (self.engine.clone(), self.id.clone(), self.bundle.clone());
        let may_spill = self.setting.overflow.is_some();
        shim.blocking(move || {
            engine.delete(&id, force)?;
            if may_spill {
                io::remove_spilled(&bundle)?;
            }
            mounts::unmount_rootfs(&bundle.join("rootfs"))
        })
        .await
    }

    /// A container that is deleted before it was restored has nothing that could end.
    fn end_unborn(&self) {
        if self.init.state() == State::Created && self.init.pid() == 0 {
            self.init.exited(Exit::now(KILLED));
        }
    }
}

pub(super) fn deleted(process: &Process) -> DeleteResponse {
    let exit = process.exit();
    DeleteResponse {
        pid: process.pid() as u32,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| timestamp(exit.at)),
    }
}
