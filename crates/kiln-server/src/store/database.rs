//! The database file, which is opened anew after it could not be read or written.

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::ReadableDatabase;

use super::StoreError;

/// Opens the file.
pub(super) type Opener = Box<dyn Fn() -> Result<redb::Database, redb::DatabaseError> + Send + Sync>;

type Opened = Option<redb::Database>;

/// A database that redb gives up after an error of input or output, as of a full disk, and that is opened again then.
pub(super) struct Database {
    path: PathBuf,
    opener: Opener,
    opened: RwLock<Opened>,
}

impl Database {
    pub(super) fn open(path: PathBuf, opener: Opener) -> Result<Database, StoreError> {
        let opened = opener().map_err(|e| StoreError::Database {
            path: path.clone(),
            reason: match e {
                redb::DatabaseError::DatabaseAlreadyOpen => "another process serves from this folder".into(),
                other => other.to_string(),
            },
        })?;
        Ok(Database { path, opener, opened: RwLock::new(Some(opened)) })
    }

    pub(super) fn read<T>(
        &self,
        work: impl Fn(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.attempt(|database| work(&database.begin_read()?))
    }

    pub(super) fn write<T>(
        &self,
        work: impl Fn(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.attempt(|database| {
            let transaction = database.begin_write()?;
            let made = work(&transaction)?;
            transaction.commit()?;
            Ok(made)
        })
    }

    /// Gives the file's unused pages back.
    pub(super) fn compact(&self) -> Result<(), StoreError> {
        match self.exclusive().as_mut().map(redb::Database::compact) {
            Some(Err(error)) => Err(self.error(&error.into())),
            _ => Ok(()),
        }
    }

    /// Tries once more where it is an earlier error that stands in the way.
    fn attempt<T>(&self, work: impl Fn(&redb::Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let made = match self.once(&work) {
            Err(redb::Error::PreviousIo) => self.once(&work),
            made => made,
        };
        made.map_err(|e| self.error(&e))
    }

    fn once<T>(&self, work: impl Fn(&redb::Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let made = match &*self.opened()? {
            Some(database) => work(database),
            None => Err(redb::Error::PreviousIo),
        };
        if matches!(made, Err(redb::Error::Io(_) | redb::Error::PreviousIo)) {
            *self.exclusive() = None;
        }
        made
    }

    fn opened(&self) -> Result<RwLockReadGuard<'_, Opened>, redb::Error> {
        let shared = || self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let opened = shared();
        if opened.is_some() {
            return Ok(opened);
        }
        drop(opened);
        let mut closed = self.exclusive();
        if closed.is_none() {
            *closed = Some((self.opener)()?);
        }
        drop(closed);
        Ok(shared())
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Opened> {
        self.opened.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, error: &redb::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), reason: error.to_string() }
    }
}
