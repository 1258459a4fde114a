//! The redb file: transactions, and recovery after a failed write.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::error::{Error, Result};

/// Hundreds of records fit; redb's own default is a gigabyte.
const CACHE_BYTES: usize = 4 << 20;

/// A database that is opened again after a failed write (on a full disk, say): redb refuses
/// everything from then on, while what is on the disk is whole and as the last commit left it.
#[derive(Debug)]
pub(super) struct Reopening {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl Reopening {
    /// Opens the file, or creates it; a crash of an earlier daemon needs no repair step.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let database = RwLock::new(Some(open(path)?));
        Ok(Self {
            path: path.to_owned(),
            database,
        })
    }

    /// Runs `look` on the last committed state.
    pub(super) fn read<T>(&self, look: impl FnOnce(&ReadTransaction) -> Result<T>) -> Result<T> {
        self.with(|database| look(&database.begin_read()?))
    }

    /// Runs `change` while there is no other change; an error leaves everything as it was.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T>,
    ) -> Result<T> {
        self.with(|database| {
            // Without redb's quick repair, which would double the flushes of every commit: checking
            // some hundreds of records after a crash takes milliseconds.
            let transaction = database.begin_write()?;
            let outcome = change(&transaction)?;
            transaction.commit()?;
            Ok(outcome)
        })
    }

    /// Runs `look` while there is no change. It costs nothing on disk.
    pub(super) fn exclusive<T>(
        &self,
        look: impl FnOnce(&WriteTransaction) -> Result<T>,
    ) -> Result<T> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let outcome = look(&transaction)?;
            transaction.abort()?;
            Ok(outcome)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        self.reopen_if_closed()?;
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        // Closed again in between by another thread's failure, which has been reported there.
        let database = guard.as_ref().ok_or_else(|| Error::Unavailable {
            what: "snapshot database".to_owned(),
            reason: "it is being opened again".to_owned(),
        })?;
        let outcome = work(database);
        drop(guard);
        if let Err(error) = &outcome
            && is_broken(error)
        {
            tracing::error!(%error, "the snapshot database is opened again at its next use");
            *self
                .database
                .write()
                .unwrap_or_else(PoisonError::into_inner) = None;
        }
        outcome
    }

    fn reopen_if_closed(&self) -> Result<()> {
        if self
            .database
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
        {
            return Ok(());
        }
        let mut guard = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(open(&self.path)?);
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database> {
    Ok(Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create(path)?)
}

/// Whether redb will answer nothing else from now on.
fn is_broken(error: &Error) -> bool {
    matches!(error, Error::Database(cause) if matches!(**cause, redb::Error::Io(_) | redb::Error::PreviousIo))
}
