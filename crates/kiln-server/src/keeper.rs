//! Jobs of the native API: taken when they are on disk, done when their pictures are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tracing::Instrument;

use crate::store::{Added, Ending, Record, Retention, Store, StoreError};
use crate::{ClientId, Fault, FaultKind, Job, JobId, Phase, Refusal, Service, Spec};

/// How often old jobs are looked for.
const PRUNING: Duration = Duration::from_secs(300);

/// How often what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the end of a job may take to be on disk before clients are answered without it.
const ENDING: Duration = Duration::from_secs(1);

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

/// Takes jobs that outlive the process.
pub struct Keeper {
    service: Service,
    store: Arc<Store>,
    retention: Retention,
    /// Jobs whose end is not on disk yet.
    n_open: Arc<AtomicUsize>,
    settled: Arc<Notify>,
}

impl Keeper {
    pub(crate) fn new(service: Service, store: Arc<Store>, retention: Retention) -> Keeper {
        Keeper { service, store, retention, n_open: Arc::default(), settled: Arc::default() }
    }

    /// The jobs on disk.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Takes a job; gives the one that the client has sent before under the same key.
    pub async fn take(
        self: &Arc<Self>,
        spec: Spec,
        client: ClientId,
        key: Option<SenderKey>,
    ) -> Result<JobId, KeeperError> {
        let keeper = self.clone();
        // What is on disk comes into the queue, even where its sender leaves in between.
        let taking = async move { keeper.take_now(spec, client, key).await };
        let taking = tokio::spawn(taking.in_current_span());
        taking.await.unwrap_or(Err(KeeperError::Refused(Refusal::Ending)))
    }

    async fn take_now(
        self: &Arc<Self>,
        mut spec: Spec,
        client: ClientId,
        key: Option<SenderKey>,
    ) -> Result<JobId, KeeperError> {
        let cost = self.service.check(&mut spec).map_err(KeeperError::Refused)?;
        let id = JobId::random();
        let (idempotency_key, digest) = key.map(|sent| (sent.key, sent.digest)).unzip();
        let record =
            Record { idempotency_key, digest, ..Record::new(id.clone(), spec.clone(), client.clone()) };
        // One that is known needs no place.
        if let Some(known) = self.known(&record).await? {
            return Ok(known);
        }
        let place = self.service.place(&client).map_err(KeeperError::Refused)?;
        let store = self.store.clone();
        match blocking(move || store.add(record)).await.map_err(KeeperError::Store)? {
            Added::Known(known) => return Ok(known),
            Added::Reused => return Err(KeeperError::Reused),
            Added::New => {}
        }
        let job = Job::new(id.clone(), spec, client, cost).on_disk(&self.store);
        self.keep(self.service.fill(place, job));
        Ok(id)
    }

    async fn known(&self, record: &Record) -> Result<Option<JobId>, KeeperError> {
        if record.idempotency_key.is_none() {
            return Ok(None);
        }
        let (store, record) = (self.store.clone(), record.clone());
        match blocking(move || store.known(&record)).await.map_err(KeeperError::Store)? {
            Some(Added::Known(id)) => Ok(Some(id)),
            Some(Added::Reused) => Err(KeeperError::Reused),
            _ => Ok(None),
        }
    }

    /// Stops a job before its next step; waits a little for its end to be on disk.
    pub async fn cancel(&self, job: &Job) {
        self.service.cancel(job);
        let written = async {
            while self.service.job(&job.id).is_some() {
                let _ = tokio::time::timeout(Duration::from_millis(20), self.settled.notified()).await;
            }
        };
        let _ = tokio::time::timeout(ENDING, written).await;
    }

    /// Stops a job where it has not ended, and forgets it and its pictures.
    pub async fn delete(&self, id: &JobId) -> Result<(), StoreError> {
        if let Some(job) = self.service.job(id) {
            self.service.cancel(&job);
        }
        let (store, id) = (self.store.clone(), id.clone());
        blocking(move || store.delete(&id)).await
    }

    /// Puts the jobs of the last run back into the queue. Inside a runtime.
    pub(crate) fn reopen(self: &Arc<Self>) -> Result<(), StoreError> {
        for record in self.store.reopen()? {
            let (id, client) = (record.id.clone(), record.client.clone());
            let spec = self.store.spec(record).map_err(|error| lost(&id, &error));
            let job =
                spec.and_then(|spec| self.service.restore(id.clone(), spec, client, &self.store).map_err(gone));
            match job {
                Ok(job) => self.keep(job),
                Err(fault) => self.store.end(&id, Ending::Failed { fault })?,
            }
        }
        Ok(())
    }

    /// Writes down how a job ends, when it does.
    fn keep(self: &Arc<Self>, job: Arc<Job>) {
        self.n_open.fetch_add(1, Ordering::SeqCst);
        let keeper = self.clone();
        tokio::spawn(async move {
            let phase = job.ended().await;
            // What waits when the server ends is drawn after the next start.
            match keeper.service.leaves(&job) {
                true => keeper.pardon(&job).await,
                false => keeper.write_end(&job, phase).await,
            }
            keeper.service.forget(&job.id);
            keeper.n_open.fetch_sub(1, Ordering::SeqCst);
            keeper.settled.notify_waiters();
        });
    }

