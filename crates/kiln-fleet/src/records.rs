//! What is known of each job, as all processes of a fleet see it.
//!
//! A record is changed by comparing and swapping: whoever changes one that has changed meanwhile reads it again and decides
//! anew. So a job has one end, whoever comes to one first.

use std::collections::BTreeMap;
use std::time::SystemTime;

use async_nats::jetstream::kv::{self, CreateErrorKind, Entry, Operation, UpdateErrorKind, Watch};
use futures_util::StreamExt;
use kiln_server::JobId;
use kiln_server::store::{Ending, Record};
use serde::{Deserialize, Serialize};

use crate::FleetError;
use crate::names::Lane;
use crate::settings::PROTOCOL;

/// Most faults of a job that are kept.
const MAX_FAULTS: usize = 16;

/// A job: what waits in the stream, and what the bucket says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The form that it was written in.
    pub protocol: u32,
    /// Where it waits.
    pub lane: Lane,
    /// What to draw, for whom, and how it ended. Its pictures have no pixels, which lie beside it.
    pub record: Record,
    /// Digests of the LoRAs' files, by their names.
    #[serde(default)]
    pub loras: BTreeMap<String, String>,
    /// Evaluations times rows times pixels.
    pub cost: f64,
    /// Whether its owner may ask for it later; nobody but the one who waits for it does else.
    pub is_kept: bool,
    /// Whether its owner has stopped it.
    #[serde(default)]
    pub is_stopped: bool,
    /// Whether it was given up, and lies among those that were.
    #[serde(default)]
    pub is_dead: bool,
    /// Who draws it, or has drawn it.
    #[serde(default)]
    pub worker: Option<String>,
    /// The attempt at drawing it; each has another.
    #[serde(default)]
    pub claim: Option<String>,
    /// What its attempts came to that failed.
    #[serde(default)]
    pub faults: Vec<String>,
    /// The names of its pictures in the store.
    #[serde(default)]
    pub pictures: Vec<String>,
    /// Seconds that it took to draw.
    #[serde(default)]
    pub seconds: f64,
}

impl Order {
    /// A job that is new.
    pub(crate) fn new(record: Record, lane: Lane, cost: f64) -> Order {
        Order {
            protocol: PROTOCOL,
            lane,
            record,
            loras: BTreeMap::new(),
            cost,
            is_kept: true,
            is_stopped: false,
            is_dead: false,
            worker: None,
            claim: None,
            faults: Vec::new(),
            pictures: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Whether it has ended.
    pub fn is_final(&self) -> bool {
        self.record.ending != Ending::Open
    }

    /// Ends it.
    pub(crate) fn end(&mut self, ending: Ending) {
        self.record.ending = ending;
        self.record.ended = Some(kiln_server::store::now());
    }

    /// Nobody draws it any more.
    pub(crate) fn let_go(&mut self) {
        (self.worker, self.claim, self.record.begun) = (None, None, false);
    }

    /// Keeps in mind what an attempt came to; of very many, the last.
    pub(crate) fn note(&mut self, fault: String) {
        self.faults.push(fault);
        let surplus = self.faults.len().saturating_sub(MAX_FAULTS);
        self.faults.drain(..surplus);
    }

    /// The protocol of what is a job of any version.
    pub(crate) fn protocol(bytes: &[u8]) -> Option<u32> {
        serde_json::from_slice::<Form>(bytes).ok().map(|form| form.protocol)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("orders are JSON")
    }

    /// Reads it; says which protocol it has where this version cannot.
    pub(crate) fn read(bytes: &[u8]) -> Result<Order, FleetError> {
        let unreadable = |e: serde_json::Error| FleetError::Refused(format!("the job cannot be read: {e}"));
        let form: Form = serde_json::from_slice(bytes).map_err(unreadable)?;
        if form.protocol > PROTOCOL {
            let message = format!("the job is of protocol {}, this kiln reads up to {PROTOCOL}", form.protocol);
            return Err(FleetError::Refused(message));
        }
        serde_json::from_slice(bytes).map_err(unreadable)
    }
}

/// What jobs of all versions have.
#[derive(Deserialize)]
struct Form {
    protocol: u32,
}

/// What the bucket has under a job's name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found {
    /// Nothing, and never had.
    Nothing,
    /// It was forgotten at this time of the server's.
    Forgotten(SystemTime),
    /// The job, as of a revision.
    Job(Box<Order>, u64),
}

/// The bucket of records. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Records(kv::Store);

impl Records {
    pub(crate) fn new(bucket: kv::Store) -> Records {
        Records(bucket)
    }

