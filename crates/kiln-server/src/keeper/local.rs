//! Jobs that this process draws. Those of the native API are taken when they are on disk, and done when their pictures are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::{Keeper, KeeperError, SenderKey, to_the_end};
use crate::store::{Added, Ending, Record, Retention, Source, Store, StoreError};
use crate::{ClientId, Fault, FaultKind, Job, JobId, Phase, Refusal, Service, Spec, Ticket};

/// How often old jobs are looked for.
const PRUNING: Duration = Duration::from_secs(300);

/// How often what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the end of a job may take to be on disk before clients are answered without it.
const ENDING: Duration = Duration::from_secs(1);

/// Takes jobs that are drawn here. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LocalKeeper(Arc<Shared>);

struct Shared {
    service: Service,
    store: Arc<Store>,
    retention: Retention,
    /// Jobs whose end is not on disk yet.
    n_open: AtomicUsize,
    settled: Notify,
}

impl Keeper for LocalKeeper {
    fn take(
        &self,
        spec: Spec,
        client: ClientId,
        key: Option<SenderKey>,
    ) -> BoxFuture<'_, Result<JobId, KeeperError>> {
        let keeper = self.clone();
        to_the_end(async move { keeper.take_now(spec, client, key).await })
    }

    fn draw(&self, spec: Spec, client: ClientId) -> BoxFuture<'_, Result<Ticket, KeeperError>> {
        let service = self.0.service.clone();
        let taken = spawn_blocking(move || {
            let job = service.submit(spec, client).map_err(KeeperError::Refused)?;
            Ok(Ticket::new(&service, job))
        });
        Box::pin(async { taken.await.unwrap_or(Err(KeeperError::Refused(Refusal::Ending))) })
    }

    fn cancel<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, ()> {
        let service = &self.0.service;
        service.cancel(job);
        let written = async {
            while service.job(&job.id).is_some() {
                let _ = tokio::time::timeout(Duration::from_millis(20), self.0.settled.notified()).await;
            }
        };
        Box::pin(async { drop(tokio::time::timeout(ENDING, written).await) })
    }

    fn delete<'a>(&'a self, id: &'a JobId) -> BoxFuture<'a, Result<(), StoreError>> {
        if let Some(job) = self.0.service.job(id) {
            self.0.service.cancel(&job);
        }
        let id = id.clone();
        Box::pin(self.stored(move |store| store.delete(&id)))
    }

    fn get<'a>(&'a self, id: &'a JobId) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        let id = id.clone();
        Box::pin(self.stored(move |store| store.get(&id)))
    }

    fn newest<'a>(
        &'a self,
        client: &'a ClientId,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        let client = client.clone();
        Box::pin(self.stored(move |store| store.newest(&client, before, limit)))
    }

    fn picture<'a>(&'a self, id: &'a JobId, index: usize) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        let id = id.clone();
        Box::pin(self.stored(move |store| Ok(store.picture(&id, index).map(Bytes::from))))
    }

    fn source<'a>(&'a self, id: &'a JobId, source: Source) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        let id = id.clone();
        Box::pin(self.stored(move |store| Ok(store.source(&id, source).map(Bytes::from))))
    }

    fn is_sound(&self) -> bool {
        self.0.store.is_sound()
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.settle_now())
    }
}

impl LocalKeeper {
    pub(crate) fn new(service: Service, store: Arc<Store>, retention: Retention) -> LocalKeeper {
        LocalKeeper(Arc::new(Shared {
            service,
            store,
            retention,
            n_open: AtomicUsize::default(),
            settled: Notify::default(),
        }))
    }

