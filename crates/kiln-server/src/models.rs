//! The models that are served.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use kiln_runtime::bundle::Bundle;
use kiln_runtime::scheduler::SchedulerClass;
use kiln_runtime::{
    Backend, Backends, Error, MemoryOptions, Pipeline, PipelineBuilder, Pool, Request, SealKey, Size, Target,
};

use crate::config::{Limits, ModelConfig};
use crate::fault::shown;
use crate::readiness::Readiness;
use crate::{Fault, FaultKind, Load, Spec};

/// What handlers know of a model.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// What clients call it.
    pub name: String,
    /// What people see.
    pub title: String,
    /// Size of pictures where a request says none.
    pub size: Size,
    /// Scheduler where a request names none; the model's own where this is none, too.
    pub scheduler: Option<String>,
    /// Steps where a request says none; the model's own where this is none, too.
    pub steps: Option<usize>,
    /// Steps that a request comes to that says none.
    pub usual_steps: usize,
    /// Weight of the prompt where a request says none.
    pub guidance_scale: f32,
    /// Names of the schedulers that can draw with it.
    pub schedulers: Vec<String>,
    /// Names of the LoRAs that requests may use.
    pub loras: Vec<String>,
    /// Names of its ControlNets, which take a control picture each, or none of them.
    pub controlnets: Vec<String>,
    /// What a request may take.
    pub limits: Limits,
    /// Digest that tells its bundle from others, as 64 hexadecimal digits.
    pub digest: String,
    /// Digest of the bundle's files, whatever was measured of it, as 64 hexadecimal digits.
    pub bundle: String,
    /// What its engines are built for.
    pub target: Target,
    /// diffusers' class of its pipeline.
    pub class: String,
    /// Whether it is loaded with the server.
    pub preload: bool,
    /// Whether it stays loaded.
    pub keep: bool,
    /// Since when it is served.
    pub since: SystemTime,
}

impl ModelCard {
    /// What people call it, where one program has several bundles of the same name and calls the others `name@digest`.
    pub fn public_name(&self) -> &str {
        self.name.split('@').next().unwrap_or(&self.name)
    }
}

/// A model: its card, and what pipelines are made from.
pub(crate) struct Model {
    pub(crate) card: ModelCard,
    pub(crate) loras: BTreeMap<String, PathBuf>,
    pub(crate) readiness: Readiness,
    /// Pictures that are drawn at once; one until it was loaded.
    pub(crate) capacity: AtomicUsize,
    config: ModelConfig,
    bundle: Bundle,
    backend: Arc<dyn Backend>,
    memory: MemoryOptions,
    seal_key: Option<SealKey>,
    kernels: Option<PathBuf>,
    /// Resolves requests and never loads an engine.
    front: Mutex<Pipeline>,
}

/// Largest guidance scale and factor of a LoRA or ControlNet: far beyond what draws anything, far from what overflows.
pub(crate) const MAX_FACTOR: f32 = 1e4;

/// What all models of a server have in common.
#[derive(Clone)]
pub struct Runtime {
    /// What runs engines.
    pub backends: Backends,
    /// Holds the engines of all models.
    pub pool: Pool,
    /// How pipelines spend memory.
    pub memory: MemoryOptions,
    /// Seals engines that are code.
    pub seal_key: Option<SealKey>,
    /// Where kernels are kept that a device's library compiles.
    pub kernels: Option<PathBuf>,
}

impl Model {
    pub(crate) fn open(config: &ModelConfig, bundle: Bundle, runtime: &Runtime) -> Result<Model, Error> {
        let opened = runtime.backends.open_for(&bundle)?;
        for notice in &opened.notices {
            tracing::warn!(model = %config.name, "{notice}");
        }
        Model::over(config, bundle, opened.backend, runtime)
    }

