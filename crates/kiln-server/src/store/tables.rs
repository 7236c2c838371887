//! The tables of the database, and what stands in them of a job.

use std::io;

use redb::{ReadableTable, TableDefinition};

use super::Record;
use super::record::VERSION;
use crate::{ClientId, JobId};

/// Records by job, as JSON.
pub(super) const JOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("jobs");
/// Job by client and idempotency key.
pub(super) const KEYS: TableDefinition<'_, &str, &str> = TableDefinition::new("keys");
/// Jobs by client and sequence number.
pub(super) const OWNED: TableDefinition<'_, (&str, u64, &str), ()> = TableDefinition::new("owned");
/// Bytes of the files of jobs that have ended, by when they did.
pub(super) const ENDED: TableDefinition<'_, (u64, u64, &str), u64> = TableDefinition::new("ended");
/// Numbers of the store itself.
pub(super) const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// The last sequence number.
const SEQUENCE: &str = "sequence";

type Done<T> = Result<T, redb::Error>;

pub(super) fn make(transaction: &redb::WriteTransaction) -> Done<()> {
    transaction.open_table(JOBS)?;
    transaction.open_table(KEYS)?;
    transaction.open_table(OWNED)?;
    transaction.open_table(ENDED)?;
    transaction.open_table(NUMBERS)?;
    Ok(())
}

/// A number that is larger than all before it.
pub(super) fn next_number(transaction: &redb::WriteTransaction) -> Done<u64> {
    let mut numbers = transaction.open_table(NUMBERS)?;
    let next = numbers.get(SEQUENCE)?.map_or(0, |last| last.value()) + 1;
    numbers.insert(SEQUENCE, next)?;
    Ok(next)
}

/// Writes a record; where the job has ended, its files have so many bytes.
pub(super) fn put(transaction: &redb::WriteTransaction, record: &Record, bytes: u64) -> Done<()> {
    let record = &Record { version: VERSION, ..record.clone() };
    let text = serde_json::to_vec(record).map_err(|e| redb::Error::Io(io::Error::other(e)))?;
    let id = record.id.as_str();
    transaction.open_table(JOBS)?.insert(id, &*text)?;
    list(transaction, record)?;
    if let Some(ended) = record.ended {
        transaction.open_table(ENDED)?.insert((ended, record.sequence, id), bytes)?;
    }
    Ok(())
}

/// Lists a job among its client's.
pub(super) fn list(transaction: &redb::WriteTransaction, record: &Record) -> Done<()> {
    let key = (&*record.client.0, record.sequence, record.id.as_str());
    transaction.open_table(OWNED)?.insert(key, ())?;
    Ok(())
}

pub(super) fn remove(transaction: &redb::WriteTransaction, record: &Record) -> Done<()> {
    let id = record.id.as_str();
    transaction.open_table(JOBS)?.remove(id)?;
    transaction.open_table(OWNED)?.remove((&*record.client.0, record.sequence, id))?;
    if let Some(ended) = record.ended {
        transaction.open_table(ENDED)?.remove((ended, record.sequence, id))?;
    }
    if let Some(key) = record.key() {
        transaction.open_table(KEYS)?.remove(&*key)?;
    }
    Ok(())
}

pub(super) fn get(jobs: &impl ReadableTable<&'static str, &'static [u8]>, id: &str) -> Done<Option<Record>> {
    Ok(jobs.get(id)?.and_then(|text| Record::read(id, text.value())))
}

/// The newest jobs of a client whose sequence numbers are less.
pub(super) fn newest(
    transaction: &redb::ReadTransaction,
    client: &ClientId,
    before: u64,
    limit: usize,
) -> Done<Vec<Record>> {
    let (owned, jobs) = (transaction.open_table(OWNED)?, transaction.open_table(JOBS)?);
    let mut records = Vec::new();
    for entry in owned.range((&*client.0, 0, "")..(&*client.0, before, ""))?.rev().take(limit) {
        records.extend(get(&jobs, entry?.0.value().2)?);
    }
    Ok(records)
}

/// Jobs that have ended, the last one first, each with when it did and the bytes of its files.
pub(super) fn ended(transaction: &redb::ReadTransaction) -> Done<Vec<(JobId, u64, u64)>> {
    let mut jobs = Vec::new();
    for entry in transaction.open_table(ENDED)?.iter()?.rev() {
        let (key, bytes) = entry?;
        let (ended, _, id) = key.value();
        jobs.extend(JobId::parse(id).map(|id| (id, ended, bytes.value())));
    }
    Ok(jobs)
}
