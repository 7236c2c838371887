//! The workers that live, as they show themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::Operation;
use futures_util::StreamExt;

use crate::broker::{Broker, CARD_AGE};
use crate::card::Card;
use crate::names::{Lane, untoken};

/// How long to wait before watching again what could not be watched.
const RETRY: Duration = Duration::from_secs(1);

/// The workers that live. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Roster(Arc<Mutex<HashMap<String, (Card, Instant)>>>);

impl Roster {
    /// Follows the workers' cards for as long as the process lives; `changed` is told after each.
    pub(crate) fn follow(&self, broker: &Broker, changed: impl Fn() + Send + 'static) {
        let (roster, bucket) = (self.clone(), broker.workers.clone());
        tokio::spawn(async move {
            loop {
                if let Ok(mut cards) = bucket.watch_with_history(">").await {
                    while let Some(Ok(entry)) = cards.next().await {
                        match (entry.operation, serde_json::from_slice::<Card>(&entry.value)) {
                            (Operation::Put, Ok(card)) => roster.enter(card),
                            _ => drop(roster.lock().remove(&untoken(&entry.key))),
                        }
                        changed();
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    fn enter(&self, card: Card) {
        self.lock().insert(card.name.clone(), (card, Instant::now()));
    }

    /// The workers that have shown themselves lately.
    pub(crate) fn cards(&self) -> Vec<Card> {
        let mut cards = self.lock();
        cards.retain(|_, (_, seen)| seen.elapsed() < CARD_AGE);
        cards.values().map(|(card, _)| card.clone()).collect()
    }

    /// Whether another worker has a lane's model loaded; whether one of them has nothing to do.
    pub(crate) fn others_with(&self, lane: &Lane, own: &str) -> (bool, bool) {
        let cards = self.cards();
        let mut loaded = cards.iter().filter(|card| card.name != own && card.has_loaded(lane)).peekable();
        (loaded.peek().is_some(), loaded.any(Card::is_idle))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Card, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
