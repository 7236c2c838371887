//! What a worker's tasks share, and how it finds its next job.
//!
//! Each client has a queue of its own in each lane, and the worker takes from them in turns, so nobody waits behind all jobs
//! of somebody else. Among lanes it prefers what it has loaded, then what fits beside that, then what others have to leave
//! for. A lane that another worker has loaded is left to that one for a moment.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;
use kiln_runtime::Pool;
use kiln_server::store::now;
use kiln_server::{JobId, Load, Service};
use tokio::sync::Notify;

use super::offers::{LoraDigests, Offer, Offers};
use crate::FleetError;
use crate::broker::Broker;
use crate::card::{Card, CardModel};
use crate::depot::Depot;
use crate::names::Lane;
use crate::queue::{Arrival, Queue};
use crate::records::{Found, Order};
use crate::roster::Roster;
use crate::settings::PROTOCOL;

/// How long a lane is left to a worker that has it loaded and nothing to do.
const COURTESY: Duration = Duration::from_millis(500);

/// How long it is left to workers that have it loaded and are busy, where a model would have to leave for it.
const RELUCTANCE: Duration = Duration::from_secs(5);

/// How many jobs of one lane are drawn in a row while others wait, as one box has it.
const PATIENCE: usize = 16;

/// How long a model is left alone that could not be loaded.
const DISTRUST: Duration = Duration::from_secs(60);

/// How long the server may take to hand out a job.
const PULL: Duration = Duration::from_secs(5);

/// What a worker's tasks share.
pub(crate) struct Station {
    pub(crate) broker: Broker,
    pub(crate) pictures: Depot,
    pub(crate) service: Service,
    pub(crate) pool: Pool,
    pub(crate) name: String,
    pub(crate) offers: Offers,
    pub(crate) loras: LoraDigests,
    pub(crate) roster: Roster,
    pub(crate) since: u64,
    /// Whether it fetches what it does not have.
    pub(crate) is_fetching: bool,
    pub(crate) is_draining: AtomicBool,
    /// Something has ended, or the worker is to end.
    pub(crate) changed: Notify,
    pub(crate) tally: Tally,
    /// Jobs that were handed out and are not settled.
    pub(crate) n_open: AtomicUsize,
    running: Mutex<HashMap<JobId, (Lane, usize)>>,
    trouble: Mutex<Option<String>>,
    consumers: tokio::sync::Mutex<HashMap<String, PullConsumer>>,
    turns: Mutex<HashMap<Lane, String>>,
    /// Since when lanes have jobs that were left to others.
    left: Mutex<HashMap<Lane, Instant>>,
    /// The lane of the last jobs, and how many there were in a row.
    streak: Mutex<Option<(Lane, usize)>>,
    /// Offers that could not be loaded, and when that was.
    broken: Mutex<HashMap<String, Instant>>,
}

/// What a worker has done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) busy_milliseconds: AtomicU64,
}

