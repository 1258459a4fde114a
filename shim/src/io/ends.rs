//! The ends of outputs, as the supervisor tells them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

/// Who waits for the end of which output.
#[derive(Debug, Default)]
pub struct Ends(RefCell<BTreeMap<String, Rc<Notify>>>);

/// The end of one output, to be waited for once.
#[derive(Debug)]
pub(super) struct End {
    ends: Rc<Ends>,
    key: String,
    notify: Rc<Notify>,
}

impl Ends {
    /// The output under `key` has ended.
    pub fn ended(&self, key: &str) {
        if let Some(notify) = self.0.borrow().get(key) {
            notify.notify_one();
        }
    }

    /// The end of the output under `key`, which is open.
    pub(super) fn of(self: &Rc<Self>, key: &str) -> End {
        let notify = Rc::<Notify>::default();
        self.0
            .borrow_mut()
            .insert(key.to_owned(), Rc::clone(&notify));
        End {
            ends: Rc::clone(self),
            key: key.to_owned(),
            notify,
        }
    }
}

impl End {
    pub(super) async fn wait(&self) {
        self.notify.notified().await;
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut ends = self.ends.0.borrow_mut();
        // Another output may have that key by now.
        if ends
            .get(&self.key)
            .is_some_and(|other| Rc::ptr_eq(other, &self.notify))
        {
            ends.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_before_or_after_the_wait_and_nobody_is_remembered() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let ends = Rc::new(Ends::default());
            let (out, err) = (ends.of("out"), ends.of("err"));
            ends.ended("out");
            out.wait().await;
            tokio::join!(err.wait(), async { ends.ended("err") });
            let again = ends.of("out");
            drop((out, err));
            ends.ended("out");
            again.wait().await;
            drop(again);
            assert!(ends.0.borrow().is_empty());
        });
    }
}
