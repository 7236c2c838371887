//! Jobs that outlive the process: what was asked for, how it ended, and the pictures.
//!
//! A record per job lies in a database, pictures in files beside it: those that it starts from and those that it comes to. A
//! job is on disk, its pictures first, before its sender is told that it was taken, and what it comes to is before it is
//! called done. What had not ended when the process did is drawn anew. Files that a crash has left without a record are
//! removed at the next start.

mod files;
mod record;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_runtime::image::RgbImage;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Fault, FaultKind, JobId, Spec};
use files::Files;
pub use files::Source;
use record::picture_file;
pub use record::{Ending, Record, Retention};

const JOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("jobs");
/// Job by client and idempotency key.
const KEYS: TableDefinition<'_, &str, &str> = TableDefinition::new("keys");

/// How often a job is begun before it is given up: a job that ends the process must not do so for ever.
const MAX_ATTEMPTS: u32 = 3;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error("{path}: {reason}", path = path.display())]
    Database {
        /// Its file.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// A file of pictures.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// Jobs on disk.
pub struct Store {
    database: Database,
    path: PathBuf,
    files: Files,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Store {
    /// Opens or makes the store in a folder, which one process at a time can have.
    pub fn open(folder: &Path) -> Result<Store, StoreError> {
        let files = Files::open(folder.join("pictures"))?;
        let path = folder.join("jobs.redb");
        let database = Database::create(&path).map_err(|e| StoreError::Database {
            path: path.clone(),
            reason: match e {
                redb::DatabaseError::DatabaseAlreadyOpen => "another process serves from this folder".into(),
                other => other.to_string(),
            },
        })?;
        let mut store = Store { database, path, files };
        store.write(|transaction| {
            transaction.open_table(JOBS)?;
            transaction.open_table(KEYS)?;
            Ok(())
        })?;
        store.tidy()?;
        Ok(store)
    }

    /// Moves pictures out of records that hold them, as they once did, and removes files that belong to no job. Says which
    /// records cannot be read; they stay, with their files.
    fn tidy(&mut self) -> Result<(), StoreError> {
        let (mut known, mut spared, mut n_moved) = (HashSet::new(), HashSet::new(), 0);
        for id in self.ids()? {
            match self.read_record(&id)? {
                Some(Ok(mut record)) => {
                    if record.holds_pictures() {
                        self.files.put_away(&record.id, &mut record.spec.request)?;
                        self.write(|transaction| put(transaction, &record))?;
                        n_moved += 1;
                    }
                    known.extend(record.files());
                }
                Some(Err(reason)) => {
                    tracing::warn!(job = id, "its record cannot be read, and stays as it is: {reason}");
                    spared.insert(id);
                }
                None => {}
            }
        }
        if n_moved > 0 {
            tracing::info!("the pictures of {n_moved} jobs lie in files now");
            self.database.compact().map_err(|e| self.error(&e.into()))?;
        }
        let n_left = self.files.sweep(&known, &spared)?;
        if n_left > 0 {
            tracing::info!("{n_left} files of jobs that are not known are removed");
        }
        Ok(())
    }

    fn ids(&self) -> Result<Vec<String>, StoreError> {
        self.read(|transaction| {
            let jobs = transaction.open_table(JOBS)?;
            let mut ids = Vec::new();
            for entry in jobs.iter()? {
                ids.push(entry?.0.value().to_owned());
            }
            Ok(ids)
        })
    }

    fn read_record(&self, id: &str) -> Result<Option<Result<Record, serde_json::Error>>, StoreError> {
        self.read(|transaction| {
            let jobs = transaction.open_table(JOBS)?;
            Ok(jobs.get(id)?.map(|bytes| serde_json::from_slice(bytes.value())))
        })
    }

    fn error(&self, error: &redb::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), reason: error.to_string() }
    }

    fn write<T>(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let work = || {
            let transaction = self.database.begin_write()?;
            let made = work(&transaction)?;
            transaction.commit()?;
            Ok(made)
        };
        work().map_err(|e: redb::Error| self.error(&e))
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let work = || work(&self.database.begin_read()?);
        work().map_err(|e: redb::Error| self.error(&e))
    }

    /// Writes a new job down, unless its sender has sent one under the same key before; that one then.
    pub fn add(&self, mut record: Record) -> Result<Option<JobId>, StoreError> {
        if let Some(known) = self.known(&record)? {
            return Ok(Some(known));
        }
        self.files.put_away(&record.id, &mut record.spec.request)?;
        let added = self.write(|transaction| {
            let mut keys = transaction.open_table(KEYS)?;
            if let Some(key) = record.key() {
                if let Some(known) = keys.get(&*key)?.and_then(|id| JobId::parse(id.value())) {
                    return Ok(Some(known));
                }
                keys.insert(&*key, record.id.as_str())?;
            }
            put(transaction, &record)?;
            Ok(None)
        });
        if !matches!(added, Ok(None)) {
            self.files.remove(&record.files());
        }
        added
    }

    /// The job that its sender has sent under the same key.
    fn known(&self, record: &Record) -> Result<Option<JobId>, StoreError> {
        let Some(key) = record.key() else { return Ok(None) };
        self.read(|transaction| {
            let known = transaction.open_table(KEYS)?.get(&*key)?;
            Ok(known.and_then(|id| JobId::parse(id.value())))
        })
    }

    /// A job by its name.
    pub fn get(&self, id: &JobId) -> Result<Option<Record>, StoreError> {
        Ok(self.read_record(id.as_str())?.and_then(Result::ok))
    }

    /// What a job is to draw, with its pictures.
    pub fn spec(&self, record: Record) -> Result<Spec, StoreError> {
        let Record { id, mut spec, .. } = record;
        self.files.bring_back(&id, &mut spec.request)?;
        Ok(spec)
    }

    /// All jobs, the oldest first.
    pub fn all(&self) -> Result<Vec<Record>, StoreError> {
        let mut records: Vec<Record> = self.read(|transaction| {
            let jobs = transaction.open_table(JOBS)?;
            let mut records = Vec::new();
            for entry in jobs.iter()? {
                records.extend(serde_json::from_slice::<Record>(entry?.1.value()).ok());
            }
            Ok(records)
        })?;
        records.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(records)
    }

    /// Writes down how a job ended; pictures are on disk before.
    pub fn end(&self, id: &JobId, ending: Ending) -> Result<(), StoreError> {
        self.change(id, |record| {
            record.ending = ending;
            record.ended = Some(now());
        })
    }

    /// Forgets a job and its pictures.
    pub fn delete(&self, id: &JobId) -> Result<(), StoreError> {
        let Some(record) = self.get(id)? else { return Ok(()) };
        self.forget(&record)
    }

    fn change(&self, id: &JobId, change: impl FnOnce(&mut Record)) -> Result<(), StoreError> {
        let Some(mut record) = self.get(id)? else { return Ok(()) };
        change(&mut record);
        self.write(|transaction| put(transaction, &record))
    }

    /// The jobs to draw after a start. One that was begun too often is failed instead.
    pub fn reopen(&self) -> Result<Vec<Record>, StoreError> {
        let open = self.all()?.into_iter().filter(|record| record.ending == Ending::Open);
        let mut left = Vec::new();
        for mut record in open {
            record.attempts += 1;
            match record.attempts >= MAX_ATTEMPTS {
                true => {
                    let message = format!("the server ended {MAX_ATTEMPTS} times while this job was open");
                    let fault = Fault::new(FaultKind::Interrupted, message);
                    self.end(&record.id, Ending::Failed { fault })?;
                }
                false => {
                    self.write(|transaction| put(transaction, &record))?;
                    left.push(record);
                }
            }
        }
        Ok(left)
    }

    /// Writes a picture of a job, whole or not at all.
    pub fn save(&self, id: &JobId, index: usize, image: &RgbImage, infotext: &str) -> Result<(), StoreError> {
        let name = picture_file(id, index);
        let file = crate::http::png(image, infotext).map_err(|e| self.files.error(&name, e))?;
        self.files.write(&name, &file)
    }

    /// The PNG file of a picture.
    pub fn picture(&self, id: &JobId, index: usize) -> Option<Vec<u8>> {
        self.files.read(&picture_file(id, index))
    }

    /// The PNG file of a picture that a job starts from.
    pub fn source(&self, id: &JobId, source: Source) -> Option<Vec<u8>> {
        self.files.read(&source.file(id)).filter(|bytes| bytes.starts_with(b"\x89PNG"))
    }

    /// Forgets jobs that have ended and are too old, and the oldest beyond the bytes that are kept.
    pub fn prune(&self, retention: Retention) -> Result<usize, StoreError> {
        let oldest = now().saturating_sub(retention.age.as_secs());
        let mut ended: Vec<Record> = self.all()?.into_iter().filter(|r| r.ending != Ending::Open).collect();
        ended.sort_by_key(|record| std::cmp::Reverse(record.ended));
        let mut bytes = 0u64;
        let mut n_gone = 0;
        for record in &ended {
            bytes += record.files().iter().map(|name| self.files.size(name)).sum::<u64>();
            if bytes > retention.bytes || record.ended.is_some_and(|ended| ended < oldest) {
                self.forget(record)?;
                n_gone += 1;
            }
        }
        Ok(n_gone)
    }

    fn forget(&self, record: &Record) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(JOBS)?.remove(record.id.as_str())?;
            if let Some(key) = record.key() {
                transaction.open_table(KEYS)?.remove(&*key)?;
            }
            Ok(())
        })?;
        self.files.remove(&record.files());
        Ok(())
    }
}

fn put(transaction: &redb::WriteTransaction, record: &Record) -> Result<(), redb::Error> {
    let bytes = serde_json::to_vec(record).map_err(|e| redb::Error::Io(io::Error::other(e)))?;
    transaction.open_table(JOBS)?.insert(record.id.as_str(), &*bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests;