/// A job that was handed out, with the offer that it fits.
pub(crate) struct Handed {
    pub(crate) message: Message,
    pub(crate) offer: Offer,
    pub(crate) order: Result<Order, FleetError>,
    /// What the records say of it, or of another job, where that was asked at the same time.
    pub(crate) found: Option<Found>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Station {
    pub(crate) fn new(
        broker: Broker,
        pictures: Depot,
        service: Service,
        pool: Pool,
        name: String,
        offers: Offers,
        is_fetching: bool,
    ) -> Station {
        Station {
            broker,
            pictures,
            service,
            pool,
            name,
            offers,
            loras: LoraDigests::default(),
            roster: Roster::default(),
            since: now(),
            is_fetching,
            is_draining: AtomicBool::new(false),
            changed: Notify::new(),
            tally: Tally::default(),
            n_open: AtomicUsize::new(0),
            running: Mutex::default(),
            trouble: Mutex::default(),
            consumers: tokio::sync::Mutex::default(),
            turns: Mutex::default(),
            left: Mutex::default(),
            streak: Mutex::default(),
            broken: Mutex::default(),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Takes no more jobs.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Jobs that are drawn.
    pub(crate) fn n_running(&self) -> usize {
        locked(&self.running).len()
    }

    /// Takes up a job, unless it is at work already.
    pub(crate) fn begin(&self, id: &JobId, lane: &Lane, n_pictures: usize) -> bool {
        let mut running = locked(&self.running);
        let is_new = !running.contains_key(id);
        if is_new {
            running.insert(id.clone(), (lane.clone(), n_pictures));
        }
        is_new
    }

    /// Lets go of a job, whose place another one may have.
    pub(crate) fn end(&self, id: &JobId) {
        locked(&self.running).remove(id);
        self.changed.notify_waiters();
    }

    /// Says why no jobs can be taken, or that they can.
    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        let mut known = locked(&self.trouble);
        match (&*known, &trouble) {
            (None, Some(trouble)) => tracing::error!("no jobs are taken: {trouble}"),
            (Some(_), None) => tracing::info!("jobs are taken again"),
            _ => {}
        }
        *known = trouble;
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        locked(&self.trouble).clone()
    }

    /// What it says of itself.
    pub(crate) fn card(&self) -> Card {
        let model = |offer: Offer| CardModel {
            load: self.service.models().load(&offer.model).unwrap_or_default().name().into(),
            lane: offer.lane,
        };
        Card {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            since: self.since,
            models: self.offers.all().into_iter().map(model).collect(),
            drawing: self.n_running(),
            is_draining: self.is_draining(),
            trouble: self.trouble(),
            loaded_bytes: self.pool.loaded_bytes(),
            budget_bytes: self.pool.budget(),
            done: self.tally.done.load(Ordering::Relaxed),
            failed: self.tally.failed.load(Ordering::Relaxed),
            engine_loads: self.pool.n_loads(),
            busy_seconds: self.tally.busy_milliseconds.load(Ordering::Relaxed) as f64 / 1e3,
        }
    }

    /// The next job that this worker is the one to draw, if one waits.
    pub(crate) async fn pull(&self) -> Result<Option<Handed>, FleetError> {
        if self.trouble().is_some() {
            return Ok(None);
        }
        let room = self.room();
        if room.is_empty() {
            return Ok(None);
        }
        let waiting = self.waiting().await?;
        let tired_of = self.tired_of(&waiting);
        locked(&self.left).retain(|lane, _| waiting.contains_key(&lane.to_string()));
        // Behind all others, and not beside jobs of its own that are drawn.
        let is_tiring = |offer: &Offer| tired_of.as_ref() == Some(&offer.lane);
        let (tiring, fresh): (Vec<Offer>, Vec<Offer>) = room.into_iter().partition(is_tiring);
        let tiring = if self.n_running() > 0 { Vec::new() } else { tiring };
        for offer in fresh.into_iter().chain(tiring) {
            let Some(clients) = waiting.get(&offer.lane.to_string()) else { continue };
            if !self.is_due(&offer) {
                continue;
            }
            for client in self.in_turn(&offer.lane, clients) {
                if let Some(handed) = self.pull_from(&offer, client).await? {
                    return Ok(Some(handed));
                }
            }
        }
        Ok(None)
    }

    /// A client's next job in a lane, of which the worker was just told that it is there.
    pub(crate) async fn pull_arrival(
        &self,
        lane: &Lane,
        arrival: Arrival,
    ) -> Result<Option<Handed>, FleetError> {
        let Arrival { client, id } = arrival;
        let is_token = client.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b));
        let name = lane.to_string();
        let offer = self.room().into_iter().find(|offer| offer.lane.to_string() == name);
        match offer.filter(|offer| is_token && self.trouble().is_none() && self.is_due(offer)) {
            Some(offer) => {
                let (handed, found) =
                    tokio::join!(self.pull_from(&offer, client), self.broker.records.find(&id));
                Ok(handed?.map(|handed| Handed { found: found.ok(), ..handed }))
            }
            None => Ok(None),
        }
    }

    async fn pull_from(&self, offer: &Offer, client: String) -> Result<Option<Handed>, FleetError> {
        let Some(message) = self.fetch(&offer.lane, &client).await? else { return Ok(None) };
        locked(&self.turns).insert(offer.lane.clone(), client);
        let mut streak = locked(&self.streak);
        let n = streak.as_ref().filter(|(lane, _)| *lane == offer.lane).map_or(0, |(_, n)| *n);
        *streak = Some((offer.lane.clone(), n + 1));
        let order = Order::read(&message.payload);
        Ok(Some(Handed { message, offer: offer.clone(), order, found: None }))
    }

