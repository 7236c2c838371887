//! Takes jobs for a fleet: what a server that does not draw asks of it.
//!
//! The server's own queue mirrors the fleet's: every job that waits or is drawn is one of the service's, in the order in which
//! workers take them. So positions, estimates, shares and previews are what they are on one box.

mod index;
mod mirror;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kiln_server::keeper::{Keeper, KeeperError, SenderKey};
use kiln_server::store::{Ending, Record, Source, StoreError, has_pixels, no_pixels, sources, to_bytes};
use kiln_server::{ClientId, Fault, FaultKind, FleetMoment, Job, JobId, Refusal, Service, Spec, Ticket};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::spawn_blocking;

use crate::FleetError;
use crate::broker::{Address, Broker};
use crate::depot::Depot;
use crate::names::Lane;
use crate::queue::Queued;
use crate::records::{Found, Order};
use crate::roster::Roster;
use crate::worker::LoraDigests;
use index::Index;

/// How often, at least, it is looked for what is too old.
const PRUNING: Duration = Duration::from_secs(60);

/// How often pictures are measured, and jobs counted that were given up.
const COUNTING: Duration = Duration::from_secs(5);

/// How many jobs are looked at together to make room.
const ROOM: usize = 100;

/// How long the end of a job may take to be written down before clients are answered without it.
const ENDING: Duration = Duration::from_secs(1);

/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(20);

/// How often it is looked whether a job appears that another process takes.
const APPEARING: usize = 50;

/// When a client should try again for whose job the fleet has no place.
const FULL: Duration = Duration::from_secs(5);

/// How often what the server did not answer is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Takes jobs for a fleet. Cheap to clone.
#[derive(Clone)]
pub struct Front(Arc<Shared>);

struct Shared {
    broker: Broker,
    pictures: Depot,
    service: Service,
    loras: LoraDigests,
    roster: Roster,
    /// Jobs that somebody waits for here.
    awaited: Mutex<HashSet<JobId>>,
    index: Mutex<Index>,
    stops: UnboundedSender<JobId>,
    /// Stops that are not written down yet.
    n_stops: AtomicUsize,
    /// Jobs that were given up.
    n_dead: AtomicU64,
}

/// A job with what belongs to it but the picture's pixels.
struct Taken {
    order: Order,
    spec: Spec,
}

impl Front {
    /// Joins a fleet, and follows its jobs with a service. Inside a runtime.
    pub async fn join(address: &Address, service: Service) -> Result<Front, FleetError> {
        let broker = Broker::join(address, "kiln serve").await?;
        let pictures = Depot::of_pictures(&broker).await?;
        let (stops, stopped) = unbounded_channel();
        let front = Front(Arc::new(Shared {
            broker,
            pictures,
            service,
            loras: LoraDigests::default(),
            roster: Roster::default(),
            awaited: Mutex::default(),
            index: Mutex::default(),
            stops,
            n_stops: AtomicUsize::new(0),
            n_dead: AtomicU64::new(0),
        }));
        let teller = front.clone();
        front.0.service.tell_stops(move |job| teller.stop_soon(&job.id));
        front.mirror().await?;
        tokio::spawn(front.clone().obey(stopped));
        tokio::spawn(front.clone().prune());
        tokio::spawn(front.clone().keep_room());
        tokio::spawn(front.clone().count_dead());
        Ok(front)
    }

