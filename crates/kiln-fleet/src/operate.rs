//! What operators ask of a fleet.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::kv::Entry;
use bytes::Bytes;
use kiln_server::store::Ending;
use serde::Serialize;

use crate::FleetError;
use crate::broker::Broker;
use crate::card::Card;
use crate::names::{Lane, untoken};
use crate::queue::{Queue, Queued};
use crate::records::{Found, Order};
use crate::settings::Settings;

/// A fleet at a moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// Its name.
    pub fleet: String,
    /// Version of the queue's server.
    pub server: String,
    /// What it has agreed on.
    pub settings: Settings,
    /// The workers that live.
    pub workers: Vec<Card>,
    /// Jobs that wait or are drawn, by lane and client.
    pub queues: Vec<Depth>,
    /// Jobs that were given up.
    pub dead: u64,
    /// Seconds that the oldest job has been there.
    pub oldest_seconds: f64,
}

/// How many jobs a client has in a lane.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Depth {
    /// The lane, with the first 16 digits of the bundle's digest.
    pub lane: Lane,
    /// The client's name; empty where nobody is asked for a key.
    pub client: String,
    /// Jobs that wait or are drawn.
    pub jobs: usize,
    /// Workers that can draw them.
    pub workers: usize,
}

impl Broker {
    /// Everything that there is to see.
    pub async fn overview(&self) -> Result<Overview, FleetError> {
        let fail = |e: &dyn std::fmt::Display| FleetError::broker("jobs", e);
        let workers = self.cards().await?;
        let depth = |Queue { lane, client, n_jobs }: Queue| {
            let name = lane.to_string();
            let draws = |card: &&Card| card.models.iter().any(|model| model.lane.to_string() == name);
            let n_workers = workers.iter().filter(draws).count();
            Depth { lane, client: untoken(&client), jobs: n_jobs, workers: n_workers }
        };
        let mut queues: Vec<Depth> = self.queues().await?.into_iter().map(depth).collect();
        queues.sort_by(|a, b| (&a.lane, &a.client).cmp(&(&b.lane, &b.client)));
        let state = self.jobs.get_info().await.map_err(|e| fail(&e))?.state;
        let oldest = match state.messages {
            0 => Duration::ZERO,
            _ => {
                let first = state.first_timestamp;
                SystemTime::now().duration_since(SystemTime::from(first)).unwrap_or_default()
            }
        };
        let dead = self.dead.get_info().await.map_err(|e| fail(&e))?.state.messages;
        Ok(Overview {
            fleet: self.names.to_string(),
            server: self.client.server_info().version,
            settings: self.settings.clone(),
            workers,
            queues,
            dead,
            oldest_seconds: oldest.as_secs_f64(),
        })
    }

    /// All jobs that have not ended, in the order in which they were sent.
    pub async fn open_jobs(&self) -> Result<Vec<Order>, FleetError> {
        let mut open = BTreeMap::new();
        let note = |entry: &Entry| {
            let order = Order::read(&entry.value).ok().filter(|order| !order.is_final());
            open.extend(order.map(|order| (order.record.sequence, order)));
        };
        self.records.catch_up(note).await?;
        Ok(open.into_values().collect())
    }

    /// Jobs that were given up, the oldest first.
    pub async fn dead_jobs(&self) -> Result<Vec<Order>, FleetError> {
        let fail = |e: &dyn std::fmt::Display| FleetError::broker("dead jobs", e);
        let mut orders = Vec::new();
        let mut sequence = 0;
        let state = self.dead.get_info().await.map_err(|e| fail(&e))?.state;
        while sequence < state.last_sequence {
            let next = self.dead.raw_message_builder().sequence(sequence + 1);
            let Ok(message) = next.next_by_subject(self.names.all_dead()).send().await else { break };
            sequence = message.sequence;
            // One that nobody could read is no order.
            orders.extend(Order::read(&message.payload));
        }
        Ok(orders)
    }

    /// Queues a job again that was given up.
    ///
    /// Its record is opened before it is queued, without a number, which any copy of it fits: a worker may have the new copy
    /// before its number is written down. A retry that breaks off can be done again.
    pub async fn retry(&self, dead: &Order) -> Result<(), FleetError> {
        let id = &dead.record.id;
        let can_be = |order: &Order| match order.is_final() {
            true => order.is_dead,
            false => order.record.sequence == 0,
        };
        let reopened = match self.records.change(id, can_be, reopen).await? {
            Some(order) => order,
            None => match self.records.find(id).await? {
                Found::Job(order, _) if order.is_final() => {
                    self.forget_dead(dead).await?;
                    return Err(FleetError::Refused(format!("job {id}: has ended otherwise meanwhile")));
                }
                Found::Job(..) => return Err(FleetError::Refused(format!("job {id}: is queued already"))),
                Found::Nothing | Found::Forgotten(_) => {
                    let mut order = dead.clone();
                    reopen(&mut order);
                    self.records.create(&order).await?;
                    order
                }
            },
        };
        let Queued::As(sequence) = self.queue(&reopened, None).await? else {
            return Err(FleetError::Refused(format!("job {id}: the queue is full")));
        };
        let has_no_number = |order: &Order| !order.is_final() && order.record.sequence == 0;
        self.records.change(id, has_no_number, |order| order.record.sequence = sequence).await?;
        self.announce(&reopened).await;
        self.forget_dead(dead).await
    }

    async fn forget_dead(&self, dead: &Order) -> Result<(), FleetError> {
        let purge = self.dead.purge().filter(self.names.dead_job(&dead.lane, &dead.record.id)).await;
        purge.map(drop).map_err(|e| FleetError::broker("dead jobs", e))
    }

    /// Tells a worker to finish what it has and end.
    pub async fn drain(&self, worker: &str) -> Result<(), FleetError> {
        let known = self.cards().await?;
        if !known.iter().any(|card| card.name == worker) {
            let names: Vec<&str> = known.iter().map(|card| card.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(FleetError::Unknown(format!("worker {worker}: is not there; workers: {names}")));
        }
        let asked = self.client.request(self.names.drain(worker), Bytes::new()).await;
        asked.map(drop).map_err(|e| FleetError::broker(&format!("worker {worker}"), e))
    }
}

/// Makes a job one that nobody has tried.
fn reopen(order: &mut Order) {
    let record = &mut order.record;
    (record.ending, record.ended, record.attempts, record.sequence) = (Ending::Open, None, 0, 0);
    record.created = kiln_server::store::now();
    (order.is_dead, order.is_stopped) = (false, false);
    order.let_go();
    order.faults.clear();
}
