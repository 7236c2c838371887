//! A worker: it pulls jobs that its models can draw, and draws them.

mod claim;
mod ending;
mod fetching;
mod offers;
mod station;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kiln_runtime::bundle::Bundle;
use kiln_server::config::ModelConfig;
use kiln_server::http::{Listening, Vitals, bind, listen, vitals_router};
use kiln_server::{JobId, Memory, Runtime, ServerError, Service, Worker};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::FleetError;
use crate::broker::{Address, Broker};
use crate::depot::Depot;
use crate::names::Lane;
use crate::queue::Arrival;
use fetching::Fetching;
use offers::Offers;
pub(crate) use offers::{LoraDigests, lane};
use station::Station;

/// How often it looks for jobs that nothing has told it of, such as those whose worker has died.
const LOOK: Duration = Duration::from_secs(1);

/// How often it looks whether its card has changed.
const LOOK_AT_CARD: Duration = Duration::from_millis(250);

/// How often it shows its card.
const SHOW: Duration = Duration::from_secs(2);

/// How long the evaluation may take that runs when all jobs are told to stop.
const LAST_STEP: Duration = Duration::from_secs(5);

/// How a worker works.
#[derive(Clone, Debug)]
pub struct FleetWorkerOptions {
    /// What it is called; no other worker of the fleet may be called so.
    pub name: String,
    /// How it draws.
    pub drawing: kiln_server::WorkerOptions,
    /// Where it says whether it is ready, and what it has done.
    pub listen: Option<SocketAddr>,
    /// Folder for bundles that it fetches from the fleet; without it, it draws with its own alone.
    pub bundles: Option<PathBuf>,
}

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The fleet.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// Its models, or the address that it listens on.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// A running worker.
pub struct FleetWorker {
    tokio: tokio::runtime::Runtime,
    station: Arc<Station>,
    worker: Worker,
    pulling: JoinHandle<()>,
    listening: Option<Listening>,
}

impl FleetWorker {
    /// Joins a fleet and begins to draw.
    pub fn start(
        address: &Address,
        options: FleetWorkerOptions,
        runtime: Runtime,
        models: Vec<(ModelConfig, Bundle)>,
    ) -> Result<FleetWorker, StartError> {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let tokio = tokio.map_err(ServerError::System)?;
        // What waits here was pulled, and is as much as can be begun.
        let service = Service::new(usize::MAX, usize::MAX);
        service.serve(&models, &runtime)?;
        let offers = Offers::of(&models);
        let pool = runtime.pool.clone();
        let (station, listening) = tokio.block_on(async {
            let broker = Broker::join(address, &options.name).await?;
            if broker.has_live_card(&options.name, 2 * SHOW).await? {
                let message = format!("worker {}: another one of this name is in the fleet", options.name);
                return Err(StartError::Fleet(FleetError::Refused(message)));
            }
            let pictures = Depot::of_pictures(&broker).await?;
            let station = Arc::new(Station::new(
                broker,
                pictures,
                service.clone(),
                pool,
                options.name,
                offers,
                options.bundles.is_some(),
            ));
            let listening = match options.listen {
                Some(address) => Some(watch_over(&station, address).await?),
                None => None,
            };
            Ok((station, listening))
        })?;
        let worker = Worker::start(&service, runtime.pool.clone(), options.drawing);
        let pulling = {
            let _inside = tokio.enter();
            station.roster.follow(&station.broker, || {});
            tokio::spawn(show(station.clone()));
            tokio::spawn(obey_stops(station.clone()));
            tokio::spawn(obey_drain(station.clone()));
            tokio::spawn(heal(station.clone()));
            let fetching =
                options.bundles.map(|folder| Fetching::new(station.clone(), runtime, models, folder));
            fetching.into_iter().for_each(|fetching| drop(tokio::spawn(fetching.run())));
            tokio::spawn(pull(station.clone()))
        };
        Ok(FleetWorker { tokio, station, worker, pulling, listening })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.station.name
    }

    /// Where it says whether it is ready.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listening.as_ref().map(Listening::address)
    }

    /// Whether it works, and gets on.
    pub fn is_alive(&self) -> bool {
        self.worker.is_alive() && !self.pulling.is_finished() && self.station.service.is_well()
    }

    /// Whether the fleet has told it to end.
    pub fn is_draining(&self) -> bool {
        self.station.is_draining()
    }

    /// Takes no more jobs, finishes those that it has for at most so long, gives the others back, and ends. Whether it has: an
    /// evaluation that runs cannot be stopped.
    pub fn stop(self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        self.station.drain();
        // What is on its way to this worker is taken up first.
        let _ = self.tokio.block_on(async { tokio::time::timeout(LAST_STEP + LOOK, self.pulling).await });
        let settled = |end: Instant| {
            while self.station.n_running() > 0 && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            self.station.n_running() == 0
        };
        settled(end);
        self.station.service.interrupt();
        let has_ended = self.worker.join(&self.station.service, LAST_STEP);
        self.station.service.let_go();
        settled(Instant::now() + LAST_STEP);
        self.tokio.block_on(async {
            // Answers of jobs that have just ended are on their way; where the queue is away, they never arrive.
            let farewell = async {
                self.station.settle().await;
                self.station.broker.take_card_away(&self.station.name).await;
                let _ = self.station.broker.client.flush().await;
            };
            let _ = tokio::time::timeout(LAST_STEP, farewell).await;
            if let Some(listening) = self.listening {
                listening.stop().await;
            }
        });
        self.tokio.shutdown_timeout(Duration::from_secs(5));
        has_ended
    }
}

