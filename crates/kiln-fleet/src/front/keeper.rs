//! What handlers ask, answered for a fleet.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use kiln_server::keeper::{Keeper, KeeperError, SenderKey, to_the_end};
use kiln_server::store::{Record, Source, StoreError};
use kiln_server::{ClientId, FleetMoment, Job, JobId, Spec, Ticket};

use super::{ENDING, Front, LOOK, Taking};
use crate::FleetError;
use crate::records::Order;

/// How many records are asked for at once.
const AT_ONCE: usize = 32;

impl Keeper for Front {
    fn take(
        &self,
        spec: Spec,
        client: ClientId,
        key: Option<SenderKey>,
    ) -> BoxFuture<'_, Result<JobId, KeeperError>> {
        let front = self.clone();
        to_the_end(async move {
            match front.take_now(spec, client, key, true).await {
                Ok(job) => Ok(job.id.clone()),
                Err(Taking::Known(id)) => Ok(id),
                Err(Taking::Error(error)) => Err(error),
            }
        })
    }

    fn draw(&self, spec: Spec, client: ClientId) -> BoxFuture<'_, Result<Ticket, KeeperError>> {
        let front = self.clone();
        to_the_end(async move {
            match front.take_now(spec, client, None, false).await {
                Ok(job) => Ok(Ticket::new(&front.0.service, job)),
                Err(Taking::Error(error)) => Err(error),
                Err(Taking::Known(_)) => Err(KeeperError::Reused),
            }
        })
    }

    fn cancel<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, ()> {
        self.0.service.cancel(job);
        let written = async {
            while self.0.service.job(&job.id).is_some() {
                tokio::time::sleep(LOOK).await;
            }
        };
        Box::pin(async { drop(tokio::time::timeout(ENDING, written).await) })
    }

    fn delete<'a>(&'a self, id: &'a JobId) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async {
            let shared = |e: FleetError| StoreError::Shared(e.to_string());
            self.stop(id).await.map_err(shared)?;
            if let Some(order) = self.order(id).await? {
                self.remove(&order).await.map_err(shared)?;
            }
            Ok(())
        })
    }

    fn get<'a>(&'a self, id: &'a JobId) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(async { Ok(self.order(id).await?.filter(|order| order.is_kept).map(|order| order.record)) })
    }

    fn newest<'a>(
        &'a self,
        client: &'a ClientId,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        let ids = self.index().newest(client, before, limit);
        Box::pin(async move {
            let found = stream::iter(ids).map(|id| async move { self.order(&id).await });
            let orders: Vec<Option<Order>> = found.buffered(AT_ONCE).try_collect().await?;
            Ok(orders.into_iter().flatten().map(|order| order.record).collect())
        })
    }

    fn picture<'a>(&'a self, id: &'a JobId, index: usize) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(async move {
            match self.order(id).await?.and_then(|order| order.pictures.into_iter().nth(index)) {
                Some(name) => self.object(&name).await,
                None => Ok(None),
            }
        })
    }

    fn source<'a>(&'a self, id: &'a JobId, source: Source) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(async move {
            let file = self.object(&format!("in/{}", source.file(id))).await?;
            Ok(file.filter(|bytes| bytes.starts_with(b"\x89PNG")))
        })
    }

    fn is_sound(&self) -> bool {
        self.0.broker.is_connected()
    }

    fn fleet(&self) -> Option<FleetMoment> {
        let workers = self.0.roster.cards().len() as u64;
        Some(FleetMoment { workers, dead: self.0.n_dead.load(Ordering::Relaxed) })
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        let told = async {
            while self.0.n_stops.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        Box::pin(async { drop(tokio::time::timeout(5 * ENDING, told).await) })
    }
}
