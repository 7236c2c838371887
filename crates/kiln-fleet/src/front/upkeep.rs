//! What a server does for its fleet now and then.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};
use kiln_server::JobId;
use kiln_server::store::now;

use super::Front;
use crate::FleetError;
use crate::records::{Found, Order};

/// How often, at least, it is looked for what is too old.
const PRUNING: Duration = Duration::from_secs(3600);

/// How often pictures are measured, and jobs counted that were given up.
const COUNTING: Duration = Duration::from_secs(5);

/// How long the pictures of a job may take to be fetched by who waits for them.
const FETCHING: Duration = Duration::from_secs(60);

/// How many jobs are looked at together to make room, and forgotten at once.
const ROOM: usize = 200;
const AT_ONCE: usize = 16;

impl Front {
    /// Begins all of it, for as long as the process lives.
    pub(super) fn keep_up(&self) {
        tokio::spawn(self.clone().prune());
        tokio::spawn(self.clone().keep_room());
        tokio::spawn(self.clone().count());
    }

    /// Counts jobs that were given up and workers that live: nobody tells of one that shows itself no more.
    async fn count(self) {
        loop {
            if let Ok(info) = self.0.broker.dead.get_info().await {
                self.0.n_dead.store(info.state.messages, Ordering::Relaxed);
            }
            self.count_workers();
            tokio::time::sleep(COUNTING).await;
        }
    }

    /// Removes what was kept long enough, for as long as the process lives.
    async fn prune(self) {
        let keep = self.0.broker.settings.keep();
        loop {
            match self.0.pictures.prune(keep).await {
                Ok(0) => {}
                Ok(n) => tracing::info!("{n} pictures are removed that were kept long enough"),
                Err(error) => tracing::warn!("{error}"),
            }
            let oldest = SystemTime::now().checked_sub(keep);
            self.index().prune(oldest.unwrap_or(SystemTime::UNIX_EPOCH));
            tokio::time::sleep(PRUNING.min(keep / 4)).await;
        }
    }

    /// Looks whether pictures leave room for others, for as long as the process lives.
    async fn keep_room(self) {
        loop {
            if let Err(error) = self.make_room().await {
                tracing::debug!("{error}");
            }
            tokio::time::sleep(COUNTING).await;
        }
    }

    /// Forgets the oldest jobs that have ended while their pictures fill the queue's server too far.
    async fn make_room(&self) -> Result<(), FleetError> {
        let most = self.0.broker.settings.keep_bytes;
        let (mut n_gone, mut looked_at) = (0, ROOM);
        while self.0.pictures.bytes().await? > most / 5 * 4 {
            let oldest = self.index().oldest(looked_at);
            let n_oldest = oldest.len();
            let removed = stream::iter(oldest).map(|id| async move { self.remove_if_over(&id).await });
            let removed: Vec<bool> = removed.buffer_unordered(AT_ONCE).try_collect().await?;
            let before = n_gone;
            n_gone += removed.into_iter().filter(|is_gone| *is_gone).count();
            // The oldest may all wait still.
            match (n_gone == before, n_oldest < looked_at) {
                (true, true) => break,
                (true, false) => looked_at *= 4,
                (false, _) => {}
            }
        }
        if n_gone > 0 {
            tracing::info!("{n_gone} jobs are forgotten, whose pictures were the oldest of too many");
        }
        Ok(())
    }

    /// Forgets a job that has ended: whether it had.
    async fn remove_if_over(&self, id: &JobId) -> Result<bool, FleetError> {
        match self.0.broker.records.find(id).await? {
            Found::Job(order, _) if is_over(&order) => self.remove(&order).await.map(|()| true),
            Found::Job(..) => Ok(false),
            Found::Nothing | Found::Forgotten(_) => {
                self.index().remove(id);
                Ok(false)
            }
        }
    }
}

/// Whether nobody is about to fetch a job's pictures.
fn is_over(order: &Order) -> bool {
    let ended = order.record.ended.unwrap_or_default();
    order.is_final() && (order.is_kept || now().saturating_sub(ended) > FETCHING.as_secs())
}
