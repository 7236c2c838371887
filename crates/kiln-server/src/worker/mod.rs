//! The thread that owns a device: it takes jobs from the queue and draws them, as many together as fit.

mod batch;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kiln_runtime::infotext::{NamedLora, Names, lora_hash};
use kiln_runtime::{Error, LoraFile, Pipeline, Pool, Request};

use crate::metrics::End;
use crate::models::Model;
use crate::preview::LatentColours;
use crate::pulse::Work;
use crate::service::{Service, Shared};
use crate::{Fault, FaultKind, Job, Load, LoraChoice, Phase};
use batch::Batch;

/// How a worker works.
#[derive(Clone, Copy, Debug)]
pub struct WorkerOptions {
    /// Most pictures that are drawn at once, by models that gain from it.
    pub batch: usize,
    /// How long a model that nobody asks for stays loaded.
    pub idle: Duration,
    /// How long one step, or loading or decoding, may take at least before the worker counts as stuck; without it, it never
    /// does.
    pub stuck_after: Option<Duration>,
}

/// How long the worker waits for a job before it looks after idle models.
const TICK: Duration = Duration::from_millis(500);

/// Steps that every scheduler can draw.
const FEW_STEPS: usize = 8;

/// The running thread.
pub struct Worker {
    thread: JoinHandle<()>,
    is_ending: Arc<AtomicBool>,
}

impl Worker {
    /// Starts the thread.
    pub fn start(service: &Service, pool: Pool, options: WorkerOptions) -> Worker {
        let is_ending = Arc::new(AtomicBool::new(false));
        service.shared().pulse.expect(options.stuck_after);
        let mut desk = Desk {
            shared: service.shared().clone(),
            pool,
            options,
            loaded: HashMap::new(),
            is_ending: is_ending.clone(),
        };
        let thread = thread::Builder::new().name("kiln-worker".into()).spawn(move || desk.work());
        Worker { thread: thread.expect("a thread"), is_ending }
    }

    /// Whether the thread runs.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Finishes what is being drawn and ends; `service` gives out no jobs any more. Whether it has ended within `patience`:
    /// an evaluation that runs cannot be stopped.
    pub fn join(self, service: &Service, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        self.is_ending.store(true, Ordering::Relaxed);
        service.close();
        while !self.thread.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        self.thread.is_finished() && self.thread.join().is_ok()
    }
}

/// A model's pipeline, with what belongs to it.
struct Loaded {
    model: Arc<Model>,
    pipeline: Pipeline,
    loras: Vec<LoraChoice>,
    files: HashMap<String, OpenLora>,
    colours: Option<LatentColours>,
    used: Instant,
    is_idle: bool,
}

/// A LoRA's file, and what web UIs tell it apart by.
struct OpenLora {
    file: Arc<LoraFile>,
    hash: Option<String>,
}

struct Desk {
    shared: Arc<Shared>,
    pool: Pool,
    options: WorkerOptions,
    loaded: HashMap<String, Loaded>,
    is_ending: Arc<AtomicBool>,
}

impl Desk {
    fn work(&mut self) {
        while !self.is_ending.load(Ordering::Relaxed) {
            self.preload();
            self.shared.pulse.rest();
            match self.shared.queue.next(TICK) {
                Some(job) => self.draw(job),
                None => self.tidy(),
            }
        }
    }