    fn awaited(&self) -> MutexGuard<'_, HashSet<JobId>> {
        self.0.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_now(
        &self,
        spec: Spec,
        client: ClientId,
        key: Option<SenderKey>,
        is_kept: bool,
    ) -> Result<Arc<Job>, Taking> {
        let id = key.as_ref().map_or_else(JobId::random, |key| JobId::of_key(&client, &key.key));
        let digest = key.as_ref().map(|key| key.digest.clone());
        if key.is_some()
            && let Some(known) = self.known(&id, digest.as_ref()).await?
        {
            return Err(known);
        }
        let Taken { mut order, spec } = self.prepare(id.clone(), spec, client.clone()).await?;
        order.is_kept = is_kept;
        (order.record.idempotency_key, order.record.digest) = key.map(|key| (key.key, key.digest)).unzip();
        let place = self.0.service.place(&client).map_err(KeeperError::Refused)?;
        if !is_kept {
            self.awaited().insert(id.clone());
        }
        let cost = order.cost;
        let taken = match self.submit(&mut order).await {
            Ok(true) => Ok(()),
            Ok(false) => match self.known(&id, digest.as_ref()).await? {
                Some(known) => Err(known),
                None => Err(KeeperError::Store(StoreError::Shared("the job is being forgotten".into())).into()),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            self.awaited().remove(&id);
            return Err(error);
        }
        Ok(self.0.service.fill(place, Job::new(id, spec, client, cost)))
    }

    /// What is known of a job under the sender's own name for it.
    async fn known(&self, id: &JobId, digest: Option<&String>) -> Result<Option<Taking>, Taking> {
        match self.0.broker.records.find(id).await? {
            Found::Job(order, _) if order.record.digest.as_ref() == digest => {
                Ok(Some(Taking::Known(id.clone())))
            }
            Found::Job(..) => Ok(Some(KeeperError::Reused.into())),
            Found::Nothing | Found::Forgotten(_) => Ok(None),
        }
    }

    /// Checks a job, stores the pictures that it starts from, and finds where it waits.
    async fn prepare(&self, id: JobId, mut spec: Spec, client: ClientId) -> Result<Taken, Taking> {
        let front = self.clone();
        let checked = spawn_blocking(move || {
            let cost = front.0.service.check(&mut spec).map_err(KeeperError::Refused)?;
            let lane = front.lane(&spec.model);
            let lane = lane.ok_or_else(|| KeeperError::Refused(Refusal::NoModel(spec.model.clone())))?;
            let digest = |name: &String| {
                let found = front.0.loras.of(&front.0.service, &spec.model, name);
                let lost = || Fault::new(FaultKind::Model, format!("lora: '{name}' cannot be read"));
                Ok((name.clone(), found.ok_or_else(|| KeeperError::Refused(Refusal::Invalid(lost())))?))
            };
            let loras = spec.loras.iter().map(|lora| digest(&lora.name));
            let loras: BTreeMap<String, String> = loras.collect::<Result<_, KeeperError>>()?;
            let mut files = Vec::new();
            for (source, picture) in sources(&mut spec.request).filter(|(_, picture)| has_pixels(picture)) {
                let bytes = to_bytes(picture);
                let bytes = bytes.map_err(|e| KeeperError::Store(StoreError::Shared(e.to_string())))?;
                files.push((format!("in/{}", source.file(&id)), bytes));
                *picture = no_pixels();
            }
            let record = Record::new(id, spec.clone(), client);
            Ok((Order { loras, ..Order::new(record, lane, cost) }, spec, files))
        });
        let checked = checked.await.unwrap_or(Err(KeeperError::Refused(Refusal::Ending)));
        let (order, spec, files) = checked?;
        let (size, most) = (order.to_bytes().len(), self.0.broker.max_message());
        if size + 1024 > most {
            let message =
                format!("job: has {size} bytes of text, the queue takes {}", most.saturating_sub(1024));
            return Err(KeeperError::Refused(Refusal::Invalid(Fault::new(FaultKind::Request, message))).into());
        }
        for (name, file) in files {
            self.0.pictures.put(&name, file.into()).await?;
        }
        Ok(Taken { order, spec })
    }

    fn lane(&self, model: &str) -> Option<Lane> {
        let card = self.0.service.models().card(model)?;
        Some(Lane { class: card.target.to_string(), model: model.into(), bundle: card.bundle })
    }

    /// Writes a job down and queues it: whether it is new.
    async fn submit(&self, order: &mut Order) -> Result<bool, Taking> {
        let broker = &self.0.broker;
        let mut name = Some(order.record.id.to_string());
        loop {
            match broker.queue(order, name.as_deref()).await? {
                Queued::As(sequence) => order.record.sequence = sequence,
                Queued::Full => return Err(KeeperError::Refused(Refusal::Full(FULL)).into()),
                Queued::Known if self.appears(&order.record.id).await? => return Ok(false),
                // It was forgotten since.
                Queued::Known => {
                    name = None;
                    continue;
                }
            }
            broker.announce(order).await;
            // The worker that has it already may have written it down.
            broker.records.create(order).await?;
            return Ok(true);
        }
    }

    /// Whether there is a job that another process takes at this moment, or has taken.
    async fn appears(&self, id: &JobId) -> Result<bool, FleetError> {
        for _ in 0..APPEARING {
            match self.0.broker.records.find(id).await? {
                Found::Job(..) => return Ok(true),
                Found::Forgotten(_) => return Ok(false),
                Found::Nothing => tokio::time::sleep(LOOK).await,
            }
        }
        Ok(false)
    }

    /// Has a stop written down, soon.
    fn stop_soon(&self, id: &JobId) {
        self.0.n_stops.fetch_add(1, Ordering::SeqCst);
        if self.0.stops.send(id.clone()).is_err() {
            self.0.n_stops.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Writes stops down, however long the server is away.
    async fn obey(self, mut stopped: UnboundedReceiver<JobId>) {
        while let Some(id) = stopped.recv().await {
            let mut is_told = false;
            while let Err(error) = self.stop(&id).await {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(job = %id, "cannot be stopped yet: {error}");
                }
                tokio::time::sleep(RETRY).await;
            }
            self.0.n_stops.fetch_sub(1, Ordering::SeqCst);
        }
    }

    async fn stop(&self, id: &JobId) -> Result<(), FleetError> {
        let broker = &self.0.broker;
        let stopped = broker.records.change(id, |order| {
            let is_open = !order.is_final();
            order.is_stopped = true;
            if !order.record.begun {
                order.end(Ending::Cancelled);
            }
            is_open
        });
        match stopped.await? {
            Some(order) if order.is_final() => {
                broker.unqueue(&order).await;
                self.remove_sources(&order).await;
                if !order.is_kept {
                    broker.records.forget(id).await?;
                }
                Ok(())
            }
            Some(_) => {
                let told = broker.client.publish(broker.names.stop(id), Bytes::new()).await;
                told.map_err(|e| FleetError::broker("stop", e))
            }
            None => Ok(()),
        }
    }

    async fn remove_sources(&self, order: &Order) {
        let mut request = order.record.spec.request.clone();
        for (source, _) in sources(&mut request) {
            let _ = self.0.pictures.delete(&format!("in/{}", source.file(&order.record.id))).await;
        }
    }

    /// Forgets a job that has ended, and all that belongs to it.
    async fn remove(&self, order: &Order) -> Result<(), FleetError> {
        self.0.broker.records.forget(&order.record.id).await?;
        self.remove_sources(order).await;
        for name in &order.pictures {
            self.0.pictures.delete(name).await?;
        }
        Ok(())
    }

    async fn count_dead(self) {
        loop {
            if let Ok(info) = self.0.broker.dead.get_info().await {
                self.0.n_dead.store(info.state.messages, Ordering::Relaxed);
            }
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
        let mut n_gone = 0;
        while self.0.pictures.bytes().await? > most / 5 * 4 {
            let oldest = self.index().oldest(ROOM);
            let before = n_gone;
            for id in oldest {
                match self.0.broker.records.find(&id).await? {
                    Found::Job(order, _) if order.is_final() => {
                        self.remove(&order).await?;
                        n_gone += 1;
                    }
                    Found::Job(..) => {}
                    Found::Nothing | Found::Forgotten(_) => self.index().remove(&id),
                }
            }
            if n_gone == before {
                break;
            }
        }
        if n_gone > 0 {
            tracing::info!("{n_gone} jobs are forgotten, whose pictures were the oldest of too many");
        }
        Ok(())
    }

    async fn order(&self, id: &JobId) -> Result<Option<Order>, StoreError> {
        match self.0.broker.records.find(id).await {
            Ok(Found::Job(order, _)) => Ok(Some(*order)),
            Ok(_) => Ok(None),
            Err(error) => Err(StoreError::Shared(error.to_string())),
        }
    }

    async fn object(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.0.pictures.get(name).await.map_err(|e| StoreError::Shared(e.to_string()))
    }
}

/// Why no new job is taken.
enum Taking {
    Known(JobId),
    Error(KeeperError),
}

impl From<KeeperError> for Taking {
    fn from(error: KeeperError) -> Taking {
        Taking::Error(error)
    }
}

impl From<FleetError> for Taking {
    fn from(error: FleetError) -> Taking {
        Taking::Error(KeeperError::Store(StoreError::Shared(error.to_string())))
    }
}

impl Keeper for Front {
    fn take(
        &self,
        spec: Spec,
        client: ClientId,
        key: Option<SenderKey>,
    ) -> BoxFuture<'_, Result<JobId, KeeperError>> {
        let front = self.clone();
        // What is written down comes into the queue, even where its sender leaves in between.
        let taking = tokio::spawn(async move {
            match front.take_now(spec, client, key, true).await {
                Ok(job) => Ok(job.id.clone()),
                Err(Taking::Known(id)) => Ok(id),
                Err(Taking::Error(error)) => Err(error),
            }
        });
        Box::pin(async { taking.await.unwrap_or(Err(KeeperError::Refused(Refusal::Ending))) })
    }

    fn draw(&self, spec: Spec, client: ClientId) -> BoxFuture<'_, Result<Ticket, KeeperError>> {
        let front = self.clone();
        let taking = tokio::spawn(async move {
            match front.take_now(spec, client, None, false).await {
                Ok(job) => Ok(Ticket::new(&front.0.service, job)),
                Err(Taking::Error(error)) => Err(error),
                Err(Taking::Known(_)) => Err(KeeperError::Reused),
            }
        });
        Box::pin(async { taking.await.unwrap_or(Err(KeeperError::Refused(Refusal::Ending))) })
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
        Box::pin(async {
            let mut records = Vec::with_capacity(ids.len());
            for id in ids {
                records.extend(self.order(&id).await?.map(|order| order.record));
            }
            Ok(records)
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
