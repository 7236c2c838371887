//! What handlers do with jobs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use kiln_runtime::bundle::Bundle;
use tokio::sync::watch;

use crate::config::ModelConfig;
use crate::estimate::Speeds;
use crate::metrics::{End, FleetMoment, Memory, Metrics, Moment, Refused};
use crate::models::{Model, Models, Runtime};
use crate::pulse::{Pulse, Stuck};
use crate::queue::{Place, Queue};
use crate::store::Store;
use crate::{ClientId, Fault, FaultKind, Job, JobId, Phase, ServerError, Spec};

/// Why a job was not taken.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The queue, or the client's share of it, is full; when to try again.
    Full(Duration),
    /// No model has this name.
    NoModel(String),
    /// The request cannot be done.
    Invalid(Fault),
    /// The server is about to end.
    Ending,
}

/// Jobs from being sent to being done. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) models: Models,
    pub(crate) queue: Queue,
    pub(crate) speeds: Speeds,
    pub(crate) metrics: Metrics,
    pub(crate) pulse: Pulse,
    /// All jobs that somebody may still ask for.
    jobs: Mutex<HashMap<JobId, Arc<Job>>>,
    share: usize,
    closed: watch::Sender<bool>,
    /// How many jobs are drawn at once, each as fast as if it were alone.
    n_workers: AtomicUsize,
    /// Tickets that somebody holds.
    n_awaited: AtomicUsize,
    /// Who draws jobs elsewhere, and has to know which are stopped.
    stopped: OnceLock<Teller>,
}

/// Is told of a job.
type Teller = Box<dyn Fn(&Job) + Send + Sync>;

/// Least and most seconds after which a client should try again.
const RETRY: [u64; 2] = [1, 59];

