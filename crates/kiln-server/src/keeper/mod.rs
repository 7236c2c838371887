//! Who takes jobs and keeps them: what handlers ask of it, whether jobs wait in this process or elsewhere.

pub(crate) mod local;

use axum::body::Bytes;
use futures_util::future::BoxFuture;
use tracing::Instrument;

use crate::store::{Record, Source, StoreError};
use crate::{ClientId, FleetMoment, Job, JobId, Refusal, Spec, Ticket};

/// The sender's own name for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderKey {
    /// The name.
    pub key: String,
    /// What tells the sender's words from others.
    pub digest: String,
}

/// Why a job is not kept.
#[derive(Debug)]
pub enum KeeperError {
    /// It was not taken.
    Refused(Refusal),
    /// Its sender has sent another one under the same key.
    Reused,
    /// It cannot be written down.
    Store(StoreError),
}

/// Takes a job to the end, even where its sender leaves in between: what is written down comes into the queue.
pub fn to_the_end<T: Send + 'static>(
    taking: impl Future<Output = Result<T, KeeperError>> + Send + 'static,
) -> BoxFuture<'static, Result<T, KeeperError>> {
    let taking = tokio::spawn(taking.in_current_span());
    Box::pin(async { taking.await.unwrap_or(Err(KeeperError::Refused(Refusal::Ending))) })
}

/// Takes jobs.
///
/// A job that waits or is drawn is also one of the [`Service`](crate::Service)'s, which says how far it is. Once the service
/// has forgotten it, its record says how it ended.
pub trait Keeper: Send + Sync {
    /// Takes a job that outlives its sender's connection and the process: it is written down before its name is known. Gives
    /// the job that the client has sent before under the same key.
    fn take(
        &self,
        spec: Spec,
        client: ClientId,
        key: Option<SenderKey>,
    ) -> BoxFuture<'_, Result<JobId, KeeperError>>;

    /// Takes a job for somebody who waits for it.
    fn draw(&self, spec: Spec, client: ClientId) -> BoxFuture<'_, Result<Ticket, KeeperError>>;

    /// Stops a job before its next step; waits a little for its end to be written down.
    fn cancel<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, ()>;

    /// Stops a job where it has not ended, and forgets it and its pictures.
    fn delete<'a>(&'a self, id: &'a JobId) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The record of a job.
    fn get<'a>(&'a self, id: &'a JobId) -> BoxFuture<'a, Result<Option<Record>, StoreError>>;

    /// The newest jobs of a client, the last one first, of those before a sequence number.
    fn newest<'a>(
        &'a self,
        client: &'a ClientId,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>>;

    /// The PNG file of a picture that a job has come to.
    fn picture<'a>(&'a self, id: &'a JobId, index: usize) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

    /// The PNG file of a picture that a job starts from.
    fn source<'a>(&'a self, id: &'a JobId, source: Source) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

    /// Whether jobs can be written down.
    fn is_sound(&self) -> bool;

    /// Those who draw, where that is not this process.
    fn fleet(&self) -> Option<FleetMoment> {
        None
    }

    /// Waits until all that has ended is written down, as the process ends.
    fn settle(&self) -> BoxFuture<'_, ()>;
}
