//! One job on one worker, from being handed out to being drawn.
//!
//! The record is the truth. An attempt is written there before it begins, pictures are stored before the record names them,
//! and the stream's copy is acknowledged when the record has its end. So a worker that dies anywhere leaves a job that another
//! one draws, and one that comes back late finds that the job has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use kiln_server::store::{Ending, from_bytes, has_pixels, sources};
use kiln_server::{Fault, FaultKind, Job, JobId, Phase, Refusal, Spec};

use super::offers::Offer;
use super::station::{Handed, Station};
use crate::FleetError;
use crate::events::Event;
use crate::records::{Found, Order};
use crate::settings::PROTOCOL;

/// How often the server may hand out what no version can read.
const MAX_DELIVERIES: i64 = 50;

/// How long a job rests that this worker could not do: the longer, the more often that was so.
const RESTS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// How long a job rests that was given back because the worker ends.
pub(super) const SHORT_REST: Duration = Duration::from_millis(100);

/// How often what the server did not answer is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// How often events of steps are sent, and pictures of them.
const BEATS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// What becomes of the stream's copy.
pub(super) enum Settled {
    /// It is done with.
    Done,
    /// It is handed out again after a while.
    Again(Duration),
}

/// The place of a job among those that are drawn, until it is left.
struct Seat {
    station: Arc<Station>,
    id: JobId,
    is_left: AtomicBool,
}

