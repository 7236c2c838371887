//! Takes jobs for a fleet: what a server that does not draw asks of it.
//!
//! The server's own queue mirrors the fleet's: every job that waits or is drawn is one of the service's, in the order in which
//! workers take them. So positions, estimates, shares and previews are what they are on one box.

mod index;
mod keeper;
mod mirror;
mod upkeep;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kiln_server::keeper::{KeeperError, SenderKey};
use kiln_server::store::{Ending, Record, StoreError, has_pixels, no_pixels, sources, to_bytes};
use kiln_server::{ClientId, Fault, FaultKind, Job, JobId, Refusal, Service, Spec};
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

/// A job that was checked.
struct Taken {
    order: Order,
    spec: Spec,
    /// The pictures that it starts from, by their names in the store.
    files: Vec<(String, Vec<u8>)>,
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
        front.keep_up();
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
            && let Found::Job(known, _) = self.0.broker.records.find(&id).await?
        {
            return Err(Taking::of(&known, digest.as_ref()));
        }
        let Taken { mut order, spec, files } = self.prepare(id.clone(), spec, client.clone()).await?;
        order.is_kept = is_kept;
        (order.record.idempotency_key, order.record.digest) = key.map(|key| (key.key, key.digest)).unzip();
        let place = self.0.service.place(&client).map_err(KeeperError::Refused)?;
        if !is_kept {
            self.awaited().insert(id.clone());
        }
        // Before it is queued: a worker may be done with it before this task goes on.
        let job = self.0.service.fill(place, Job::new(id.clone(), spec, client, order.cost));
        let submitted = self.submit(&mut order, files).await;
        match submitted {
            Ok(true) => return Ok(job),
            Ok(false) => {}
            Err(_) => self.remove_sources(&order).await,
        }
        // It is the mirror's, if anybody's.
        self.awaited().remove(&id);
        self.0.service.take_out(&id);
        self.0.service.forget(&id);
        submitted?;
        let Found::Job(known, _) = self.0.broker.records.find(&id).await? else {
            return Err(KeeperError::Store(StoreError::Shared("the job is being forgotten".into())).into());
        };
        self.apply(&known);
        Err(Taking::of(&known, digest.as_ref()))
    }

    /// Checks a job, takes the pictures that it starts from out of it, and finds where it waits.
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
        Ok(Taken { order, spec, files })
    }

    fn lane(&self, model: &str) -> Option<Lane> {
        let card = self.0.service.models().card(model)?;
        Some(Lane { class: card.target.to_string(), model: model.into(), bundle: card.bundle })
    }

    /// Stores the pictures that a job starts from, queues it and writes it down: whether it is new.
    async fn submit(&self, order: &mut Order, files: Vec<(String, Vec<u8>)>) -> Result<bool, Taking> {
        let broker = &self.0.broker;
        for (name, file) in files {
            self.0.pictures.put(&name, file.into()).await?;
        }
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
        let is_open = |order: &Order| !order.is_final();
        let stopped = broker.records.change(id, is_open, |order| {
            order.is_stopped = true;
            if !order.record.begun {
                order.end(Ending::Cancelled);
            }
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

impl Taking {
    /// What a job is that is there already under the sender's own name for it.
    fn of(known: &Order, digest: Option<&String>) -> Taking {
        match known.record.digest.as_ref() == digest {
            true => Taking::Known(known.record.id.clone()),
            false => KeeperError::Reused.into(),
        }
    }
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
