//! Jobs of the native API: taken when they are on disk, done when their pictures are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::store::{Ending, Record, Retention, Store, StoreError, now};
use crate::{ClientId, Fault, FaultKind, Job, JobId, Phase, Refusal, Service, Spec};

/// How often old jobs are looked for.
const PRUNING: Duration = Duration::from_secs(300);

/// Why a job is not kept.
#[derive(Debug)]
pub enum KeeperError {
    /// It was not taken.
    Refused(Refusal),
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
        mut spec: Spec,
        client: ClientId,
        idempotency_key: Option<String>,
    ) -> Result<JobId, KeeperError> {
        let cost = self.service.check(&mut spec).map_err(KeeperError::Refused)?;
        let record = Record {
            id: JobId::random(),
            client: client.clone(),
            spec: spec.clone(),
            idempotency_key,
            created: now(),
            ended: None,
            attempts: 0,
            ending: Ending::Open,
        };
        let id = record.id.clone();
        let store = self.store.clone();
        let known = blocking(move || store.add(record)).await.map_err(KeeperError::Store)?;
        if let Some(known) = known {
            return Ok(known);
        }
        match self.service.submit_checked(Job::new(id.clone(), spec, client, cost)) {
            Ok(job) => {
                self.keep(job);
                Ok(id)
            }
            Err(refusal) => {
                let store = self.store.clone();
                blocking(move || store.delete(&id)).await.map_err(KeeperError::Store)?;
                Err(KeeperError::Refused(refusal))
            }
        }
    }

    /// Stops a job where it has not ended, and forgets it and its pictures.
    pub async fn delete(&self, id: &JobId) -> Result<(), StoreError> {
        if let Some(job) = self.service.job(id) {
            self.service.cancel(&job);
            job.ended().await;
        }
        while self.service.job(id).is_some() {
            let _ = tokio::time::timeout(Duration::from_millis(20), self.settled.notified()).await;
        }
        let (store, id) = (self.store.clone(), id.clone());
        blocking(move || store.delete(&id)).await
    }

    /// Puts the jobs of the last run back into the queue. Inside a runtime.
    pub(crate) fn reopen(self: &Arc<Self>) -> Result<(), StoreError> {
        for record in self.store.reopen()? {
            let (id, client) = (record.id.clone(), record.client.clone());
            let spec = self.store.spec(record).map_err(|error| lost(&id, &error));
            let job = spec.and_then(|spec| self.service.restore(id.clone(), spec, client).map_err(gone));
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
            let (store, id) = (keeper.store.clone(), job.id.clone());
            // What waits when the server ends is drawn after the next start.
            let is_left = keeper.service.is_closed() && phase == Phase::Cancelled && !job.was_stopped();
            let saving = job.saving();
            let save = move || saving.in_scope(|| write(&store, &id, phase));
            if !is_left && let Err(error) = blocking(save).await {
                tracing::error!(job = %job.id, "{error}");
            }
            keeper.service.forget(&job.id);
            keeper.n_open.fetch_sub(1, Ordering::SeqCst);
            keeper.settled.notify_waiters();
        });
    }

    /// Waits until the ends of all jobs that have ended are on disk.
    pub(crate) async fn settle(&self) {
        let waiting = self.service.depth().0;
        for _ in 0..500 {
            if self.n_open.load(Ordering::SeqCst) <= waiting {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), self.settled.notified()).await;
        }
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
                if let Err(error) = store.save(id, i, image, text) {
                    let fault = Fault::new(FaultKind::Internal, "the picture could not be written down");
                    store.end(id, Ending::Failed { fault })?;
                    return Err(error);
                }
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
