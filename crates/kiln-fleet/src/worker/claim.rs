//! One job on one worker, from being handed out to being settled.
//!
//! The record is the truth. An attempt is written there before it begins, pictures are stored before the record names them,
//! and the stream's copy is acknowledged when the record has its end. So a worker that dies anywhere leaves a job that another
//! one draws, and one that comes back late finds that the job has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::{AckKind, Message};
use kiln_server::store::{Ending, from_bytes, has_pixels, sources};
use kiln_server::{Fault, FaultKind, Finished, Job, JobId, Phase, Refusal, Spec};

use super::offers::Offer;
use super::station::{Handed, Station};
use crate::FleetError;
use crate::events::Event;
use crate::records::{Found, Order};

/// How often the server may hand a job out at all; some are given back before they count as attempts.
const MAX_DELIVERIES: i64 = 50;

/// How long a job rests that this worker could not do.
const REST: Duration = Duration::from_secs(5);

/// How long a job rests that was given back because the worker ends.
const SHORT_REST: Duration = Duration::from_millis(100);

/// How often what the server did not answer is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How often pictures are tried to be stored before the job is given back.
const STORING: usize = 5;

/// How often events of steps are sent, and pictures of them.
const BEATS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// What becomes of the stream's copy.
enum Settled {
    /// It is done with.
    Done,
    /// It is handed out again after a while.
    Again(Duration),
}