    /// Draws a job and what joins it. A panic is the job's end, and its pipeline's.
    fn draw(&mut self, job: Arc<Job>) {
        if job.is_cancelled() {
            return job.enter(Phase::Cancelled);
        }
        let name = job.spec.model.clone();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.try_draw(&job)));
        let fault = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::error!(job = %job.id, "{error}");
                Fault::of(&error)
            }
            Err(_) => {
                tracing::error!(job = %job.id, "the worker panicked");
                self.loaded.remove(&name);
                self.shared.models.get(&name).inspect(|model| model.readiness.set(Load::Unloaded));
                Fault::unknown()
            }
        };
        if fault.kind == FaultKind::Device {
            // A device that is lost takes its engines with it; the next job opens them anew.
            self.loaded.drain().for_each(|(_, loaded)| loaded.model.readiness.set(Load::Unloaded));
        }
        self.shared.metrics.ended(&name, End::Failed);
        job.enter(Phase::Failed(fault));
    }

    fn try_draw(&mut self, job: &Arc<Job>) -> Result<(), Error> {
        let Some(model) = self.shared.models.get(&job.spec.model) else {
            job.enter(Phase::Failed(Fault::new(FaultKind::Model, "the model is no longer served")));
            return Ok(());
        };
        if let Some(gone) = job.spec.loras.iter().find(|lora| !model.loras.contains_key(&lora.name)) {
            let message = format!("the LoRA '{}' is no longer served", gone.name);
            job.enter(Phase::Failed(Fault::new(FaultKind::Model, message)));
            return Ok(());
        }
        job.begin();
        job.enter(Phase::Loading);
        let (shared, options) = (self.shared.clone(), self.options);
        let before = model.readiness.load();
        let loaded = self.load(&model)?;
        loaded.wear(&job.spec.loras).inspect_err(|_| model.readiness.set(before.clone()))?;
        let capacity = if loaded.pipeline.gains_from_batches() { options.batch } else { 1 };
        model.capacity.store(capacity, Ordering::Relaxed);
        let done = Batch::new(&shared, capacity, &job.spec).run(loaded, job.clone());
        loaded.used = Instant::now();
        loaded.is_idle = false;
        model.readiness.learn(&job.status().phase, before);
        done
    }

    /// The model's pipeline, made anew where the model was exchanged.
    fn load(&mut self, model: &Arc<Model>) -> Result<&mut Loaded, Error> {
        let name = &model.card.name;
        self.shared.pulse.begin(name, Work::Loading);
        if model.readiness.load() != Load::Loaded {
            model.readiness.set(Load::Loading);
        }
        if !self.loaded.get(name).is_some_and(|loaded| Arc::ptr_eq(&loaded.model, model)) {
            let failed = |error: &Error| model.readiness.set(Load::Failed(Fault::of(error)));
            let pipeline = model.pipeline(&self.pool).inspect_err(failed)?;
            self.shared.metrics.loaded(name);
            let loaded = Loaded {
                model: model.clone(),
                pipeline,
                loras: Vec::new(),
                files: HashMap::new(),
                colours: None,
                used: Instant::now(),
                is_idle: false,
            };
            self.loaded.insert(name.clone(), loaded);
        }
        Ok(self.loaded.get_mut(name).expect("it was loaded just now"))
    }

    /// Loads the models that are loaded with the server, and have not been yet.
    fn preload(&mut self) {
        let is_due = |model: &Arc<Model>| model.card.preload && model.readiness.is_new();
        for model in self.shared.models.list().into_iter().filter(is_due) {
            model.readiness.set(match self.load(&model).and_then(Loaded::warm) {
                Ok(()) => Load::Loaded,
                Err(error) => {
                    tracing::error!(model = model.card.name, "cannot be loaded: {error}");
                    Load::Failed(Fault::of(&error))
                }
            });
        }
    }

    /// Lets go of the engines of models that nobody has asked for lately, and of models that are no longer served.
    fn tidy(&mut self) {
        let shared = &self.shared;
        self.loaded.retain(|name, loaded| {
            shared.models.get(name).is_some_and(|served| Arc::ptr_eq(&served, &loaded.model))
        });
        for loaded in self.loaded.values_mut() {
            if !loaded.is_idle && !loaded.model.card.keep && loaded.used.elapsed() > self.options.idle {
                loaded.pipeline.release();
                loaded.is_idle = true;
                loaded.model.readiness.set(Load::Unloaded);
            }
        }
    }
}

impl Loaded {
    /// Changes to other LoRAs, where they are others.
    fn wear(&mut self, loras: &[LoraChoice]) -> Result<(), Error> {
        if self.loras == loras {
            return Ok(());
        }
        let mut files = Vec::with_capacity(loras.len());
        for lora in loras {
            let file = match (self.files.get(&lora.name), self.model.loras.get(&lora.name)) {
                (Some(open), _) => open.file.clone(),
                (None, Some(path)) => {
                    let file = Arc::new(LoraFile::open(path)?);
                    let open = OpenLora { file: file.clone(), hash: lora_hash(path).ok() };
                    self.files.insert(lora.name.clone(), open);
                    file
                }
                (None, None) => continue,
            };
            files.push((file, lora.weight));
        }
        for notice in self.pipeline.set_loras(&files)? {
            tracing::warn!("{notice}");
        }
        self.loras = loras.to_vec();
        Ok(())
    }

    /// What the texts of its pictures name.
    fn names(&self) -> Names {
        let named = |lora: &LoraChoice| NamedLora {
            name: lora.name.clone(),
            weight: lora.weight,
            hash: self.files.get(&lora.name).and_then(|open| open.hash.clone()),
        };
        let loras = self.loras.iter().map(named).collect();
        Names { model: self.model.card.public_name().to_owned(), vae: None, loras }
    }

    /// Loads all engines by drawing the fewest steps that the model's scheduler can.
    fn warm(&mut self) -> Result<(), Error> {
        let requests = (1..FEW_STEPS).map(|steps| Request::new("").steps(steps));
        let mut possible = requests.filter(|request| self.pipeline.resolve(request).is_ok());
        let request = possible.next().unwrap_or_default();
        let output = self.pipeline.generate(&request)?;
        self.colours = LatentColours::fit(&output.latents, &output.images[0]);
        Ok(())
    }
}
