//! What a worker says of itself, every few seconds; one that says nothing any more is not there.

use std::time::Duration;

use async_nats::jetstream::kv::{Entry, Operation};
use futures_util::StreamExt;
use kiln_server::Load;
use serde::{Deserialize, Serialize};

use crate::FleetError;
use crate::broker::Broker;
use crate::names::{Lane, token};

/// A worker, as it was a moment ago.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// Its version of kiln.
    pub version: String,
    /// The newest protocol that it reads.
    pub protocol: u32,
    /// Seconds since 1970 when it started.
    pub since: u64,
    /// What it draws with.
    pub models: Vec<CardModel>,
    /// Jobs that it draws.
    pub drawing: usize,
    /// Whether it takes no more jobs and is about to end.
    #[serde(default)]
    pub is_draining: bool,
    /// Why it takes no jobs, though it would like to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Bytes of weights that are loaded.
    pub loaded_bytes: u64,
    /// Bytes of weights that may be, where there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// Jobs that it has finished.
    pub done: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Times that an engine's weights were loaded.
    pub engine_loads: u64,
    /// Seconds that its jobs took to draw.
    pub busy_seconds: f64,
}

/// A model of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CardModel {
    /// What its jobs are, which the worker takes.
    pub lane: Lane,
    /// `unloaded`, `loading`, `loaded` or `failed`.
    pub load: String,
}

impl Card {
    /// Whether it has a lane's model loaded.
    pub(crate) fn has_loaded(&self, lane: &Lane) -> bool {
        let loaded = Load::Loaded.name();
        self.models.iter().any(|model| model.lane == *lane && model.load == loaded)
    }

    /// Whether it could take a lane's job now.
    pub(crate) fn is_idle(&self) -> bool {
        self.drawing == 0 && !self.is_draining && self.trouble.is_none()
    }
}

impl Broker {
    pub(crate) async fn show_card(&self, card: &Card) -> Result<(), FleetError> {
        let text = serde_json::to_vec(card).expect("cards are JSON");
        let shown = self.workers.put(token(&card.name), text.into()).await;
        shown.map(drop).map_err(|e| FleetError::broker("worker's card", e))
    }

    /// Whether a worker of this name shows its card again within a time: that of one that was killed stays for a while.
    pub(crate) async fn has_live_card(&self, name: &str, time: Duration) -> Result<bool, FleetError> {
        let revision = async || {
            let entry = self.workers.entry(token(name)).await.map_err(|e| FleetError::broker("workers", e))?;
            let is_shown = |entry: &Entry| entry.operation == Operation::Put;
            Ok::<_, FleetError>(entry.filter(is_shown).map(|entry| entry.revision))
        };
        let Some(first) = revision().await? else { return Ok(false) };
        tokio::time::sleep(time + time / 4).await;
        Ok(revision().await?.is_some_and(|later| later != first))
    }

    pub(crate) async fn take_card_away(&self, name: &str) {
        let _ = self.workers.delete(token(name)).await;
    }

    /// The workers that live, by name.
    pub async fn cards(&self) -> Result<Vec<Card>, FleetError> {
        let fail = |e: &dyn std::fmt::Display| FleetError::broker("workers", e);
        let mut keys = self.workers.keys().await.map_err(|e| fail(&e))?;
        let mut cards = Vec::new();
        while let Some(key) = keys.next().await {
            let key = key.map_err(|e| fail(&e))?;
            let text = self.workers.get(key).await.map_err(|e| fail(&e))?;
            // Cards of other versions that cannot be read are of workers that cannot be counted on.
            cards.extend(text.and_then(|text| serde_json::from_slice::<Card>(&text).ok()));
        }
        cards.sort_by(|a: &Card, b: &Card| a.name.cmp(&b.name));
        Ok(cards)
    }
}
