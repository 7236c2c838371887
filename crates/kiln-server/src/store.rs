//! Jobs that outlive the process: what was asked for, how it ended, and the pictures.
//!
//! A record per job lies in a database, pictures in files beside it. A job is on disk before its sender is told that it was
//! taken, and its pictures are before it is called done. What had not ended when the process did is drawn anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_runtime::image::RgbImage;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::{ClientId, Fault, FaultKind, JobId, Spec};

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

/// How a stored job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Ending {
    /// It has not.
    Open,
    /// With pictures.
    Done {
        /// Number of them.
        pictures: usize,
        /// How each was made.
        infotexts: Vec<String>,
    },
    /// Without.
    Failed {
        /// Why.
        fault: Fault,
    },
    /// Somebody stopped it.
    Cancelled,
}

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: JobId,
    /// Who sent it.
    pub client: ClientId,
    /// What to draw.
    pub spec: Spec,
    /// The sender's own name for it.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Seconds since 1970.
    #[serde(default)]
    pub ended: Option<u64>,
    /// How often it was begun.
    #[serde(default)]
    pub attempts: u32,
    /// How it ended.
    pub ending: Ending,
}

impl Record {
    /// Pictures on disk.
    fn n_pictures(&self) -> usize {
        match self.ending {
            Ending::Done { pictures, .. } => pictures,
            _ => 0,
        }
    }
}

/// How much is kept of jobs that have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long.
    pub age: Duration,
    /// How many bytes of pictures.
    pub bytes: u64,
}

/// Jobs on disk.
pub struct Store {
    database: Database,
    path: PathBuf,
    pictures: PathBuf,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Store {
    /// Opens or makes the store in a folder, which one process at a time can have.
    pub fn open(folder: &Path) -> Result<Store, StoreError> {
        let pictures = folder.join("pictures");
        fs::create_dir_all(&pictures).map_err(|source| StoreError::File { path: pictures.clone(), source })?;
        let path = folder.join("jobs.redb");
        let database = Database::create(&path).map_err(|e| StoreError::Database {
            path: path.clone(),
            reason: match e {
                redb::DatabaseError::DatabaseAlreadyOpen => "another process serves from this folder".into(),
                other => other.to_string(),
            },
        })?;
        let store = Store { database, path, pictures };
        store.write(|transaction| {
            transaction.open_table(JOBS)?;
            transaction.open_table(KEYS)?;
            Ok(())
        })?;
        Ok(store)
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
    pub fn add(&self, record: &Record) -> Result<Option<JobId>, StoreError> {
        self.write(|transaction| {
            let mut keys = transaction.open_table(KEYS)?;
            if let Some(key) = key_of(record) {
                if let Some(known) = keys.get(&*key)?.and_then(|id| JobId::parse(id.value())) {
                    return Ok(Some(known));
                }
                keys.insert(&*key, record.id.as_str())?;
            }
            put(transaction, record)?;
            Ok(None)
        })
    }

    /// A job by its name.
    pub fn get(&self, id: &JobId) -> Result<Option<Record>, StoreError> {
        self.read(|transaction| {
            let jobs = transaction.open_table(JOBS)?;
            Ok(jobs.get(id.as_str())?.and_then(|bytes| serde_json::from_slice(bytes.value()).ok()))
        })
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

    /// Takes a job back that was not taken after all.
    pub fn withdraw(&self, record: &Record) -> Result<(), StoreError> {
        self.forget(record, 0)
    }

    /// Forgets a job and its pictures.
    pub fn delete(&self, id: &JobId) -> Result<(), StoreError> {
        let Some(record) = self.get(id)? else { return Ok(()) };
        self.forget(&record, record.n_pictures())
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
        let path = self.picture_path(id, index);
        let refuse = |source| StoreError::File { path: path.clone(), source };
        let file = crate::http::png(image, infotext).map_err(refuse)?;
        let half = path.with_extension("part");
        let written = write_synced(&half, &file).and_then(|()| fs::rename(&half, &path));
        written.map_err(|source| {
            let _ = fs::remove_file(&half);
            StoreError::File { path, source }
        })
    }

    /// The PNG file of a picture.
    pub fn picture(&self, id: &JobId, index: usize) -> Option<Vec<u8>> {
        fs::read(self.picture_path(id, index)).ok()
    }

    fn picture_path(&self, id: &JobId, index: usize) -> PathBuf {
        self.pictures.join(format!("{id}-{index}.png"))
    }

    /// Forgets jobs that have ended and are too old, and the oldest beyond the bytes that are kept.
    pub fn prune(&self, retention: Retention) -> Result<usize, StoreError> {
        let oldest = now().saturating_sub(retention.age.as_secs());
        let mut ended: Vec<Record> = self.all()?.into_iter().filter(|r| r.ending != Ending::Open).collect();
        ended.sort_by_key(|record| std::cmp::Reverse(record.ended));
        let mut bytes = 0u64;
        let mut n_gone = 0;
        for record in &ended {
            let n = record.n_pictures();
            let sizes = (0..n).filter_map(|i| fs::metadata(self.picture_path(&record.id, i)).ok());
            bytes += sizes.map(|file| file.len()).sum::<u64>();
            if bytes > retention.bytes || record.ended.is_some_and(|ended| ended < oldest) {
                self.forget(record, n)?;
                n_gone += 1;
            }
        }
        Ok(n_gone)
    }

    fn forget(&self, record: &Record, n_pictures: usize) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(JOBS)?.remove(record.id.as_str())?;
            if let Some(key) = key_of(record) {
                transaction.open_table(KEYS)?.remove(&*key)?;
            }
            Ok(())
        })?;
        (0..n_pictures).for_each(|i| drop(fs::remove_file(self.picture_path(&record.id, i))));
        Ok(())
    }
}

fn key_of(record: &Record) -> Option<String> {
    let key = record.idempotency_key.as_ref()?;
    Some(format!("{}\n{key}", record.client.0))
}

fn put(transaction: &redb::WriteTransaction, record: &Record) -> Result<(), redb::Error> {
    let bytes = serde_json::to_vec(record).map_err(|e| redb::Error::Io(io::Error::other(e)))?;
    transaction.open_table(JOBS)?.insert(record.id.as_str(), &*bytes)?;
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}