    /// Does what takes time with the jobs on disk.
    async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.0.store.clone();
        blocking(move || work(&store)).await
    }

    async fn take_now(
        &self,
        mut spec: Spec,
        client: ClientId,
        key: Option<SenderKey>,
    ) -> Result<JobId, KeeperError> {
        let cost = self.0.service.check(&mut spec).map_err(KeeperError::Refused)?;
        let id = JobId::random();
        let (idempotency_key, digest) = key.map(|sent| (sent.key, sent.digest)).unzip();
        let record =
            Record { idempotency_key, digest, ..Record::new(id.clone(), spec.clone(), client.clone()) };
        // One that is known needs no place.
        if let Some(known) = self.known(&record).await? {
            return Ok(known);
        }
        let place = self.0.service.place(&client).map_err(KeeperError::Refused)?;
        let store = self.0.store.clone();
        match blocking(move || store.add(record)).await.map_err(KeeperError::Store)? {
            Added::Known(known) => return Ok(known),
            Added::Reused => return Err(KeeperError::Reused),
            Added::New => {}
        }
        let job = Job::new(id.clone(), spec, client, cost).on_disk(&self.0.store);
        self.keep(self.0.service.fill(place, job));
        Ok(id)
    }

    async fn known(&self, record: &Record) -> Result<Option<JobId>, KeeperError> {
        if record.idempotency_key.is_none() {
            return Ok(None);
        }
        let (store, record) = (self.0.store.clone(), record.clone());
        match blocking(move || store.known(&record)).await.map_err(KeeperError::Store)? {
            Some(Added::Known(id)) => Ok(Some(id)),
            Some(Added::Reused) => Err(KeeperError::Reused),
            _ => Ok(None),
        }
    }

    /// Puts the jobs of the last run back into the queue. Inside a runtime.
    pub(crate) fn reopen(&self) -> Result<(), StoreError> {
        for record in self.0.store.reopen()? {
            let (id, client) = (record.id.clone(), record.client.clone());
            let spec = self.0.store.spec(record).map_err(|error| lost(&id, &error));
            let job = spec
                .and_then(|spec| self.0.service.restore(id.clone(), spec, client, &self.0.store).map_err(gone));
            match job {
                Ok(job) => self.keep(job),
                Err(fault) => self.0.store.end(&id, Ending::Failed { fault })?,
            }
        }
        Ok(())
    }

    /// Writes down how a job ends, when it does.
    fn keep(&self, job: Arc<Job>) {
        self.0.n_open.fetch_add(1, Ordering::SeqCst);
        let keeper = self.clone();
        tokio::spawn(async move {
            let phase = job.ended().await;
            // What waits when the server ends is drawn after the next start.
            match keeper.0.service.leaves(&job) {
                true => keeper.pardon(&job).await,
                false => keeper.write_end(&job, phase).await,
            }
            keeper.0.service.forget(&job.id);
            job.touch();
            keeper.0.n_open.fetch_sub(1, Ordering::SeqCst);
            keeper.0.settled.notify_waiters();
        });
    }

    /// Writes an end down, again and again until it is; where the server ends before, the job is drawn after the next start.
    async fn write_end(&self, job: &Job, phase: Phase) {
        let mut is_told = false;
        loop {
            let (store, id, phase) = (self.0.store.clone(), job.id.clone(), phase.clone());
            let saving = job.saving();
            let written = blocking(move || saving.in_scope(|| write(&store, &id, phase))).await;
            let Err(error) = written else { return };
            if !is_told {
                tracing::error!(job = %job.id, "{error}");
                is_told = true;
            }
            if self.0.service.is_closed() {
                return;
            }
            let _ = tokio::time::timeout(RETRY, self.0.service.closed()).await;
        }
    }

    /// Takes back that a job was begun, as the server ends in order.
    async fn pardon(&self, job: &Job) {
        if !job.take_back() {
            return;
        }
        let (store, id) = (self.0.store.clone(), job.id.clone());
        if let Err(error) = blocking(move || store.pardon(&id)).await {
            tracing::error!(job = %job.id, "{error}");
        }
    }

    /// Waits until the ends of all jobs that have ended are on disk, and takes back that the others have begun.
    async fn settle_now(&self) {
        for job in self.0.service.all() {
            let is_drawn = !job.status().phase.is_final() && !job.was_stopped();
            if is_drawn {
                self.pardon(&job).await;
            }
        }
        let is_drawn = |job: &Arc<Job>| !job.status().phase.is_final();
        let left = self.0.service.all().iter().filter(|job| is_drawn(job)).count();
        for _ in 0..500 {
            if self.0.n_open.load(Ordering::SeqCst) <= left {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), self.0.settled.notified()).await;
        }
    }

    /// Looks whether the disk takes something again, while it does not.
    pub(crate) fn probe_now_and_then(&self) {
        let store = self.0.store.clone();
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

    pub(crate) fn prune_now_and_then(&self) {
        let (store, retention) = (self.0.store.clone(), self.0.retention);
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
        let keeper = LocalKeeper::new(service.clone(), store.clone(), retention);
        keeper.probe_now_and_then();
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