    /// The offers whose jobs could be begun now, what is loaded first.
    fn room(&self) -> Vec<Offer> {
        let running = locked(&self.running);
        let mut offers = self.offers.all();
        let mut broken = locked(&self.broken);
        broken.retain(|_, since| since.elapsed() < DISTRUST);
        offers.retain(|offer| !broken.contains_key(&offer.model));
        drop(broken);
        if let Some((lane, _)) = running.values().next() {
            let n_pictures: usize = running.values().map(|(_, n)| n).sum();
            offers.retain(|offer| {
                offer.lane == *lane && n_pictures < self.service.models().capacity(&offer.model)
            });
        }
        drop(running);
        offers.sort_by_key(|offer| self.rank(offer));
        offers
    }

    fn rank(&self, offer: &Offer) -> Rank {
        let is_loaded = self.service.models().load(&offer.model) == Some(Load::Loaded);
        let fits = |budget: u64| self.pool.loaded_bytes().saturating_add(offer.bytes) <= budget;
        match (is_loaded, self.pool.budget().is_none_or(fits)) {
            (true, _) => Rank::Loaded,
            (false, true) => Rank::Fits,
            (false, false) => Rank::Evicts,
        }
    }

    /// Whether a lane's jobs are not better left to others for now.
    fn is_due(&self, offer: &Offer) -> bool {
        let rank = self.rank(offer);
        let (is_loaded, is_idle) = self.roster.others_with(&offer.lane, &self.name);
        let patience = match rank {
            Rank::Loaded => Duration::ZERO,
            Rank::Fits if is_idle => COURTESY,
            Rank::Fits => Duration::ZERO,
            Rank::Evicts if is_loaded => RELUCTANCE,
            Rank::Evicts => COURTESY,
        };
        let mut left = locked(&self.left);
        let since = *left.entry(offer.lane.clone()).or_insert_with(Instant::now);
        since.elapsed() >= patience
    }

    /// Tokens of the clients that have jobs, by lane.
    async fn waiting(&self) -> Result<HashMap<String, Vec<String>>, FleetError> {
        let mut waiting: HashMap<String, Vec<String>> = HashMap::new();
        for Queue { lane, client, .. } in self.broker.queues().await? {
            waiting.entry(lane.to_string()).or_default().push(client);
        }
        Ok(waiting)
    }

    /// The lane that has had so many jobs in a row that those of another one, which wait, come first.
    fn tired_of(&self, waiting: &HashMap<String, Vec<String>>) -> Option<Lane> {
        let (lane, n) = locked(&self.streak).clone()?;
        let is_other = |offer: &Offer| offer.lane != lane && waiting.contains_key(&offer.lane.to_string());
        (n >= PATIENCE && self.offers.all().iter().any(is_other)).then_some(lane)
    }

    /// Leaves an offer alone for a while, whose model cannot be loaded here.
    pub(crate) fn distrust(&self, offer: &Offer) {
        locked(&self.broken).insert(offer.model.clone(), Instant::now());
    }

    /// Clients beginning behind the one who was served last.
    fn in_turn(&self, lane: &Lane, clients: &[String]) -> Vec<String> {
        let mut clients = clients.to_vec();
        clients.sort();
        let last = locked(&self.turns).get(lane).cloned();
        if let Some(last) = last {
            let n = clients.partition_point(|client| *client <= last);
            clients.rotate_left(n);
        }
        clients
    }

    async fn fetch(&self, lane: &Lane, client: &str) -> Result<Option<Message>, FleetError> {
        let key = format!("{lane}.{client}");
        let mut consumers = self.consumers.lock().await;
        let consumer = match consumers.get(&key) {
            Some(consumer) => consumer.clone(),
            None => {
                let made = self.broker.consumer(lane, client).await?;
                consumers.insert(key.clone(), made.clone());
                made
            }
        };
        let fetched = async {
            let mut messages = consumer.fetch().max_messages(1).messages().await.map_err(|e| e.to_string())?;
            messages.next().await.transpose().map_err(|e| e.to_string())
        };
        let fetched = tokio::time::timeout(PULL, fetched).await;
        fetched.unwrap_or_else(|_| Err("the server does not answer".into())).map_err(|reason| {
            // It was idle for too long, or the server has lost it: it is made anew.
            consumers.remove(&key);
            FleetError::broker("next job", reason)
        })
    }
}

/// How much it takes to draw with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Nothing.
    Loaded,
    /// Loading it.
    Fits,
    /// Loading it where another one leaves.
    Evicts,
}
