//! The agent of `SCMP_ACT_NOTIFY`: gets the listener of each filter, and is told whose it is.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::stdio::connect_to;
use crate::error::{Error, Result};
use crate::request::Launched;
use crate::state::{AgentAddress, ContainerState};

/// A connection to an agent, made before there is a process that could wait for its answers.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: OwnedFd,
    metadata: Option<String>,
}

impl Agent {
    /// Connects to the agent of a profile.
    pub(crate) fn connect(address: &AgentAddress) -> Result<Self> {
        let socket = connect_to(&address.path).map_err(|error| {
            Error::Status(format!(
                "failed to connect with seccomp agent specified in the seccomp profile: {error}"
            ))
        })?;
        Ok(Self {
            socket,
            metadata: address.metadata.clone(),
        })
    }

    /// Hands over the listener of the process `pid` of a container: one message with the state as
    /// data, as runc sends it.
    pub(crate) fn introduce(
        &self,
        listener: BorrowedFd<'_>,
        pid: i32,
        container: &ContainerState,
    ) -> Result<()> {
        let document = container.for_agent(pid, self.metadata.as_deref())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [listener];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let data = [IoSlice::new(&document)];
        sendmsg(
            self.socket.as_fd(),
            &data,
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map(drop)
        .map_err(Error::os("send the listener to the seccomp agent"))
    }
}

/// Who is told of a process whose filter has a listener.
pub(super) struct Witness<'a> {
    pub(super) agent: Option<&'a Agent>,
    pub(super) view: &'a dyn Fn() -> ContainerState,
}

impl Witness<'_> {
    /// Hands the listener over.
    pub(super) fn tell(&self, pid: i32, listener: &OwnedFd) -> Result<()> {
        match self.agent {
            Some(agent) => agent.introduce(listener.as_fd(), pid, &(self.view)()),
            None => Err(Error::InvalidArgument(
                "seccomp listenerPath is not set".into(),
            )),
        }
    }
}

/// Takes the listener, which has this number there, from a new process.
pub(super) fn take_listener(launched: &Launched, number: i32) -> Result<OwnedFd> {
    pidfd_getfd(&launched.pidfd, number, PidfdGetfdFlags::empty())
        .map_err(Error::os("take the seccomp listener"))
}