async fn watch_over(station: &Arc<Station>, address: SocketAddr) -> Result<Listening, ServerError> {
    let refuse = |source| ServerError::Listen { address, source };
    let listener = bind(address).map_err(refuse)?;
    let station = station.clone();
    let look = move || Vitals {
        service: station.service.clone(),
        is_sound: station.broker.is_connected() && station.trouble().is_none() && !station.is_draining(),
        memory: Memory::of(&station.pool),
        fleet: None,
        is_ready_bare: station.is_fetching,
    };
    // Never written to: it asks for no certificate.
    let (_, plain) = watch::channel(None);
    listen(listener, plain, vitals_router(look)).await.map_err(refuse)
}

/// Takes jobs until the worker ends.
async fn pull(station: Arc<Station>) {
    let mut arrivals = None;
    // A job that nobody else waits before, as nothing waited when it came.
    let mut arrived: Option<(Lane, Arrival)> = None;
    let mut was_well = true;
    while !station.is_draining() {
        if arrivals.is_none() {
            arrivals = station.broker.client.subscribe(station.broker.names.arrivals()).await.ok();
        }
        let changed = station.changed.notified();
        let pulled = match arrived.take() {
            Some((lane, arrival)) => station.pull_arrival(&lane, arrival).await,
            None => station.pull().await,
        };
        let was_idle = station.n_running() == 0;
        match pulled {
            Ok(Some(handed)) => {
                was_well = true;
                station.take(handed);
                continue;
            }
            Ok(None) => was_well = true,
            Err(error) => {
                if std::mem::take(&mut was_well) {
                    tracing::warn!("{error}");
                }
                tokio::time::sleep(LOOK).await;
                continue;
            }
        }
        let next = async {
            match &mut arrivals {
                Some(arrivals) => arrivals.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = next => match message {
                Some(message) => {
                    let lane = station.broker.names.parse_arrival(&message.subject);
                    let arrival = serde_json::from_slice(&message.payload).ok();
                    arrived = lane.zip(arrival).filter(|_| was_idle);
                }
                None => arrivals = None,
            },
            () = changed => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Shows the worker's card for as long as the process lives: soon after it has changed, and now and then.
async fn show(station: Arc<Station>) {
    let (mut shown, mut at) = (None, Instant::now());
    loop {
        let card = station.card();
        if shown.as_ref() != Some(&card) || at.elapsed() >= SHOW {
            match station.broker.show_card(&card).await {
                Ok(()) => (shown, at) = (Some(card), Instant::now()),
                Err(error) => tracing::debug!("{error}"),
            }
        }
        tokio::time::sleep(LOOK_AT_CARD).await;
    }
}

/// Stops jobs that their owners have stopped, or that others have finished.
async fn obey_stops(station: Arc<Station>) {
    loop {
        if let Ok(mut stops) = station.broker.client.subscribe(station.broker.names.stops()).await {
            while let Some(stop) = stops.next().await {
                let id = stop.subject.rsplit('.').next().and_then(JobId::parse);
                if let Some(job) = id.and_then(|id| station.service.job(&id)) {
                    station.service.cancel(&job);
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Ends when the fleet says so.
async fn obey_drain(station: Arc<Station>) {
    let subject = station.broker.names.drain(&station.name);
    loop {
        if let Ok(mut asked) = station.broker.client.subscribe(subject.clone()).await {
            while let Some(message) = asked.next().await {
                tracing::info!("the fleet asks this worker to end");
                station.drain();
                let _ = station.broker.show_card(&station.card()).await;
                if let Some(reply) = message.reply {
                    let _ = station.broker.client.publish(reply, bytes::Bytes::from_static(b"ok")).await;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Finds out whether pictures can be stored again, while they cannot.
async fn heal(station: Arc<Station>) {
    let probe = format!("probe/{}", crate::names::token(&station.name));
    loop {
        tokio::time::sleep(SHOW).await;
        if station.trouble().is_none() {
            continue;
        }
        // As much as a picture may take.
        let bytes = bytes::Bytes::from(vec![1; 1 << 20]);
        if station.pictures.put(&probe, bytes).await.is_ok() {
            let _ = station.pictures.delete(&probe).await;
            station.set_trouble(None);
            station.changed.notify_waiters();
        }
    }
}

impl Station {
    /// Draws a job that was handed out.
    fn take(self: &Arc<Self>, handed: station::Handed) {
        let station = self.clone();
        station.n_open.fetch_add(1, Ordering::SeqCst);
        let is_new = handed.order.as_ref().is_ok_and(|order| {
            let n_pictures = order.record.spec.request.prompts.len();
            station.begin(&order.record.id, &handed.offer.lane, n_pictures)
        });
        tokio::spawn(async move {
            claim::attend(station.clone(), handed, is_new).await;
            station.n_open.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// Waits until all that was handed out is settled.
    async fn settle(&self) {
        while self.n_open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