impl Seat {
    fn leave(&self) {
        if !self.is_left.swap(true, Ordering::Relaxed) {
            self.station.end(&self.id);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Draws a job that was handed out, and settles it; `is_new` unless it is drawn already.
pub(super) async fn attend(station: Arc<Station>, handed: Handed, is_new: bool) {
    let Handed { message, offer, order, found } = handed;
    let delivered = message.info().map_or(1, |info| info.delivered);
    let settled = match order {
        // This worker has lost its lease on the job and still draws it.
        Ok(_) if !is_new => Settled::Again(station.broker.settings.lease()),
        Ok(order) => {
            let id = order.record.id.clone();
            let seat = Seat { station: station.clone(), id: id.clone(), is_left: AtomicBool::new(false) };
            let is_of = |found: &Found| matches!(found, Found::Job(known, _) if known.record.id == id);
            let found = found.filter(is_of);
            let claim = Claim { station: &station, message: &message, offer, delivered, seat };
            claim.run(order, found).await
        }
        Err(error) => unreadable(&station, &message, &offer, delivered, &error).await,
    };
    match settled {
        Settled::Done => acknowledge(&message).await,
        Settled::Again(rest) => drop(message.ack_with(AckKind::Nak(Some(rest))).await),
    }
}

/// The server has the answer, or hands the job out once more, which then has ended.
async fn acknowledge(message: &Message) {
    for _ in 0..3 {
        if message.double_ack().await.is_ok() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// A job of a newer version waits for a newer worker; what is none at all is given up after a while.
async fn unreadable(
    station: &Station,
    message: &Message,
    offer: &Offer,
    delivered: i64,
    error: &FleetError,
) -> Settled {
    tracing::warn!(subject = %message.subject, "{error}");
    let is_newer = Order::protocol(&message.payload).is_some_and(|protocol| protocol > PROTOCOL);
    if is_newer || delivered < MAX_DELIVERIES {
        return Settled::Again(rest(delivered));
    }
    let subject = station.broker.names.dead_job(&offer.lane, &JobId::random());
    match station.broker.bury(subject, message.payload.clone()).await {
        Ok(()) => Settled::Done,
        Err(_) => Settled::Again(rest(delivered)),
    }
}

/// How long a job rests after so many times of being handed out.
fn rest(delivered: i64) -> Duration {
    RESTS.0.saturating_mul(u32::try_from(delivered.clamp(1, 1000)).unwrap_or(1)).min(RESTS.1)
}

/// A job that this worker has been handed.
pub(super) struct Claim<'a> {
    pub(super) station: &'a Arc<Station>,
    pub(super) message: &'a Message,
    offer: Offer,
    delivered: i64,
    seat: Seat,
}

impl Claim<'_> {
    async fn run(&self, order: Order, found: Option<Found>) -> Settled {
        match self.begin(order, found).await {
            Ok(Some((order, revision))) => self.draw(order, revision).await,
            Ok(None) => Settled::Done,
            Err(error) => {
                tracing::warn!("a job is left: {error}");
                Settled::Again(self.rest())
            }
        }
    }

    /// How long the job rests where this worker cannot draw it.
    pub(super) fn rest(&self) -> Duration {
        rest(self.delivered)
    }

    /// Writes the attempt down, and gives the record's revision with it; none where there is nothing to draw any more.
    async fn begin(
        &self,
        mut order: Order,
        mut found: Option<Found>,
    ) -> Result<Option<(Order, u64)>, FleetError> {
        let (station, id) = (self.station, order.record.id.clone());
        let records = &station.broker.records;
        let info = self.message.info();
        let sequence = info.as_ref().map_or(0, |info| info.stream_sequence);
        let queued = info.map_or(SystemTime::now(), |info| info.published.into());
        let claim = JobId::random().to_string();
        loop {
            let found = match found.take() {
                Some(found) => found,
                None => records.find(&id).await?,
            };
            let (mut known, revision) = match found {
                Found::Job(known, revision) => (*known, revision),
                Found::Forgotten(at) if at > queued => return Ok(None),
                // Whoever took it has not written its record yet, or never will.
                Found::Nothing | Found::Forgotten(_) => {
                    order.record.sequence = sequence;
                    records.create(&order).await?;
                    continue;
                }
            };
            if known.claim.as_ref() == Some(&claim) {
                return Ok(Some((known, revision)));
            }
            if known.is_final() {
                self.bury_if_dead(&known).await?;
                return Ok(None);
            }
            // A copy that has no number yet was queued anew, and this may be it.
            if known.record.sequence != sequence && known.record.sequence != 0 {
                return Ok(None);
            }
            if known.is_stopped {
                known.end(Ending::Cancelled);
                records.update(&known, revision).await?;
                continue;
            }
            if let Some(before) = known.worker.take() {
                tracing::warn!(job = %id, "worker {before} has not finished it");
                known.note(format!("worker {before} did not finish"));
            }
            if let Some(fault) = self.hopeless(&known) {
                self.give_up(&known, fault).await?;
                return Ok(None);
            }
            known.record.sequence = sequence;
            known.record.begun = true;
            known.record.attempts += 1;
            known.worker = Some(station.name.clone());
            known.claim = Some(claim.clone());
            match records.update(&known, revision).await {
                Ok(Some(revision)) => return Ok(Some((known, revision))),
                Ok(None) => {}
                // It may have been written all the same.
                Err(error) => {
                    tracing::warn!(job = %id, "{error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Why a job is not tried any more, if it is not.
    fn hopeless(&self, known: &Order) -> Option<Fault> {
        let settings = &self.station.broker.settings;
        let reasons = known.faults.join(", ");
        let message = match known.record.attempts >= settings.attempts {
            true => format!("given up after {} attempts: {reasons}", settings.attempts),
            false if kiln_server::store::now().saturating_sub(known.record.created) > settings.keep => {
                format!("given up, as nobody could draw it for {} s: {reasons}", settings.keep)
            }
            false => return None,
        };
        Some(Fault::new(FaultKind::Interrupted, message))
    }

    async fn draw(&self, order: Order, revision: u64) -> Settled {
        let (station, id) = (self.station, order.record.id.clone());
        let began = Instant::now();
        let mut spec = match self.spec(&order).await {
            Ok(spec) => spec,
            Err(Trouble::Fault(fault)) => return self.fail(&order, fault).await,
            Err(Trouble::Here(reason)) => return self.leave(&order, reason, self.rest()).await,
        };
        let service = station.service.clone();
        let checked = tokio::task::spawn_blocking(move || service.check(&mut spec).map(|cost| (spec, cost)));
        let (spec, cost) = match checked.await.unwrap_or(Err(Refusal::Ending)) {
            Ok(checked) => checked,
            Err(Refusal::Invalid(fault)) => return self.fail(&order, fault).await,
            Err(refusal) => return self.leave(&order, format!("{refusal:?}"), self.rest()).await,
        };
        let client = order.record.client.clone();
        let job = station.service.put(Job::new(id.clone(), spec, client, cost));
        let phase = self.follow(&job, &order).await;
        station.service.forget(&id);
        // Another job may be drawn while this one's pictures are stored.
        self.seat.leave();
        match phase {
            Phase::Done(finished) => {
                self.renewing(self.finish(order, revision, finished, began.elapsed())).await
            }
            Phase::Failed(fault) => match fault.kind {
                FaultKind::Memory | FaultKind::Device => self.try_again(&order, fault).await,
                // It may be this worker's copy.
                FaultKind::Model => {
                    station.distrust(&self.offer);
                    self.try_again(&order, fault).await
                }
                _ => self.fail(&order, fault).await,
            },
            _ if job.was_stopped() => self.cancel(&order).await,
            _ => self.leave(&order, String::new(), SHORT_REST).await,
        }
    }

    /// What to draw, with its pictures and as this worker calls things.
    async fn spec(&self, order: &Order) -> Result<Spec, Trouble> {
        let here = |reason: String| Err(Trouble::Here(reason));
        if order.lane.bundle != self.offer.lane.bundle {
            return here(format!("bundle {} is not this worker's", order.lane.bundle));
        }
        let mut spec = order.record.spec.clone();
        spec.model.clone_from(&self.offer.model);
        if let Some(lora) = self.other_lora(order, &spec.model).await {
            return here(format!("LoRA {lora} is not the one that was asked for"));
        }
        for (source, picture) in sources(&mut spec.request).filter(|(_, picture)| !has_pixels(picture)) {
            let name = format!("in/{}", source.file(&order.record.id));
            let stored = self.station.pictures.get(&name).await.map_err(|e| Trouble::Here(e.to_string()))?;
            let lost = || {
                Trouble::Fault(Fault::new(
                    FaultKind::Internal,
                    "the pictures that the job starts from cannot be read",
                ))
            };
            *picture = from_bytes(&stored.ok_or_else(lost)?).map_err(|_| lost())?;
        }
        Ok(spec)
    }

    /// A LoRA whose file is another one here than where the job was taken.
    async fn other_lora(&self, order: &Order, model: &str) -> Option<String> {
        if order.loras.is_empty() {
            return None;
        }
        let (station, model) = (self.station.clone(), model.to_owned());
        let wanted: HashMap<String, String> = order.loras.clone().into_iter().collect();
        let other = tokio::task::spawn_blocking(move || {
            wanted.into_iter().find_map(|(lora, digest)| {
                (station.loras.of(&station.service, &model, &lora) != Some(digest)).then_some(lora)
            })
        });
        other.await.unwrap_or_default()
    }

    /// Tells how far a job is, and keeps the lease on it while it gets on, until it ends.
    async fn follow(&self, job: &Job, ours: &Order) -> Phase {
        let (station, lease) = (self.station, self.station.broker.settings.lease());
        let subject = station.broker.names.event(&job.id);
        let mut watcher = job.watch();
        let mut renewal = tokio::time::interval(lease / 4);
        let (mut told, mut shown) = (None, None);
        loop {
            let status = watcher.borrow_and_update().clone();
            if status.phase.is_final() {
                return status.phase;
            }
            let is_due = |last: Option<Instant>, beat: Duration| last.is_none_or(|at| at.elapsed() >= beat);
            let is_step = matches!(status.phase, Phase::Drawing { .. });
            if !is_step || is_due(told, BEATS.0) {
                let with_preview = status.preview.is_some() && is_due(shown, BEATS.1);
                if let Some(event) = Event::of(&status, with_preview) {
                    told = is_step.then(Instant::now);
                    shown = with_preview.then(Instant::now).or(shown);
                    let text = serde_json::to_vec(&event).expect("events are JSON");
                    let _ = station.broker.client.publish(subject.clone(), text.into()).await;
                }
            }
            tokio::select! {
                changed = watcher.changed() => if changed.is_err() { return Phase::Cancelled },
                _ = renewal.tick() => if station.service.gets_on(lease) {
                    let _ = self.message.ack_with(AckKind::Progress).await;
                    self.stop_if_unwanted(job, ours);
                },
            }
        }
    }

    /// Stops a job whose owner has stopped it, or that has ended otherwise, where nobody could tell this worker.
    fn stop_if_unwanted(&self, job: &Job, ours: &Order) {
        let (station, id, claim) = (self.station.clone(), job.id.clone(), ours.claim.clone());
        tokio::spawn(async move {
            let is_wanted = match station.broker.records.find(&id).await {
                Ok(Found::Job(known, _)) => !known.is_stopped && !known.is_final() && known.claim == claim,
                Ok(Found::Forgotten(_)) => false,
                Ok(Found::Nothing) | Err(_) => true,
            };
            if let Some(job) = station.service.job(&id).filter(|_| !is_wanted) {
                station.service.cancel(&job);
            }
        });
    }

    /// Keeps the lease while something is done that ends by itself.
    async fn renewing<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut renewal = tokio::time::interval(self.station.broker.settings.lease() / 4);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = renewal.tick() => drop(self.message.ack_with(AckKind::Progress).await),
            }
        }
    }

    /// Tells another worker, which has begun a job that seemed to be left, that it has ended.
    pub(super) async fn call_off(&self, id: &JobId) {
        let subject = self.station.broker.names.stop(id);
        let _ = self.station.broker.client.publish(subject, Bytes::new()).await;
    }
}

/// Why a job cannot be drawn.
enum Trouble {
    /// It cannot at all.
    Fault(Fault),
    /// It cannot here.
    Here(String),
}
