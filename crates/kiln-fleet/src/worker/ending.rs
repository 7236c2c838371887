//! How one job ends on one worker: with pictures, with a fault, given back or given up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kiln_server::store::Ending;
use kiln_server::{Fault, Finished, JobId};

use super::claim::{Claim, RETRY, Settled};
use crate::FleetError;
use crate::records::{Found, Order};

/// How often pictures are tried to be stored before the job is given back.
const STORING: usize = 5;

/// How often a job is tried to be given back before its lease is left to run out.
const LEAVING: usize = 10;

impl Claim<'_> {
    /// Stores a job's pictures, and says so in its record.
    pub(super) async fn finish(
        &self,
        order: Order,
        revision: u64,
        finished: Arc<Finished>,
        time: Duration,
    ) -> Settled {
        let (station, id) = (self.station, &order.record.id);
        let infotexts = finished.infotexts.clone();
        let encoded = tokio::task::spawn_blocking(move || {
            let texts = finished.images.iter().zip(&finished.infotexts);
            texts.map(|(image, text)| kiln_server::http::png(image, text)).collect::<Result<Vec<_>, _>>()
        });
        let Ok(Ok(files)) = encoded.await else {
            return self.fail(&order, Fault::unknown()).await;
        };
        let claim: String = order.claim.iter().flat_map(|claim| claim.chars()).take(8).collect();
        let names: Vec<String> = (0..files.len()).map(|i| format!("out/{id}/{claim}-{i}.png")).collect();
        for (name, file) in names.iter().zip(files) {
            if let Err(error) = self.store(name, file.into()).await {
                station.set_trouble(Some(error.to_string()));
                return self.leave(&order, error.to_string(), self.rest()).await;
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

    async fn store(&self, name: &str, file: Bytes) -> Result<(), FleetError> {
        let mut n_failures = 0;
        loop {
            match self.station.pictures.put(name, file.clone()).await {
                Ok(()) => return Ok(()),
                // While the server is away, nobody else can have the job.
                Err(_) if !self.station.broker.is_connected() => {}
                Err(error) if n_failures >= STORING => return Err(error),
                Err(_) => n_failures += 1,
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends a job's record, however long the server is away: whether this is the end that it has. Pictures are an end for a
    /// job that another worker has begun meanwhile, too; a failure is not.
    async fn commit(&self, ours: &Order, pictures: &[String], end: impl Fn(&mut Order)) -> bool {
        let (records, id) = (&self.station.broker.records, &ours.record.id);
        let takes_it = |order: &Order| {
            let has_end = match order.is_stopped {
                true => pictures.is_empty(),
                false => !pictures.is_empty() || order.claim == ours.claim,
            };
            !order.is_final() && has_end
        };
        loop {
            let found = match records.change(id, takes_it, &end).await {
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
                Ok(Found::Job(order, _)) if order.is_stopped => {
                    self.end_stopped(id).await;
                    return false;
                }
                Ok(_) => return false,
                Err(error) => tracing::warn!(job = %id, "{error}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends a job that has no pictures: whoever tries it again comes to the same.
    pub(super) async fn fail(&self, order: &Order, fault: Fault) -> Settled {
        let ending = Ending::Failed { fault };
        if self.commit(order, &[], |order| order.end(ending.clone())).await {
            self.station.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
        Settled::Done
    }

    /// Ends a job that its owner has stopped.
    pub(super) async fn cancel(&self, order: &Order) -> Settled {
        self.end_stopped(&order.record.id).await;
        Settled::Done
    }

    async fn end_stopped(&self, id: &JobId) {
        let records = &self.station.broker.records;
        let is_stopped = |order: &Order| !order.is_final() && order.is_stopped;
        while let Err(error) = records.change(id, is_stopped, |order| order.end(Ending::Cancelled)).await {
            tracing::warn!(job = %id, "{error}");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Lets another worker try, unless there were enough.
    pub(super) async fn try_again(&self, order: &Order, fault: Fault) -> Settled {
        let (broker, id) = (&self.station.broker, &order.record.id);
        let reason = format!("worker {}: {fault}", self.station.name);
        let is_ours = |known: &Order| known.claim == order.claim && !known.is_final();
        let changed = broker.records.change(id, is_ours, |order| {
            order.note(reason.clone());
            order.let_go();
        });
        match changed.await {
            Ok(Some(order)) if order.record.attempts >= broker.settings.attempts => {
                match self.give_up(&order, fault).await {
                    Ok(()) => Settled::Done,
                    Err(_) => Settled::Again(self.rest()),
                }
            }
            Ok(Some(order)) => Settled::Again(Duration::from_secs(1 << order.record.attempts.min(5))),
            _ => Settled::Again(self.rest()),
        }
    }

    /// Gives a job back that was not tried, which is no attempt.
    pub(super) async fn leave(&self, order: &Order, reason: String, rest: Duration) -> Settled {
        let id = &order.record.id;
        if !reason.is_empty() {
            tracing::warn!(job = %id, "it is left to others: {reason}");
        }
        let is_ours = |known: &Order| known.claim == order.claim && !known.is_final();
        let give_back = |known: &mut Order| {
            if !reason.is_empty() {
                known.note(format!("worker {}: {reason}", self.station.name));
            }
            known.let_go();
            known.record.attempts = known.record.attempts.saturating_sub(1);
        };
        for _ in 0..LEAVING {
            if self.station.broker.records.change(id, is_ours, give_back).await.is_ok() {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        Settled::Again(rest)
    }

    /// Ends a job that was tried often enough, unless it has another end by now, and puts it where those are that were given
    /// up.
    pub(super) async fn give_up(&self, order: &Order, fault: Fault) -> Result<(), FleetError> {
        let (broker, id) = (&self.station.broker, &order.record.id);
        let is_as_it_was = |known: &Order| !known.is_final() && known.record.attempts == order.record.attempts;
        let ended = broker.records.change(id, is_as_it_was, |known| {
            known.faults.clone_from(&order.faults);
            known.let_go();
            known.is_dead = true;
            known.end(Ending::Failed { fault: fault.clone() });
        });
        if let Some(dead) = ended.await? {
            tracing::error!(job = %id, "{fault}");
            self.station.tally.failed.fetch_add(1, Ordering::Relaxed);
            self.bury_if_dead(&dead).await?;
        }
        Ok(())
    }

    /// Puts a job that was given up where those are, once more where that is unsure.
    pub(super) async fn bury_if_dead(&self, order: &Order) -> Result<(), FleetError> {
        let broker = &self.station.broker;
        match order.is_dead {
            true => {
                broker.bury(broker.names.dead_job(&order.lane, &order.record.id), order.to_bytes().into()).await
            }
            false => Ok(()),
        }
    }
}
