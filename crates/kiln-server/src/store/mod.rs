//! Jobs that outlive the process: what was asked for, how it ended, and the pictures.
//!
//! A record per job lies in a database, pictures in files beside it: those that it starts from and those that it comes to. A
//! job is on disk, its pictures first, before its sender is told that it was taken, and what it comes to is before it is
//! called done. What had not ended when the process did is drawn anew. Files that a crash has left without a record are
//! removed at the next start.

mod database;
mod files;
mod record;
mod tables;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_runtime::image::RgbImage;
use redb::ReadableTable;

use crate::{ClientId, Fault, FaultKind, JobId, Spec};
use database::{Database, Opener};
use files::Files;
pub use files::{Source, from_bytes, has_pixels, no_pixels, sources, to_bytes};
pub use record::{Ending, Record, Retention};
use record::{VERSION, picture_file};
use tables::{JOBS, KEYS, NUMBERS};

/// How often a process may end while it draws a job before the job is given up: it must not end processes for ever.
const MAX_ATTEMPTS: u32 = 3;

/// Bytes that are written to find out whether the disk takes any.
const PROBE: usize = 1 << 18;

/// The file for them.
const PROBE_FILE: &str = "probe";

/// Bytes of a database that are worth to be given back where three quarters of it are unused.
const SPARE: u64 = 16 << 20;

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
    /// What several machines share.
    #[error("{0}")]
    Shared(String),
    /// A file of pictures.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// What became of a job that was to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is.
    New,
    /// Its sender has sent it before, as this one.
    Known(JobId),
    /// Its sender has sent another one under the same key.
    Reused,
}

/// Jobs on disk.
pub struct Store {
    database: Database,
    path: PathBuf,
    files: Files,
    is_sound: AtomicBool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Store {
    /// Opens or makes the store in a folder, which one process at a time can have.
    pub fn open(folder: &Path) -> Result<Store, StoreError> {
        let path = folder.join("jobs.redb");
        Store::open_with(folder, Box::new(move || redb::Database::create(&path)))
    }

    fn open_with(folder: &Path, opener: Opener) -> Result<Store, StoreError> {
        let files = Files::open(folder.join("pictures"))?;
        let path = folder.join("jobs.redb");
        let database = Database::open(path.clone(), opener)?;
        let store = Store { database, path, files, is_sound: AtomicBool::new(true) };
        store.write(tables::make)?;
        store.tidy()?;
        Ok(store)
    }

    /// Takes over records of older forms, which had no index and may hold pictures, and removes files that belong to no job.
    /// Says which records cannot be read; they stay, with their files.
    fn tidy(&self) -> Result<(), StoreError> {
        let (mut known, mut spared) = (HashSet::new(), HashSet::new());
        for mut record in self.all()? {
            if record.is_torn {
                tracing::warn!(job = %record.id, "its record cannot be read, and stays as it is");
                self.write(|transaction| tables::list(transaction, &record))?;
                spared.insert(record.id.to_string());
            } else if record.version < VERSION {
                self.take_over(&mut record)?;
            }
            known.extend(record.files());
        }
        let n_left = self.files.sweep(&known, &spared)?;
        if n_left > 0 {
            tracing::info!("{n_left} files of jobs that are not known are removed");
        }
        self.compact()
    }

    fn take_over(&self, record: &mut Record) -> Result<(), StoreError> {
        if record.holds_pictures() {
            self.files.put_away(&record.id, &mut record.spec.request)?;
        }
        // Jobs that only waited were counted too.
        record.attempts = 0;
        let bytes = self.files.sizes(&record.files());
        self.write(|transaction| {
            let sequence = tables::next_number(transaction)?;
            tables::put(transaction, &Record { sequence, ..record.clone() }, bytes)
        })
    }

    /// Gives the database's unused pages back where they are most of it.
    fn compact(&self) -> Result<(), StoreError> {
        let size = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        if size < SPARE {
            return Ok(());
        }
        let used = self.write(|transaction| {
            let stats = transaction.stats()?;
            Ok(stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes())
        })?;
        if used < size / 4 { self.database.compact() } else { Ok(()) }
    }

    /// Whether the disk has taken what was written last.
    pub fn is_sound(&self) -> bool {
        self.is_sound.load(Ordering::Relaxed)
    }

    /// Finds out whether the disk takes something again.
    pub fn probe(&self) -> Result<(), StoreError> {
        let written = self.files.write(PROBE_FILE, &vec![1; PROBE]);
        self.files.remove(&[PROBE_FILE.to_owned()]);
        written?;
        self.write(|transaction| {
            transaction.open_table(NUMBERS)?.insert(PROBE_FILE, now())?;
            Ok(())
        })?;
        self.is_sound.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps in mind that something went wrong.
    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|_| self.is_sound.store(false, Ordering::Relaxed))
    }

