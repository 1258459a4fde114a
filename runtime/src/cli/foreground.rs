//! Staying with a process: its terminal, the signals meant for it, its exit status.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{
    Signal, WaitId, WaitIdOptions, WaitOptions, pidfd_send_signal, wait, waitid,
};
use rustix::termios::{self, OptionalActions, OutputModes, Termios};
use xebec_runtime::{Error, Launched, Result, Signals};

/// Stays with a process until it has exited; gives its exit code, 128 + n after signal n.
pub(super) fn attend(mut launched: Launched, signals: &Signals) -> Result<u8> {
    match launched.terminal.take() {
        Some(master) => Relay::new(master)?.attend(&launched, signals),
        None => forward_until_exit(&launched, signals),
    }
}

/// Rows and columns of our own terminal, which the process's is to have from its start.
pub(super) fn own_size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(io::stdin()).ok()?;
    Some((size.ws_row, size.ws_col))
}

fn forward_until_exit(launched: &Launched, signals: &Signals) -> Result<u8> {
    loop {
        let mut fds = [
            PollFd::new(&launched.pidfd, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        wait_for(&mut fds)?;
        if !fds[0].revents().is_empty() {
            return exit_code(launched.pidfd.as_fd());
        }
        if let Some(code) = heed(launched, signals, || {})? {
            return Ok(code);
        }
    }
}

/// Does what each pending signal calls for; gives the exit code if the process turns out to have
/// ended.
fn heed(launched: &Launched, signals: &Signals, on_resize: impl Fn()) -> Result<Option<u8>> {
    let mut code = None;
    while let Some(signal) = signals.next()? {
        match Signal::from_named_raw(signal) {
            Some(Signal::CHILD) => code = code.or(bury(launched.pid)),
            Some(Signal::WINCH) => on_resize(),
            _ => forward(launched.pidfd.as_fd(), signal)?,
        }
    }
    Ok(code)
}

/// Buries all children that have ended, orphans of the container among them; gives the exit code
/// of `pid` if it is one.
fn bury(pid: i32) -> Option<u8> {
    let mut code = None;
    while let Ok(Some((ended, status))) = wait(WaitOptions::NOHANG) {
        if ended.as_raw_nonzero().get() == pid {
            code = Some(code_of(status.exit_status(), status.terminating_signal()));
        }
    }
    code
}

/// Passes a signal on; those about our own terminal are ours.
fn forward(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let Some(signal) = Signal::from_named_raw(signal) else {
        return Ok(());
    };
    if matches!(signal, Signal::URG | Signal::TTIN | Signal::TTOU) {
        return Ok(());
    }
    match pidfd_send_signal(pidfd, signal) {
        // It has just exited: the next poll tells.
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(os("forward a signal")(e)),
    }
}

fn exit_code(pidfd: BorrowedFd<'_>) -> Result<u8> {
    let status = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)
        .map_err(os("wait for the container's process"))?;
    Ok(status.map_or(UNKNOWN, |status| {
        code_of(status.exit_status(), status.terminating_signal())
    }))
}

/// Exit code of a process whose end cannot be told.
const UNKNOWN: u8 = 255;

/// A process's own exit code, 128 + n after signal n.
fn code_of(exited: Option<i32>, killed: Option<i32>) -> u8 {
    exited
        .or_else(|| killed.map(|signal| 128 + signal))
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(UNKNOWN)
}

/// Copies between our terminal and the container's.
struct Relay {
    master: OwnedFd,
    /// Typed, but not yet taken by the container.
    typed: Vec<u8>,
    /// Our own terminal's mode, to be given back; none when stdin is no terminal.
    cooked: Option<Termios>,
    stdin_open: bool,
}

impl Relay {
    fn new(master: OwnedFd) -> Result<Self> {
        let flags = fcntl_getfl(&master).map_err(os("read the terminal's flags"))?;
        fcntl_setfl(&master, flags | OFlags::NONBLOCK).map_err(os("set the terminal's flags"))?;
        let mut relay = Self {
            master,
            typed: Vec::new(),
            cooked: None,
            stdin_open: true,
        };
        relay.resize();
        if io::stdin().is_terminal() {
            let stdin = io::stdin();
            let cooked = termios::tcgetattr(&stdin).map_err(os("read the terminal's mode"))?;
            let mut raw = cooked.clone();
            raw.make_raw();
            // Line ends are left to this terminal: the container's own leaves them alone.
            raw.output_modes.insert(OutputModes::OPOST);
            termios::tcsetattr(&stdin, OptionalActions::Now, &raw)
                .map_err(os("set the terminal's mode"))?;
            relay.cooked = Some(cooked);
        }
        Ok(relay)
    }

    /// Takes the size of our own terminal, which need not be on stdin; without one the container's
    /// stays as it is.
    fn resize(&self) {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let size = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
            .into_iter()
            .find_map(|fd| termios::tcgetwinsize(fd).ok());
        if let Some(size) = size {
            let _ = termios::tcsetwinsize(&self.master, size);
        }
    }

    fn attend(mut self, launched: &Launched, signals: &Signals) -> Result<u8> {
        loop {
            let stdin = io::stdin();
            let [typing, output] = self.interest();
            let mut fds = [
                PollFd::new(&launched.pidfd, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
                PollFd::new(&self.master, output),
                PollFd::new(&stdin, typing),
            ];
            wait_for(&mut fds)?;
            let [exited, signalled, printed, typed] =
                fds.each_ref().map(|fd| !fd.revents().is_empty());
            let code = if signalled {
                heed(launched, signals, || self.resize())?
            } else {
                None
            };
            if printed {
                self.print_output()?;
                self.hand_over();
            }
            if typed && !typing.is_empty() {
                self.read_typed();
            }
            if exited || code.is_some() {
                self.print_output()?;
                return code.map_or_else(|| exit_code(launched.pidfd.as_fd()), Ok);
            }
        }
    }

    /// Reads no more from stdin while the container has not taken what was typed before.
    fn interest(&self) -> [PollFlags; 2] {
        let typing = self.typed.is_empty() && self.stdin_open;
        let output = if self.typed.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        [
            if typing {
                PollFlags::IN
            } else {
                PollFlags::empty()
            },
            output,
        ]
    }

    /// Prints all that is there; the last process's end shows as EIO.
    fn print_output(&self) -> Result<()> {
        let mut buffer = [0; 8192];
        loop {
            match rustix::io::read(&self.master, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN | Errno::IO) => return Ok(()),
                Ok(n) => super::list::print_bytes(&buffer[..n])?,
                Err(Errno::INTR) => {}
                Err(e) => return Err(os("read the container's terminal")(e)),
            }
        }
    }

    fn read_typed(&mut self) {
        let mut buffer = [0; 4096];
        match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(0) | Err(Errno::IO) => {
                self.stdin_open = false;
                self.typed.push(END_OF_TRANSMISSION);
            }
            Ok(n) => self.typed.extend_from_slice(&buffer[..n]),
            Err(_) => {}
        }
        self.hand_over();
    }

    fn hand_over(&mut self) {
        match rustix::io::write(&self.master, &self.typed) {
            Ok(n) => drop(self.typed.drain(..n)),
            // Nobody reads there any more.
            Err(Errno::IO) => self.typed.clear(),
            Err(_) => {}
        }
    }
}

/// What a terminal turns into an end of file.
const END_OF_TRANSMISSION: u8 = 4;

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(cooked) = &self.cooked {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, cooked);
        }
    }
}

fn wait_for(fds: &mut [PollFd<'_>]) -> Result<()> {
    loop {
        match poll(fds, None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(os("wait for events")(e)),
        }
    }
}

fn os(op: &'static str) -> impl FnOnce(Errno) -> Error {
    move |e| Error::Os {
        op: op.into(),
        source: e.into(),
    }
}
