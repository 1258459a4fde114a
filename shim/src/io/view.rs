//! Streams seen from outside, for who wants to know why nothing comes through.

use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use serde::Serialize;
use tokio::io::unix::AsyncFd;

/// One stream as it is now.
#[derive(Debug, Serialize)]
pub struct View {
    /// Which one.
    kind: &'static str,
    /// It is being copied.
    open: bool,
    /// Bytes written into it that the shim has not taken yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<u64>,
    /// Bytes that the shim has passed on, and nobody has read yet; absent where they go to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    untaken: Option<u64>,
}

/// The two ends of a stream, as long as somebody copies between them.
#[derive(Debug)]
pub(super) struct Ends {
    kind: &'static str,
    from: Weak<AsyncFd<OwnedFd>>,
    to: Weak<AsyncFd<OwnedFd>>,
}

impl Ends {
    /// `name` is the one under which the stream is kept.
    pub(super) fn new(
        name: &'static str,
        from: &Rc<AsyncFd<OwnedFd>>,
        to: Option<&Rc<AsyncFd<OwnedFd>>>,
    ) -> Ends {
        let kind = match name {
            super::STDIN => "stdin",
            super::STDOUT => "stdout",
            super::STDERR => "stderr",
            super::TERMINAL => "terminal",
            super::TERMINAL_STDIN => "terminal input",
            other => other,
        };
        Ends {
            kind,
            from: Rc::downgrade(from),
            to: to.map_or_else(Weak::new, Rc::downgrade),
        }
    }

    pub(super) fn view(&self) -> View {
        View {
            kind: self.kind,
            open: self.from.strong_count() > 0,
            unread: waiting(&self.from),
            untaken: waiting(&self.to),
        }
    }
}

/// Bytes that wait in a pipe or terminal; `None` once it is closed.
fn waiting(end: &Weak<AsyncFd<OwnedFd>>) -> Option<u64> {
    rustix::io::ioctl_fionread(&*end.upgrade()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_stream_shows_what_waits_on_both_sides_until_its_end() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _context = runtime.enter();
        let (source, mut feed) = std::io::pipe().unwrap();
        let (_drain, mut sink) = std::io::pipe().unwrap();
        feed.write_all(b"abc").unwrap();
        sink.write_all(b"de").unwrap();
        let [from, to] =
            [OwnedFd::from(source), sink.into()].map(|fd| Rc::new(crate::io::watched(fd).unwrap()));
        let ends = Ends::new(crate::io::STDOUT, &from, Some(&to));
        let view = ends.view();
        assert_eq!((view.kind, view.open), ("stdout", true));
        assert_eq!((view.unread, view.untaken), (Some(3), Some(2)));
        drop((from, to));
        let view = ends.view();
        assert!(!view.open);
        assert_eq!((view.unread, view.untaken), (None, None));
    }
}