    fn write<T>(
        &self,
        work: impl Fn(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.noted(self.database.write(work))
    }

    fn read<T>(
        &self,
        work: impl Fn(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.noted(self.database.read(work))
    }

    /// Writes a new job down, unless its sender has sent one under the same key before.
    pub fn add(&self, mut record: Record) -> Result<Added, StoreError> {
        self.noted(self.files.put_away(&record.id, &mut record.spec.request))?;
        let added = self.write(|transaction| {
            let known = known(&transaction.open_table(KEYS)?, &transaction.open_table(JOBS)?, &record)?;
            if let Some(known) = known {
                return Ok(known);
            }
            if let Some(key) = record.key() {
                transaction.open_table(KEYS)?.insert(&*key, record.id.as_str())?;
            }
            let sequence = tables::next_number(transaction)?;
            tables::put(transaction, &Record { sequence, ..record.clone() }, 0)?;
            Ok(Added::New)
        });
        if !matches!(added, Ok(Added::New)) {
            self.files.remove(&record.files());
        }
        added
    }

    /// What its sender has sent before under the same key.
    pub fn known(&self, record: &Record) -> Result<Option<Added>, StoreError> {
        self.read(|transaction| known(&transaction.open_table(KEYS)?, &transaction.open_table(JOBS)?, record))
    }

    /// A job by its name.
    pub fn get(&self, id: &JobId) -> Result<Option<Record>, StoreError> {
        self.read(|transaction| tables::get(&transaction.open_table(JOBS)?, id.as_str()))
    }

    /// What a job is to draw, with its pictures.
    pub fn spec(&self, record: Record) -> Result<Spec, StoreError> {
        let Record { id, mut spec, .. } = record;
        self.files.bring_back(&id, &mut spec.request)?;
        Ok(spec)
    }

    /// All jobs, the oldest first.
    pub fn all(&self) -> Result<Vec<Record>, StoreError> {
        let mut records = self.read(|transaction| {
            let jobs = transaction.open_table(JOBS)?;
            let mut records = Vec::new();
            for entry in jobs.iter()? {
                let (id, text) = entry?;
                records.extend(Record::read(id.value(), text.value()));
            }
            Ok(records)
        })?;
        records.sort_by(|a, b| (a.sequence, a.created, &a.id).cmp(&(b.sequence, b.created, &b.id)));
        Ok(records)
    }

    /// The newest jobs of a client, the last one first, of those before a sequence number.
    pub fn newest(&self, client: &ClientId, before: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.read(|transaction| tables::newest(transaction, client, before, limit))
    }

    /// Writes down how a job ended; its pictures are on disk before. Those of a job that has none, or that was forgotten
    /// meanwhile, are removed.
    pub fn end(&self, id: &JobId, ending: Ending) -> Result<(), StoreError> {
        let has_pictures = matches!(ending, Ending::Done { .. });
        let record = self.change(id, |record| {
            record.ending = ending.clone();
            record.ended = Some(now());
        })?;
        match record {
            None => self.files.remove_all(id),
            Some(record) if !has_pictures => self.files.remove(&record.pictures().collect::<Vec<_>>()),
            Some(_) => {}
        }
        Ok(())
    }

    /// Writes down that a job begins to be drawn.
    pub fn begin(&self, id: &JobId) -> Result<(), StoreError> {
        let begin = |record: &mut Record| {
            record.begun = true;
            record.attempts += 1;
        };
        self.change(id, begin).map(drop)
    }

    /// Takes back that a job was begun, as the process ends in order before it is drawn.
    pub fn pardon(&self, id: &JobId) -> Result<(), StoreError> {
        self.change(id, |record| record.attempts = record.attempts.saturating_sub(1)).map(drop)
    }

    /// Forgets a job and its pictures.
    pub fn delete(&self, id: &JobId) -> Result<(), StoreError> {
        let Some(record) = self.get(id)? else { return Ok(()) };
        self.forget(&record)
    }

    /// The changed record of a job that has not ended, if it is known.
    fn change(&self, id: &JobId, change: impl Fn(&mut Record)) -> Result<Option<Record>, StoreError> {
        self.write(|transaction| {
            let record = tables::get(&transaction.open_table(JOBS)?, id.as_str())?;
            let Some(mut record) = record.filter(|record| !record.is_torn) else { return Ok(None) };
            if record.ending == Ending::Open {
                change(&mut record);
                tables::put(transaction, &record, self.files.sizes(&record.files()))?;
            }
            Ok(Some(record))
        })
    }

    /// The jobs to draw after a start: those that were begun first, each in the order in which they came. One that ended
    /// the process too often is failed instead.
    pub fn reopen(&self) -> Result<Vec<Record>, StoreError> {
        let open = self.all()?.into_iter().filter(|record| record.ending == Ending::Open);
        let (given_up, mut left): (Vec<_>, Vec<_>) = open.partition(|record| record.attempts >= MAX_ATTEMPTS);
        for record in given_up {
            let message = format!("the server ended {MAX_ATTEMPTS} times while this job was drawn");
            self.end(&record.id, Ending::Failed { fault: Fault::new(FaultKind::Interrupted, message) })?;
        }
        left.sort_by_key(|record| (!record.begun, record.sequence));
        Ok(left)
    }

    /// Writes a picture of a job, whole or not at all.
    pub fn save(&self, id: &JobId, index: usize, image: &RgbImage, infotext: &str) -> Result<(), StoreError> {
        let name = picture_file(id, index);
        let file = crate::http::png(image, infotext).map_err(|e| self.files.error(&name, e))?;
        self.noted(self.files.write(&name, &file))
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
        let (mut sum, mut n_gone) = (0u64, 0);
        for (id, ended, bytes) in self.read(tables::ended)? {
            sum = sum.saturating_add(bytes);
            if sum > retention.bytes || ended < oldest {
                self.delete(&id)?;
                n_gone += 1;
            }
        }
        Ok(n_gone)
    }

    fn forget(&self, record: &Record) -> Result<(), StoreError> {
        self.write(|transaction| tables::remove(transaction, record))?;
        match record.is_torn {
            true => self.files.remove_all(&record.id),
            false => self.files.remove(&record.files()),
        }
        Ok(())
    }
}

/// The job that its sender has sent under the same key.
fn known(
    keys: &impl ReadableTable<&'static str, &'static str>,
    jobs: &impl ReadableTable<&'static str, &'static [u8]>,
    record: &Record,
) -> Result<Option<Added>, redb::Error> {
    let Some(key) = record.key() else { return Ok(None) };
    let known = keys.get(&*key)?.map(|id| tables::get(jobs, id.value())).transpose()?.flatten();
    Ok(known.map(|known| match known.digest.is_none() || known.digest == record.digest {
        true => Added::Known(known.id),
        false => Added::Reused,
    }))
}

#[cfg(test)]
pub(crate) mod tests;
