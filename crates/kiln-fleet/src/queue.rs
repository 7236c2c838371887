//! The stream of jobs.

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::InfoError;
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::ready;

use kiln_server::JobId;
use kiln_server::store::Record;
use serde::{Deserialize, Serialize};

use crate::FleetError;
use crate::broker::Broker;
use crate::names::{Lane, token};
use crate::records::Order;

/// What became of a job that was to be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It is, under this number, which grows from job to job.
    As(u64),
    /// One of its name was queued lately.
    Known,
    /// There is no place.
    Full,
}

/// A client's jobs in a lane.
pub(crate) struct Queue {
    /// With what names show of the bundle's digest.
    pub(crate) lane: Lane,
    /// The client's token.
    pub(crate) client: String,
    /// Jobs that wait or are drawn.
    pub(crate) n_jobs: usize,
}

/// A job that has just been queued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Arrival {
    /// The client's token.
    pub(crate) client: String,
    pub(crate) id: JobId,
}

impl Broker {
    /// Queues a job, unless one of this name was queued lately.
    pub(crate) async fn queue(&self, order: &Order, name: Option<&str>) -> Result<Queued, FleetError> {
        let subject = self.names.queue(&order.lane, &token(&order.record.client.0));
        let mut message = PublishMessage::build().payload(order.to_bytes().into());
        if let Some(name) = name {
            message = message.message_id(name);
        }
        let sent = self.context.send_publish(subject, message).await;
        match sent.map_err(|e| FleetError::broker("queue", e))?.await {
            Ok(answer) if answer.duplicate => Ok(Queued::Known),
            Ok(answer) => Ok(Queued::As(answer.sequence)),
            Err(error) if is_full(&error) => Ok(Queued::Full),
            Err(error) => Err(FleetError::broker("queue", error)),
        }
    }

    /// Clients that have jobs which wait or are drawn, in each lane.
    pub(crate) async fn queues(&self) -> Result<Vec<Queue>, FleetError> {
        let fail = |e: InfoError| FleetError::broker("jobs", e);
        let subjects = self.jobs.info_with_subjects(self.names.all_jobs()).await.map_err(fail)?;
        let queues = subjects.try_filter_map(|(subject, n_jobs)| {
            let queue = self.names.parse_queue(&subject);
            ready(Ok(queue.map(|(lane, client)| Queue { lane, client, n_jobs })))
        });
        queues.try_collect().await.map_err(fail)
    }

    /// Tells workers that a client has a new job in a lane.
    pub(crate) async fn announce(&self, order: &Order) {
        let Record { id, client, .. } = &order.record;
        let arrival = Arrival { client: token(&client.0), id: id.clone() };
        let text = serde_json::to_vec(&arrival).expect("arrivals are JSON");
        let _ = self.client.publish(self.names.arrival(&order.lane), text.into()).await;
    }

    /// Takes a job out of the stream that nobody is to draw any more.
    pub(crate) async fn unqueue(&self, order: &Order) {
        let _ = self.jobs.delete_message(order.record.sequence).await;
    }

    /// Puts a job where those are that were given up.
    pub(crate) async fn bury(&self, subject: String, order: Bytes) -> Result<(), FleetError> {
        let sent = self.context.publish(subject, order).await;
        let sent = sent.map_err(|e| FleetError::broker("dead job", e))?;
        sent.await.map(drop).map_err(|e| FleetError::broker("dead job", e))
    }
}

/// Whether the stream has as many jobs as it takes.
fn is_full(error: &PublishError) -> bool {
    let text = error.to_string();
    let limits = ["maximum messages exceeded", "maximum bytes exceeded"];
    error.kind() != PublishErrorKind::TimedOut && limits.iter().any(|limit| text.contains(limit))
}