    /// Takes in what is there, job by job, and gives what follows.
    pub(crate) async fn catch_up(&self, mut take_in: impl FnMut(&Entry)) -> Result<Watch, FleetError> {
        let fail = |e: &dyn std::fmt::Display| FleetError::broker("records", e);
        let mut watch = self.0.watch_with_history(">").await.map_err(|e| fail(&e))?;
        // An empty bucket says nothing, not even that it is empty.
        let n = self.0.stream.get_info().await.map_err(|e| fail(&e))?.state.messages;
        let mut is_current = n == 0;
        while !is_current {
            let Some(entry) = watch.next().await.transpose().map_err(|e| fail(&e))? else { break };
            is_current = entry.seen_current;
            take_in(&entry);
        }
        Ok(watch)
    }

    pub(crate) async fn find(&self, id: &JobId) -> Result<Found, FleetError> {
        match self.0.entry(id.as_str()).await.map_err(|e| FleetError::broker("record", e))? {
            None => Ok(Found::Nothing),
            Some(entry) if entry.operation == Operation::Put => {
                Ok(Found::Job(Box::new(Order::read(&entry.value)?), entry.revision))
            }
            Some(entry) => Ok(Found::Forgotten(entry.created.into())),
        }
    }

    /// Writes a new job down, unless there is one of this name.
    pub(crate) async fn create(&self, order: &Order) -> Result<bool, FleetError> {
        match self.0.create(order.record.id.as_str(), order.to_bytes().into()).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(FleetError::broker("record", error)),
        }
    }

    /// Changes a job, unless it has changed since this revision; the new revision.
    pub(crate) async fn update(&self, order: &Order, revision: u64) -> Result<Option<u64>, FleetError> {
        match self.0.update(order.record.id.as_str(), order.to_bytes().into(), revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(FleetError::broker("record", error)),
        }
    }

    /// Changes a job that is as it should be, as it is when that works: the changed job, or none where it is otherwise or not
    /// there.
    pub(crate) async fn change(
        &self,
        id: &JobId,
        should: impl Fn(&Order) -> bool,
        change: impl Fn(&mut Order),
    ) -> Result<Option<Order>, FleetError> {
        loop {
            let Found::Job(mut order, revision) = self.find(id).await? else { return Ok(None) };
            if !should(&order) {
                return Ok(None);
            }
            change(&mut order);
            if self.update(&order, revision).await?.is_some() {
                return Ok(Some(*order));
            }
        }
    }

    /// Forgets a job; that it was there stays known for as long as records are kept.
    pub(crate) async fn forget(&self, id: &JobId) -> Result<(), FleetError> {
        self.0.delete(id.as_str()).await.map_err(|e| FleetError::broker("record", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first version with fleets wrote it.
    const OLD: &str = include_str!("../tests/order-1.json");

    #[test]
    fn jobs_of_earlier_versions_can_be_read() {
        let order = Order::read(OLD.as_bytes()).expect("a job");
        assert_eq!((order.protocol, order.lane.model.as_str()), (1, "shapes"));
        assert_eq!(order.record.spec.request.prompts, ["a red circle"]);
    }

    #[test]
    fn jobs_of_later_protocols_are_named() {
        let newer = OLD.replacen("\"protocol\": 1", "\"protocol\": 2", 1).replace("\"spec\"", "\"brief\"");
        let error = Order::read(newer.as_bytes()).expect_err("a newer job").to_string();
        assert_eq!(error, "the job is of protocol 2, this kiln reads up to 1");
    }
}