/// Draws a job that was handed out, and settles it; `is_new` unless it is drawn already.
pub(super) async fn attend(station: Arc<Station>, handed: Handed, is_new: bool) {
    let Handed { message, offer, order, found } = handed;
    let delivered = message.info().map_or(1, |info| info.delivered);
    let settled = match order {
        Ok(order) => {
            let id = order.record.id.clone();
            if !is_new {
                // This worker has lost its lease on the job and still draws it.
                let _ = message.ack_with(AckKind::Nak(Some(station.broker.settings.lease()))).await;
                return;
            }
            let is_of = |found: &Found| matches!(found, Found::Job(known, _) if known.record.id == id);
            let found = found.filter(is_of);
            let settled =
                Claim { station: &station, message: &message, offer, delivered }.run(order, found).await;
            station.end(&id);
            settled
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

/// A newer worker may read it; after many it is given up.
async fn unreadable(
    station: &Station,
    message: &Message,
    offer: &Offer,
    delivered: i64,
    error: &FleetError,
) -> Settled {
    tracing::warn!(subject = %message.subject, "{error}");
    if delivered < MAX_DELIVERIES {
        return Settled::Again(REST);
    }
    let subject = station.broker.names.dead_job(&offer.lane, &JobId::random());
    match station.broker.bury(subject, message.payload.clone()).await {
        Ok(()) => Settled::Done,
        Err(_) => Settled::Again(REST),
    }
}

struct Claim<'a> {
    station: &'a Arc<Station>,
    message: &'a Message,
    offer: Offer,
    delivered: i64,
}

impl Claim<'_> {
    async fn run(&self, order: Order, found: Option<Found>) -> Settled {
        match self.begin(order, found).await {
            Ok(Some((order, revision))) => self.draw(order, revision).await,
            Ok(None) => Settled::Done,
            Err(error) => {
                tracing::warn!("a job is left: {error}");
                Settled::Again(REST)
            }
        }
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
            if known.is_final() || known.record.sequence != sequence {
                return Ok(None);
            }
            if known.is_stopped {
                known.end(Ending::Cancelled);
                records.update(&known, revision).await?;
                continue;
            }
            if let Some(before) = known.worker.take() {
                tracing::warn!(job = %id, "worker {before} has not finished it");
                known.faults.push(format!("worker {before} did not finish"));
            }
            let attempts = station.broker.settings.attempts;
            if known.record.attempts >= attempts || self.delivered > MAX_DELIVERIES {
                let message = match known.record.attempts >= attempts {
                    true => format!("given up after {attempts} attempts: {}", known.faults.join(", ")),
                    false => format!("handed out {} times, and nobody could draw it", self.delivered),
                };
                self.give_up(&known, Fault::new(FaultKind::Interrupted, message)).await?;
                return Ok(None);
            }
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

    /// Puts a job where those are that were given up, and ends it.
    async fn give_up(&self, order: &Order, fault: Fault) -> Result<(), FleetError> {
        let (broker, id) = (&self.station.broker, &order.record.id);
        tracing::error!(job = %id, "{fault}");
        let mut dead = order.clone();
        dead.end(Ending::Failed { fault: fault.clone() });
        broker.bury(broker.names.dead_job(&order.lane, id), dead.to_bytes().into()).await?;
        let ended = broker.records.change(id, |order| {
            let is_open = !order.is_final();
            order.end(Ending::Failed { fault: fault.clone() });
            is_open
        });
        self.station.tally.failed.fetch_add(1, Ordering::Relaxed);
        ended.await.map(drop)
    }

    async fn draw(&self, order: Order, revision: u64) -> Settled {
        let (station, id) = (self.station, order.record.id.clone());
        let began = Instant::now();
        let mut spec = match self.spec(&order).await {
            Ok(spec) => spec,
            Err(Trouble::Fault(fault)) => return self.fail(&order, fault).await,
            Err(Trouble::Here(reason)) => return self.leave(&order, reason, REST).await,
        };
        let service = station.service.clone();
        let checked = tokio::task::spawn_blocking(move || service.check(&mut spec).map(|cost| (spec, cost)));
        let (spec, cost) = match checked.await.unwrap_or(Err(Refusal::Ending)) {
            Ok(checked) => checked,
            Err(Refusal::Invalid(fault)) => return self.fail(&order, fault).await,
            Err(refusal) => return self.leave(&order, format!("{refusal:?}"), REST).await,
        };
        let client = order.record.client.clone();
        let job = station.service.put(Job::new(id.clone(), spec, client, cost));
        let phase = self.follow(&job).await;
        station.service.forget(&id);
        // Another job may be drawn while this one's pictures are stored.
        station.end(&id);
        match phase {
            Phase::Done(finished) => self.finish(order, revision, finished, began.elapsed()).await,
            Phase::Failed(fault) if matches!(fault.kind, FaultKind::Memory | FaultKind::Device) => {
                self.try_again(&order, fault).await
            }
            Phase::Failed(fault) => self.fail(&order, fault).await,
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
        let (station, model, wanted) = (self.station.clone(), spec.model.clone(), order.loras.clone());
        let digests = move |wanted: HashMap<String, String>| {
            wanted.into_iter().find_map(|(lora, digest)| {
                (station.loras.of(&station.service, &model, &lora) != Some(digest)).then_some(lora)
            })
        };
        let wanted: HashMap<String, String> = wanted.into_iter().collect();
        let other = match wanted.is_empty() {
            true => None,
            false => tokio::task::spawn_blocking(move || digests(wanted)).await.unwrap_or_default(),
        };
        if let Some(lora) = other {
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

    /// Tells how far a job is, and keeps the lease on it while it gets on, until it ends.
    async fn follow(&self, job: &Job) -> Phase {
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
                },
            }
        }
    }

    /// Stores a job's pictures, and says so in its record.
    async fn finish(&self, order: Order, revision: u64, finished: Arc<Finished>, time: Duration) -> Settled {
        let (station, id) = (self.station, &order.record.id);
        let claim = order.claim.clone().unwrap_or_default();
        let infotexts = finished.infotexts.clone();
        let encoded = tokio::task::spawn_blocking(move || {
            let texts = finished.images.iter().zip(&finished.infotexts);
            texts.map(|(image, text)| kiln_server::http::png(image, text)).collect::<Result<Vec<_>, _>>()
        });
        let Ok(Ok(files)) = encoded.await else {
            return self.fail(&order, Fault::unknown()).await;
        };
        let name = |i: usize| format!("out/{id}/{}-{i}.png", &claim[..8.min(claim.len())]);
        let names: Vec<String> = (0..files.len()).map(name).collect();
        for (name, file) in names.iter().zip(files) {
            if let Err(error) = self.store(name, file.into()).await {
                station.set_trouble(Some(error.to_string()));
                return self.leave(&order, error.to_string(), REST).await;
            }
        }
        let ending = Ending::Done { pictures: names.len(), infotexts };
        let end = |order: &mut Order| {
            order.end(ending.clone());
            order.pictures.clone_from(&names);
            order.seconds = time.as_secs_f64();
            order.worker = Some(station.name.clone());
        };
        let mut ended = order.clone();
        end(&mut ended);
        // Nearly always nothing has happened to it meanwhile.
        let is_done = matches!(station.broker.records.update(&ended, revision).await, Ok(Some(_)))
            || self.commit(&order, &names, end).await;
        match is_done {
            true => {
                station.tally.done.fetch_add(1, Ordering::Relaxed);
                let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                station.tally.busy_milliseconds.fetch_add(milliseconds, Ordering::Relaxed);
            }
            false => {
                tracing::warn!(job = %id, "it had ended otherwise before this worker was done");
                for name in &names {
                    let _ = station.pictures.delete(name).await;
                }
            }
        }
        Settled::Done
    }

    async fn store(&self, name: &str, file: bytes::Bytes) -> Result<(), FleetError> {
        let mut n_failures = 0;
        loop {
            match self.station.pictures.put(name, file.clone()).await {
                Ok(()) => return Ok(()),
                // While the server is away, nobody else can have the job.
                Err(_) if !self.station.broker.is_connected() => {}
                Err(error) if n_failures >= STORING => return Err(error),
                Err(_) => n_failures += 1,
            }
            let _ = self.message.ack_with(AckKind::Progress).await;
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends a job's record, however long the server is away: whether this is the end that it has. Pictures are an end for a
    /// job that another worker has begun meanwhile, too; a failure is not.
    async fn commit(&self, ours: &Order, pictures: &[String], end: impl Fn(&mut Order)) -> bool {
        let (records, id) = (&self.station.broker.records, &ours.record.id);
        let settle = |order: &mut Order| {
            let has_end = match order.is_stopped {
                true => pictures.is_empty(),
                false => !pictures.is_empty() || order.claim == ours.claim,
            };
            let takes_it = !order.is_final() && has_end;
            if takes_it {
                end(order);
            }
            takes_it
        };
        loop {
            let found = match records.change(id, settle).await {
                Ok(Some(order)) => {
                    if order.claim != ours.claim {
                        self.call_off(id).await;
                    }
                    return true;
                }
                Ok(None) => records.find(id).await,
                Err(error) => Err(error),
            };
            match found {
                // It may have been this worker's end, whose answer was lost.
                Ok(Found::Job(order, _)) if order.is_final() => {
                    return !pictures.is_empty() && order.pictures == pictures;
                }
                Ok(Found::Job(order, _)) if order.is_stopped => return self.end_stopped(id).await,
                Ok(_) => return false,
                Err(error) => tracing::warn!(job = %id, "{error}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Tells another worker, which has begun a job that seemed to be left, that it has ended.
    async fn call_off(&self, id: &JobId) {
        let subject = self.station.broker.names.stop(id);
        let _ = self.station.broker.client.publish(subject, bytes::Bytes::new()).await;
    }

    /// Ends a job that has no pictures: whoever tries it again comes to the same.
    async fn fail(&self, order: &Order, fault: Fault) -> Settled {
        let ending = Ending::Failed { fault };
        if self.commit(order, &[], |order| order.end(ending.clone())).await {
            self.station.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
        Settled::Done
    }

    async fn cancel(&self, order: &Order) -> Settled {
        self.end_stopped(&order.record.id).await;
        Settled::Done
    }

    /// Ends a job that its owner has stopped; never with this worker's pictures.
    async fn end_stopped(&self, id: &JobId) -> bool {
        let end = |order: &mut Order| {
            let is_open = !order.is_final();
            order.end(Ending::Cancelled);
            is_open
        };
        while let Err(error) = self.station.broker.records.change(id, end).await {
            tracing::warn!(job = %id, "{error}");
            tokio::time::sleep(RETRY).await;
        }
        false
    }

    /// Lets another worker try, unless there were enough.
    async fn try_again(&self, order: &Order, fault: Fault) -> Settled {
        let (broker, id) = (&self.station.broker, &order.record.id);
        let claim = order.claim.clone();
        let reason = format!("worker {}: {fault}", self.station.name);
        let changed = broker.records.change(id, |order| {
            let is_ours = order.claim == claim && !order.is_final();
            order.faults.push(reason.clone());
            (order.worker, order.claim, order.record.begun) = (None, None, false);
            is_ours
        });
        match changed.await {
            Ok(Some(order)) if order.record.attempts >= broker.settings.attempts => {
                match self.give_up(&order, fault).await {
                    Ok(()) => Settled::Done,
                    Err(_) => Settled::Again(REST),
                }
            }
            Ok(Some(order)) => Settled::Again(Duration::from_secs(1 << order.record.attempts.min(5))),
            _ => Settled::Again(REST),
        }
    }

    /// Gives a job back that was not tried.
    async fn leave(&self, order: &Order, reason: String, rest: Duration) -> Settled {
        let claim = order.claim.clone();
        if !reason.is_empty() {
            tracing::warn!(job = %order.record.id, "it is left to others: {reason}");
        }
        let changed = self.station.broker.records.change(&order.record.id, |order| {
            let is_ours = order.claim == claim && !order.is_final();
            if !reason.is_empty() {
                order.faults.push(format!("worker {}: {reason}", self.station.name));
                let surplus = order.faults.len().saturating_sub(16);
                order.faults.drain(..surplus);
            }
            (order.worker, order.claim, order.record.begun) = (None, None, false);
            order.record.attempts = order.record.attempts.saturating_sub(1);
            is_ours
        });
        let _ = changed.await;
        Settled::Again(rest)
    }
}

/// Why a job cannot be drawn.
enum Trouble {
    /// It cannot at all.
    Fault(Fault),
    /// It cannot here.
    Here(String),
}