    /// Opens it over a backend.
    pub(crate) fn over(
        config: &ModelConfig,
        bundle: Bundle,
        backend: Arc<dyn Backend>,
        runtime: &Runtime,
    ) -> Result<Model, Error> {
        let builder = |pool: &Pool| {
            let builder = Pipeline::builder(bundle.clone()).backend(backend.clone()).pool(pool);
            sealed(builder, runtime.seal_key.as_ref(), runtime.kernels.as_ref()).memory(runtime.memory)
        };
        let front = builder(&Pool::new()).build()?;
        let plain = Request::new("").steps(config.steps);
        let usual = front.resolve(&plain)?;
        let manifest = bundle.manifest();
        let info = bundle.pipeline()?;
        let card = ModelCard {
            name: config.name.clone(),
            title: config.title.clone().unwrap_or_else(|| config.name.clone()),
            size: usual.picture_size(),
            usual_steps: usual.first.steps,
            guidance_scale: usual.guidance.scale,
            schedulers: schedulers(&front, usual.first.schedule.sampler.name()),
            scheduler: config.scheduler.clone(),
            steps: config.steps,
            loras: config.loras.keys().cloned().collect(),
            controlnets: info.controlnets.clone(),
            limits: config.limits,
            digest: blake3::hash(manifest.provenance.key.as_bytes()).to_hex().to_string(),
            bundle: bundle.digest(),
            target: manifest.target,
            class: info.class.clone(),
            preload: config.preload,
            keep: config.keep,
            since: SystemTime::now(),
        };
        Ok(Model {
            card,
            loras: config.loras.clone(),
            readiness: Readiness::default(),
            capacity: AtomicUsize::new(1),
            config: config.clone(),
            backend,
            memory: runtime.memory,
            seal_key: runtime.seal_key.clone(),
            kernels: runtime.kernels.clone(),
            front: Mutex::new(front),
            bundle,
        })
    }

    /// Whether it is what a configuration and a bundle would make.
    pub(crate) fn is(&self, config: &ModelConfig, bundle: &Bundle) -> bool {
        let same_bundle = self.bundle.root() == bundle.root() && self.bundle.manifest() == bundle.manifest();
        self.config == *config && same_bundle
    }

    /// A pipeline whose engines lie in a pool.
    pub(crate) fn pipeline(&self, pool: &Pool) -> Result<Pipeline, Error> {
        let builder = Pipeline::builder(self.bundle.clone()).backend(self.backend.clone()).pool(pool);
        sealed(builder, self.seal_key.as_ref(), self.kernels.as_ref()).memory(self.memory).build()
    }