impl Service {
    /// A service whose queue holds so many jobs, and so many of one client.
    pub fn new(capacity: usize, share: usize) -> Service {
        Service(Arc::new(Shared {
            models: Models::default(),
            queue: Queue::new(capacity),
            speeds: Speeds::default(),
            metrics: Metrics::new(),
            pulse: Pulse::default(),
            jobs: Mutex::default(),
            share,
            closed: watch::Sender::new(false),
            n_workers: AtomicUsize::new(1),
            n_awaited: AtomicUsize::new(0),
            stopped: OnceLock::new(),
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What is counted and measured, as Prometheus reads it.
    pub fn metrics_text(&self, memory: Memory, fleet: Option<FleetMoment>) -> String {
        let (queued, drawing) = self.depth();
        let oldest = self.0.queue.jobs().iter().map(|job| job.age()).max().unwrap_or_default();
        self.0.metrics.text(&Moment { queued, oldest, drawing, memory, fleet })
    }

    /// The models.
    pub fn models(&self) -> &Models {
        &self.0.models
    }

    /// Takes a job.
    pub fn submit(&self, mut spec: Spec, client: ClientId) -> Result<Arc<Job>, Refusal> {
        let cost = self.check(&mut spec)?;
        let place = self.place(&client)?;
        Ok(self.fill(place, Job::new(JobId::random(), spec, client, cost)))
    }

    /// Fills in what the model's configuration says, and refuses what will not be taken; what it costs.
    pub fn check(&self, spec: &mut Spec) -> Result<f64, Refusal> {
        let Some(model) = self.0.models.get(&spec.model) else {
            return Err(self.counted(Refusal::NoModel(spec.model.chars().take(64).collect())));
        };
        model.accept(spec).map_err(|fault| self.counted(Refusal::Invalid(fault)))
    }

    /// Keeps a place for a job of a client.
    pub fn place(&self, client: &ClientId) -> Result<Place<'_>, Refusal> {
        if self.is_closed() {
            return Err(self.counted(Refusal::Ending));
        }
        let place = self.0.queue.place(client, self.0.share);
        place.ok_or_else(|| self.counted(Refusal::Full(self.retry_after())))
    }

    /// Takes a job that was checked, for which a place was kept, unless it is known.
    pub fn fill(&self, place: Place<'_>, job: Job) -> Arc<Job> {
        let (job, is_new) = self.enter(job);
        if is_new {
            place.fill(job.clone());
        }
        job
    }

    fn counted(&self, refusal: Refusal) -> Refusal {
        self.0.metrics.refused(match &refusal {
            Refusal::Full(_) => Refused::Full,
            Refusal::NoModel(_) => Refused::Model,
            Refusal::Invalid(_) => Refused::Invalid,
            Refusal::Ending => Refused::Ending,
        });
        refusal
    }

    /// Takes a job that was taken before the last end, whatever waits.
    pub(crate) fn restore(
        &self,
        id: JobId,
        mut spec: Spec,
        client: ClientId,
        store: &Arc<Store>,
    ) -> Result<Arc<Job>, Refusal> {
        let cost = self.check(&mut spec)?;
        Ok(self.put(Job::new(id, spec, client, cost).on_disk(store)))
    }

    /// The job, and whether it was not known.
    fn enter(&self, job: Job) -> (Arc<Job>, bool) {
        match self.jobs().entry(job.id.clone()) {
            Entry::Occupied(known) => (known.get().clone(), false),
            Entry::Vacant(place) => (place.insert(Arc::new(job)).clone(), true),
        }
    }

    /// Takes a job whatever waits, unless it is known.
    pub fn put(&self, job: Job) -> Arc<Job> {
        let (job, is_new) = self.enter(job);
        if is_new {
            self.0.queue.restore([job.clone()]);
        }
        job
    }

    /// What the worker is stuck in, if it is.
    pub(crate) fn stuck(&self) -> Option<Stuck> {
        self.0.pulse.stuck()
    }

    /// Serves these models from now on; jobs that have begun end with the model that they began with. A fault changes nothing.
    pub fn serve(&self, models: &[(ModelConfig, Bundle)], runtime: &Runtime) -> Result<(), ServerError> {
        let open = |(config, bundle): &(ModelConfig, Bundle)| {
            if let Some(known) = self.0.models.get(&config.name).filter(|known| known.is(config, bundle)) {
                return Ok(known);
            }
            let opened = Model::open(config, bundle.clone(), runtime);
            opened
                .map(Arc::new)
                .map_err(|source| ServerError::Model { name: config.name.clone(), source: Box::new(source) })
        };
        self.0.models.set(models.iter().map(open).collect::<Result<_, _>>()?);
        Ok(())
    }

    /// Stops all jobs before their next step, as the process ends.
    pub fn interrupt(&self) {
        self.all().iter().for_each(|job| job.cancel());
    }

    /// Whether what the worker does is not stuck.
    pub fn is_well(&self) -> bool {
        self.stuck().is_none()
    }

    /// Whether the worker shows progress, as others see it who lend it a job for this time.
    pub fn gets_on(&self, lease: Duration) -> bool {
        self.0.pulse.gets_on(lease)
    }

    /// Whether no more jobs are taken.
    pub fn is_closed(&self) -> bool {
        self.0.queue.is_closed()
    }

    /// Waits until no more jobs are taken.
    pub(crate) async fn closed(&self) {
        let _ = self.0.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Whether a job is left for the next start, as the server ends before it is drawn.
    pub(crate) fn leaves(&self, job: &Job) -> bool {
        let phase = job.status().phase;
        self.is_closed() && !job.was_stopped() && matches!(phase, Phase::Queued | Phase::Cancelled)
    }

    /// A job by its name.
    pub fn job(&self, id: &JobId) -> Option<Arc<Job>> {
        self.jobs().get(id).cloned()
    }

    /// All jobs, the oldest first.
    pub fn all(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<_> = self.jobs().values().cloned().collect();
        jobs.sort_by_key(|job| job.created);
        jobs
    }

    /// Stops a job: at once where it waits, before its next step where it is drawn.
    pub fn cancel(&self, job: &Job) {
        job.stop();
        if let Some(tell) = self.0.stopped.get() {
            tell(job);
        }
        if self.0.queue.remove(&job.id).is_some() {
            self.0.metrics.ended(&job.spec.model, End::Cancelled);
            job.enter(Phase::Cancelled);
        }
    }

    /// Says who draws jobs elsewhere, and is told of each that its owner stops. Once.
    pub fn tell_stops(&self, tell: impl Fn(&Job) + Send + Sync + 'static) {
        let _ = self.0.stopped.set(Box::new(tell));
    }

    /// Takes a job out of the queue, as it is drawn elsewhere. Whether it waited.
    pub fn take_out(&self, id: &JobId) -> bool {
        self.0.queue.remove(id).is_some()
    }

    /// Puts a job that was taken out behind its client's others.
    pub fn put_back(&self, job: &Arc<Job>) {
        self.take_out(&job.id);
        job.enter(Phase::Queued);
        self.0.queue.restore([job.clone()]);
    }

    /// Says how many jobs are drawn at once; one where this process draws.
    pub fn set_workers(&self, n: usize) {
        self.0.n_workers.store(n.max(1), Ordering::Relaxed);
    }

    /// Takes note of how fast a model was: what a job cost, and how long its evaluations took.
    pub fn note_speed(&self, model: &str, cost: f64, time: Duration) {
        self.0.speeds.note(model, cost, time);
    }

    /// Jobs that somebody waits for.
    pub fn n_awaited(&self) -> usize {
        self.0.n_awaited.load(Ordering::Relaxed)
    }

    /// Lets go of a job, whose pictures nobody will ask for.
    pub fn forget(&self, id: &JobId) {
        self.jobs().remove(id);
    }

    /// How many jobs are drawn before this one, if it waits.
    pub fn position(&self, id: &JobId) -> Option<usize> {
        self.0.queue.jobs().iter().position(|job| job.id == *id)
    }

    /// Jobs that wait, and jobs that are drawn.
    pub fn depth(&self) -> (usize, usize) {
        let is_drawn = |job: &&Arc<Job>| {
            matches!(job.status().phase, Phase::Loading | Phase::Drawing { .. } | Phase::Decoding)
        };
        (self.0.queue.len(), self.jobs().values().filter(is_drawn).count())
    }

    /// Time until a job is done; none where its model's speed is not known yet.
    ///
    /// What is drawn together shares the device: each job's step takes its share of the speed until one of them is done.
    pub fn remaining(&self, job: &Job) -> Option<Duration> {
        let phase = job.status().phase;
        if phase.is_final() {
            return Some(Duration::ZERO);
        }
        let left = |phase: &Phase| match phase {
            Phase::Drawing { step, steps } => 1.0 - *step as f64 / (*steps).max(1) as f64,
            Phase::Decoding => 0.0,
            _ => 1.0,
        };
        let time = |job: &Job, share: f64| self.0.speeds.time(&job.spec.model, share * job.cost);
        let own = left(&phase);
        let (own_time, mut sum) = (time(job, own)?, Duration::ZERO);
        let is_drawn = |phase: &Phase| matches!(phase, Phase::Loading | Phase::Drawing { .. });
        for other in self.jobs().values().filter(|other| other.id != job.id) {
            let others = other.status().phase;
            if is_drawn(&others) {
                let together = is_drawn(&phase) && other.spec.model == job.spec.model;
                let share = if together { left(&others).min(own) } else { left(&others) };
                sum += time(other, share).unwrap_or_default();
            }
        }
        if phase == Phase::Queued {
            for other in self.0.queue.jobs().iter().take_while(|other| other.id != job.id) {
                sum += time(other, 1.0).unwrap_or_default();
            }
        }
        Some(own_time + sum / u32::try_from(self.0.n_workers.load(Ordering::Relaxed)).unwrap_or(u32::MAX))
    }

    /// When a client whom the queue has no place for should try again.
    pub fn retry_after(&self) -> Duration {
        let waiting = self.0.queue.jobs();
        let time = waiting.first().and_then(|first| self.remaining(first));
        let seconds = time.map_or(RETRY[0], |time| time.as_secs());
        Duration::from_secs(seconds.clamp(RETRY[0], RETRY[1]))
    }

    /// Gives out no job any more, and gives those that wait.
    pub fn close(&self) -> Vec<Arc<Job>> {
        self.0.queue.close();
        self.0.closed.send_replace(true);
        self.0.queue.jobs()
    }

    /// Ends the jobs that still wait when the server does.
    pub fn let_go(&self) {
        self.0.queue.jobs().iter().for_each(|job| job.enter(Phase::Cancelled));
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Job>>> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job that somebody waits for. Dropped before the job's end, it stops the job, which nobody else waits for.
pub struct Ticket {
    service: Service,
    job: Arc<Job>,
}

impl Ticket {
    /// A ticket for a job.
    pub fn new(service: &Service, job: Arc<Job>) -> Ticket {
        service.0.n_awaited.fetch_add(1, Ordering::Relaxed);
        Ticket { service: service.clone(), job }
    }

    /// The job.
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// Waits for the pictures.
    pub async fn pictures(&self) -> Result<Arc<crate::Finished>, Fault> {
        match self.job.ended().await {
            Phase::Done(finished) => Ok(finished),
            Phase::Failed(fault) => Err(fault),
            _ => Err(Fault::new(FaultKind::Interrupted, "the job was cancelled")),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.job.status().phase.is_final() {
            self.service.cancel(&self.job);
        }
        self.service.forget(&self.job.id);
        self.service.0.n_awaited.fetch_sub(1, Ordering::Relaxed);
    }
}