    /// Writes an end down, again and again until it is; where the server ends before, the job is drawn after the next start.
    async fn write_end(&self, job: &Job, phase: Phase) {
        let mut is_told = false;
        loop {
            let (store, id, phase) = (self.store.clone(), job.id.clone(), phase.clone());
            let saving = job.saving();
            let written = blocking(move || saving.in_scope(|| write(&store, &id, phase))).await;
            let Err(error) = written else { return };
            if !is_told {
                tracing::error!(job = %job.id, "{error}");
                is_told = true;
            }
            if self.service.is_closed() {
                return;
            }
            let _ = tokio::time::timeout(RETRY, self.service.closed()).await;
        }
    }

    /// Takes back that a job was begun, as the server ends in order.
    async fn pardon(&self, job: &Job) {
        if !job.take_back() {
            return;
        }
        let (store, id) = (self.store.clone(), job.id.clone());
        if let Err(error) = blocking(move || store.pardon(&id)).await {
            tracing::error!(job = %job.id, "{error}");
        }
    }

    /// Waits until the ends of all jobs that have ended are on disk, and takes back that the others have begun.
    pub(crate) async fn settle(&self) {
        for job in self.service.all() {
            let is_drawn = !job.status().phase.is_final() && !job.was_stopped();
            if is_drawn {
                self.pardon(&job).await;
            }
        }
        let is_drawn = |job: &Arc<Job>| !job.status().phase.is_final();
        let left = self.service.all().iter().filter(|job| is_drawn(job)).count();
        for _ in 0..500 {
            if self.n_open.load(Ordering::SeqCst) <= left {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), self.settled.notified()).await;
        }
    }

    /// Looks whether the disk takes something again, while it does not.
    pub(crate) fn probe_now_and_then(keeper: &Arc<Keeper>) {
        let store = keeper.store.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY).await;
                let store = store.clone();
                if !store.is_sound() && blocking(move || store.probe()).await.is_ok() {
                    tracing::info!("jobs can be written down again");
                }
            }
        });
    }

    pub(crate) fn prune_now_and_then(keeper: &Arc<Keeper>) {
        let (store, retention) = (keeper.store.clone(), keeper.retention);
        tokio::spawn(async move {
            loop {
                let store = store.clone();
                if let Err(error) = blocking(move || store.prune(retention)).await {
                    tracing::error!("{error}");
                }
                tokio::time::sleep(PRUNING).await;
            }
        });
    }
}

fn write(store: &Store, id: &JobId, phase: Phase) -> Result<(), StoreError> {
    let ending = match phase {
        Phase::Done(finished) => {
            for (i, (image, text)) in finished.images.iter().zip(&finished.infotexts).enumerate() {
                store.save(id, i, image, text)?;
            }
            Ending::Done { pictures: finished.images.len(), infotexts: finished.infotexts.clone() }
        }
        Phase::Failed(fault) => Ending::Failed { fault },
        _ => Ending::Cancelled,
    };
    store.end(id, ending)
}

fn lost(id: &JobId, error: &StoreError) -> Fault {
    tracing::error!(job = %id, "{error}");
    Fault::new(FaultKind::Internal, "the pictures that the job starts from cannot be read")
}

fn gone(refusal: Refusal) -> Fault {
    match refusal {
        Refusal::Invalid(fault) => fault,
        Refusal::NoModel(name) => {
            Fault::new(FaultKind::Model, format!("model: '{}' is no longer served", name.escape_debug()))
        }
        Refusal::Full(_) | Refusal::Ending => Fault::new(FaultKind::Interrupted, "the queue is full"),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and with it whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_runtime::image::RgbImage;
    use kiln_runtime::{Request, Timings};

    use super::*;
    use crate::Finished;
    use crate::store::tests::on_small_disk;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_end_that_cannot_be_written_is_when_there_is_space() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, is_full) = on_small_disk(&folder);
        let (store, service) = (Arc::new(store), Service::new(9, 9));
        let retention = Retention { age: Duration::MAX, bytes: u64::MAX };
        let keeper = Arc::new(Keeper::new(service.clone(), store.clone(), retention));
        Keeper::probe_now_and_then(&keeper);
        let spec = Spec { model: "shapes".into(), loras: Vec::new(), request: Request::new("a star") };
        let (id, client) = (JobId::random(), ClientId::default());
        store.add(Record::new(id.clone(), spec.clone(), client.clone())).expect("a job");
        let place = service.place(&client).expect("a place");
        let job = service.fill(place, Job::new(id.clone(), spec, client, 1.0).on_disk(&store));
        keeper.keep(job.clone());
        is_full.store(true, Ordering::SeqCst);
        let images = vec![RgbImage::from_raw(1, 1, vec![0; 3]).expect("a picture")];
        let finished = Finished { images, infotexts: vec![String::new()], timings: Timings::default() };
        job.enter(Phase::Done(Arc::new(finished)));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!store.is_sound() && service.job(&id).is_some());
        is_full.store(false, Ordering::SeqCst);
        while service.job(&id).is_some() || !store.is_sound() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ending = store.get(&id).expect("a store").expect("a record").ending;
        assert!(matches!(ending, Ending::Done { pictures: 1, .. }), "{ending:?}");
        assert!(store.picture(&id, 0).is_some());
    }
}