    /// Fills in what the model's configuration says, refuses what it does not allow or cannot do; what the request costs.
    pub(crate) fn accept(&self, spec: &mut Spec) -> Result<f64, Fault> {
        let refuse = |reason: String| Err(Fault::new(FaultKind::Request, reason));
        let (card, request) = (&self.card, &mut spec.request);
        let limits = card.limits;
        if let Some(lora) = spec.loras.iter().find(|lora| !self.loras.contains_key(&lora.name)) {
            return refuse(format!("lora: '{}' is not one of this model's", shown(&lora.name)));
        }
        let loras = spec.loras.iter().map(|lora| ("lora", Some(lora.weight)));
        let controls = request.controls.iter().map(|control| ("controlnet scale", control.scale));
        let factors = loras.chain(controls).chain([("guidance scale", request.guidance_scale)]);
        for (name, factor) in factors.filter_map(|(name, factor)| Some((name, factor?))) {
            if !(-MAX_FACTOR..=MAX_FACTOR).contains(&factor) {
                return refuse(format!("{name}: {factor} is not a number from -{MAX_FACTOR} to {MAX_FACTOR}"));
            }
        }
        if request.prompts.len() > limits.pictures {
            return refuse(format!(
                "batch size: {} pictures, the limit is {}",
                request.prompts.len(),
                limits.pictures
            ));
        }
        let texts = request.prompts.iter().chain(&request.negative_prompts);
        for text in texts {
            if text.len() > limits.prompt_bytes {
                return refuse(format!("prompt: {} bytes, the limit is {}", text.len(), limits.prompt_bytes));
            }
            if text.contains('\0') {
                return refuse("prompt: holds a NUL character".into());
            }
        }
        request.scheduler = request.scheduler.take().or_else(|| card.scheduler.clone());
        request.steps = request.steps.or(card.steps);
        let all_steps = [request.steps, request.hires.and_then(|hires| hires.steps)];
        if let Some(steps) = all_steps.into_iter().flatten().find(|steps| *steps > limits.steps) {
            return refuse(format!("steps: {steps}, the limit is {}", limits.steps));
        }
        let sides = [request.width, request.height].into_iter().flatten();
        if let Some(side) = sides.into_iter().find(|side| *side > limits.side) {
            return refuse(format!("size: {side} pixels, the limit is {}", limits.side));
        }
        let front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        let job = front.resolve(request).map_err(|e| Fault::of(&e))?;
        let size = job.picture_size();
        limits.check(size).map_err(|reason| Fault::new(FaultKind::Request, reason))?;
        let together = size.area().saturating_mul(job.batch() as u64);
        if together > limits.pixels_together {
            return refuse(format!(
                "batch size: {} pictures of {size}, the limit is {} pixels together",
                job.batch(),
                limits.pixels_together
            ));
        }
        let rows = job.guidance.rows(job.batch());
        Ok(job.n_evaluations() as f64 * rows as f64 * size.area() as f64)
    }
}

fn sealed(builder: PipelineBuilder, key: Option<&SealKey>, kernels: Option<&PathBuf>) -> PipelineBuilder {
    match (key, kernels) {
        (Some(key), Some(kernels)) => builder.seal_key(key.clone()).kernel_cache(kernels),
        (Some(key), None) => builder.seal_key(key.clone()),
        (None, _) => builder,
    }
}

/// The schedulers that a pipeline can draw with. Those with EDM's preconditioning are for models whose own one has it.
fn schedulers(front: &Pipeline, own: &str) -> Vec<String> {
    let fits = |name: &str| !name.starts_with("edm-") || own.starts_with("EDM");
    let draws = |name: &String| fits(name) && front.resolve(&Request::new("").scheduler(name)).is_ok();
    SchedulerClass::spellings().filter(draws).collect()
}

/// The models by name, which may be exchanged while the server runs.
#[derive(Default)]
pub struct Models(RwLock<Arc<Vec<Arc<Model>>>>);

impl Models {
    /// Serves these models from now on.
    pub(crate) fn set(&self, models: Vec<Arc<Model>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(models);
    }

    fn all(&self) -> Arc<Vec<Arc<Model>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What handlers know of all models.
    pub fn cards(&self) -> Vec<ModelCard> {
        self.all().iter().map(|model| model.card.clone()).collect()
    }

    /// How far a model is from being drawn with, if it is served.
    pub fn load(&self, name: &str) -> Option<Load> {
        self.get(name).map(|model| model.readiness.load())
    }

    /// Says how far a model is that is drawn with elsewhere.
    pub fn set_load(&self, name: &str, load: Load) {
        self.get(name).inspect(|model| model.readiness.set(load));
    }

    /// Pictures that a model draws at once; one until it was loaded.
    pub fn capacity(&self, name: &str) -> usize {
        self.get(name).map_or(1, |model| model.capacity.load(Ordering::Relaxed))
    }

    /// The file of a model's LoRA.
    pub fn lora(&self, name: &str, lora: &str) -> Option<PathBuf> {
        self.get(name)?.loras.get(lora).cloned()
    }

    /// The card of a model.
    pub fn card(&self, name: &str) -> Option<ModelCard> {
        self.get(name).map(|model| model.card.clone())
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Model>> {
        self.all().iter().find(|model| model.card.name == name).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<Model>> {
        self.all().to_vec()
    }
}
