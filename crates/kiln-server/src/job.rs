//! One request on its way through the server.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use kiln_runtime::image::RgbImage;
use kiln_runtime::{CancelToken, Request, Timings};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::Span;

use crate::Fault;
use crate::spans::Spans;
use crate::store::Store;

/// Names a job; cannot be guessed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// A new one.
    pub fn random() -> JobId {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system has random numbers");
        JobId(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The one that a client's own name for a job stands for: always the same.
    pub fn of_key(client: &ClientId, key: &str) -> JobId {
        let digest = blake3::hash(format!("kiln job\n{}\n{key}", client.0).as_bytes());
        JobId(digest.to_hex()[..32].into())
    }

    /// The name, if it can be one.
    pub fn parse(text: &str) -> Option<JobId> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 32 && text.bytes().all(is_hex)).then(|| JobId(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who sent a job: the name of an API key, or nobody in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub String);

/// What to draw, and with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Name of a served model.
    pub model: String,
    /// LoRAs, among those that the model allows.
    #[serde(default)]
    pub loras: Vec<LoraChoice>,
    /// The request, with its seeds.
    pub request: Request,
}

/// A LoRA by the name that the server gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraChoice {
    /// Name.
    pub name: String,
    /// Factor of its changes.
    pub weight: f32,
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Phase {
    /// It waits for its turn.
    #[default]
    Queued,
    /// Its model is being loaded.
    Loading,
    /// Evaluations of the denoiser are made.
    Drawing {
        /// Evaluations done.
        step: usize,
        /// Evaluations to make.
        steps: usize,
    },
    /// Pictures are decoded.
    Decoding,
    /// It has pictures.
    Done(Arc<Finished>),
    /// It has none.
    Failed(Fault),
    /// Somebody stopped it.
    Cancelled,
}

impl Phase {
    /// Whether nothing will change any more.
    pub fn is_final(&self) -> bool {
        matches!(self, Phase::Done(_) | Phase::Failed(_) | Phase::Cancelled)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Queued => "queued",
            Phase::Loading => "loading",
            Phase::Drawing { .. } => "drawing",
            Phase::Decoding => "decoding",
            Phase::Done(_) => "done",
            Phase::Failed(_) => "failed",
            Phase::Cancelled => "cancelled",
        }
    }
}

/// What a job came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// One picture per prompt.
    pub images: Vec<RgbImage>,
    /// How each was made, in the words of the web UIs.
    pub infotexts: Vec<String>,
    /// Where the time went.
    pub timings: Timings,
}

/// What watchers see of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// How far it is.
    pub phase: Phase,
    /// What the first picture looks like so far, one pixel per latent, and after which evaluation.
    pub preview: Option<(usize, Arc<RgbImage>)>,
}

/// A job that the server has taken.
#[derive(Debug)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What to draw.
    pub spec: Spec,
    /// Who sent it.
    pub client: ClientId,
    /// When it was sent.
    pub created: SystemTime,
    /// Evaluations times rows times pixels: what it costs.
    pub cost: f64,
    pub(crate) queued: Instant,
    pub(crate) cancel: CancelToken,
    is_stopped: AtomicBool,
    /// Where it is written down, if it is.
    store: Option<Arc<Store>>,
    has_begun: AtomicBool,
    spans: Spans,
    status: watch::Sender<Status>,
}

impl Job {
    /// A job that waits; `cost` is what [`Service::check`](crate::Service::check) says.
    pub fn new(id: JobId, spec: Spec, client: ClientId, cost: f64) -> Job {
        Job {
            spans: Spans::new(&id, &spec),
            id,
            spec,
            client,
            created: SystemTime::now(),
            cost,
            queued: Instant::now(),
            cancel: CancelToken::new(),
            is_stopped: AtomicBool::new(false),
            store: None,
            has_begun: AtomicBool::new(false),
            status: watch::Sender::new(Status::default()),
        }
    }

    /// The same, sent at another time than now.
    #[must_use]
    pub fn sent_at(self, created: SystemTime) -> Job {
        let age = created.elapsed().unwrap_or_default();
        Job { created, queued: Instant::now().checked_sub(age).unwrap_or(self.queued), ..self }
    }

    /// The same, written down in a store.
    pub(crate) fn on_disk(self, store: &Arc<Store>) -> Job {
        Job { store: Some(store.clone()), ..self }
    }

    /// Writes down that it begins to be drawn, before that can end the process.
    pub(crate) fn begin(&self) {
        if self.has_begun.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(Err(error)) = self.store.as_ref().map(|store| store.begin(&self.id)) {
            tracing::error!(job = %self.id, "{error}");
        }
    }

    /// Takes back that it has begun, as the server ends in order. Whether it had.
    pub(crate) fn take_back(&self) -> bool {
        self.has_begun.swap(false, Ordering::Relaxed)
    }

    /// What watchers see of it now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows what watchers see; slow ones see the newest alone.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Time since it was taken.
    pub fn age(&self) -> Duration {
        self.queued.elapsed()
    }

    /// Stops it before its next step, because the server ends.
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Stops it before its next step, because its owner says so.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.cancel.cancel();
    }

    /// Whether its owner has stopped it.
    pub fn was_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Whether somebody has stopped it.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Goes to another phase, unless it is at its end.
    pub fn enter(&self, phase: Phase) {
        self.status.send_if_modified(|status| {
            let changes = !status.phase.is_final() && status.phase != phase;
            if changes {
                self.spans.enter(&status.phase, &phase);
                status.phase = phase;
            }
            changes
        });
    }

    /// Shows what its first picture looks like after so many evaluations.
    pub fn show(&self, step: usize, preview: RgbImage) {
        self.status.send_modify(|status| status.preview = Some((step, Arc::new(preview))));
    }

    /// Wakes whoever follows it.
    pub fn touch(&self) {
        self.status.send_modify(|_| {});
    }

    /// The span in which its pictures are written down.
    pub(crate) fn saving(&self) -> Span {
        self.spans.saving()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Phase {
        let mut watcher = self.watch();
        match watcher.wait_for(|status| status.phase.is_final()).await {
            Ok(status) => status.phase.clone(),
            // The sender lives as long as the job.
            Err(_) => Phase::Cancelled,
        }
    }
}
