//! Follows the fleet's jobs: who waits, who is drawn and how far, and what has ended.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_nats::jetstream::kv::{Entry, Operation, Watch};
use futures_util::StreamExt;
use kiln_runtime::Timings;
use kiln_runtime::image::RgbImage;
use kiln_server::store::Ending;
use kiln_server::{Fault, FaultKind, Finished, Job, JobId, Load, Phase};

use super::Front;
use crate::FleetError;
use crate::events::Event;
use crate::records::Order;

/// How long to wait before following again what could not be followed.
const RETRY: Duration = Duration::from_secs(1);

impl Front {
    /// Takes in what is known of all jobs, and follows it from then on.
    pub(super) async fn mirror(&self) -> Result<(), FleetError> {
        let mut watch = self.catch_up().await.map(Some)?;
        let front = self.clone();
        tokio::spawn(async move {
            loop {
                if let Some(records) = watch.take() {
                    front.follow(records).await;
                    tracing::warn!("the fleet's jobs are followed anew");
                }
                tokio::time::sleep(RETRY).await;
                watch = front.catch_up().await.ok();
            }
        });
        tokio::spawn(self.clone().listen());
        let front = self.clone();
        self.0.roster.follow(&self.0.broker, move || front.count_workers());
        Ok(())
    }

    /// Takes in what is there, in the order in which it was sent.
    async fn catch_up(&self) -> Result<Watch, FleetError> {
        let mut open = Vec::new();
        let watch = self.0.broker.records.catch_up(|entry| match self.note(entry) {
            Some(order) if order.is_final() => self.apply(&order),
            order => open.extend(order),
        });
        let watch = watch.await?;
        open.sort_by_key(|order| order.record.sequence);
        open.iter().for_each(|order| self.apply(order));
        Ok(watch)
    }

    async fn follow(&self, mut records: Watch) {
        while let Some(Ok(entry)) = records.next().await {
            if let Some(order) = self.note(&entry) {
                self.apply(&order);
            }
        }
    }

    /// Keeps the index, and gives the job that an entry is about.
    fn note(&self, entry: &Entry) -> Option<Order> {
        let id = JobId::parse(&entry.key)?;
        let order = match entry.operation {
            Operation::Put => Order::read(&entry.value).ok()?,
            _ => {
                self.index().remove(&id);
                self.drop_job(&id);
                return None;
            }
        };
        self.index().insert(&order.record, order.is_kept);
        Some(order)
    }

    fn drop_job(&self, id: &JobId) {
        self.0.service.take_out(id);
        let is_awaited = self.awaited().contains(id);
        if let Some(job) = self.0.service.job(id).filter(|_| !is_awaited) {
            self.0.service.forget(id);
            job.touch();
        }
    }

    pub(super) fn apply(&self, order: &Order) {
        let (service, record) = (&self.0.service, &order.record);
        if order.is_final() {
            if let Some(took) = Some(order.seconds).filter(|seconds| *seconds > 0.0) {
                service.note_speed(&record.spec.model, order.cost, Duration::from_secs_f64(took));
            }
            let is_awaited = self.awaited().remove(&record.id);
            if is_awaited {
                service.take_out(&record.id);
                tokio::spawn(self.clone().deliver(order.clone(), service.job(&record.id)));
            } else {
                self.drop_job(&record.id);
            }
            return;
        }
        let created = UNIX_EPOCH + Duration::from_secs(record.created);
        let job = Job::new(record.id.clone(), record.spec.clone(), record.client.clone(), order.cost);
        let job = service.put(job.sent_at(created));
        let is_waiting = job.status().phase == Phase::Queued;
        match (record.begun, is_waiting) {
            (true, true) => {
                service.take_out(&record.id);
                job.enter(Phase::Loading);
            }
            (true, false) => drop(service.take_out(&record.id)),
            (false, false) => service.put_back(&job),
            (false, true) => {}
        }
    }

    /// Gives a job's pictures to whoever waits for them, if anybody does any more, and forgets it.
    async fn deliver(self, order: Order, job: Option<Arc<Job>>) {
        if let Some(job) = job {
            job.enter(self.end_of(&order).await);
        }
        if let Err(error) = self.remove(&order).await {
            tracing::debug!(job = %order.record.id, "{error}");
        }
    }

    async fn end_of(&self, order: &Order) -> Phase {
        match order.record.ending.clone() {
            Ending::Done { infotexts, .. } => match self.images(order).await {
                Ok(images) => {
                    Phase::Done(Arc::new(Finished { images, infotexts, timings: Timings::default() }))
                }
                Err(error) => {
                    tracing::error!(job = %order.record.id, "{error}");
                    Phase::Failed(Fault::new(FaultKind::Internal, "the pictures cannot be fetched"))
                }
            },
            Ending::Failed { fault } => Phase::Failed(fault),
            Ending::Cancelled | Ending::Open => Phase::Cancelled,
        }
    }

    async fn images(&self, order: &Order) -> Result<Vec<RgbImage>, FleetError> {
        let mut files = Vec::with_capacity(order.pictures.len());
        for name in &order.pictures {
            let file = self.0.pictures.get(name).await?;
            files.push(file.ok_or_else(|| FleetError::Storage(format!("{name}: is not there")))?);
        }
        let images = tokio::task::spawn_blocking(move || {
            files.iter().map(|file| RgbImage::from_bytes(file).map_err(|e| e.to_string())).collect()
        });
        let images: Result<Vec<RgbImage>, String> =
            images.await.map_err(|e| FleetError::Storage(e.to_string()))?;
        images.map_err(FleetError::Storage)
    }

    /// Passes on what workers tell of jobs.
    async fn listen(self) {
        let broker = &self.0.broker;
        loop {
            if let Ok(mut events) = broker.client.subscribe(broker.names.events()).await {
                while let Some(message) = events.next().await {
                    let id = message.subject.rsplit('.').next().and_then(JobId::parse);
                    let Some(job) = id.and_then(|id| self.0.service.job(&id)) else { continue };
                    if let Ok(event) = serde_json::from_slice::<Event>(&message.payload) {
                        self.0.service.take_out(&job.id);
                        event.tell(&job);
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Says which models workers have, and how many draw.
    pub(super) fn count_workers(&self) {
        let cards: Vec<_> = self.0.roster.cards().into_iter().filter(|card| !card.is_draining).collect();
        self.0.service.set_workers(cards.len());
        let models = self.0.service.models();
        for card in models.cards() {
            let Some(lane) = self.lane(&card.name) else { continue };
            let of_lane = || cards.iter().flat_map(|card| &card.models).filter(|model| model.lane == lane);
            let is = |load: &str| of_lane().any(|model| model.load == load);
            models.set_load(
                &card.name,
                match () {
                    () if is("loaded") => Load::Loaded,
                    () if is("loading") => Load::Loading,
                    () if is("unloaded") => Load::Unloaded,
                    () if is("failed") => {
                        Load::Failed(Fault::new(FaultKind::Model, "no worker can load it; their logs say why"))
                    }
                    () => Load::Failed(Fault::new(FaultKind::Model, "no worker has it")),
                },
            );
        }
    }
}
