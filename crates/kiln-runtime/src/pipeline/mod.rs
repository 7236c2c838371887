//! The pipeline: text to picture, picture to picture, inpainting, ControlNets (diffusers `pipelines/stable_diffusion`,
//! `stable_diffusion_xl`, `controlnet`, `latent_consistency_models`).

mod builder;
mod compare;
mod controlnet;
mod decode;
mod denoise;
mod drawing;
mod facts;
mod hires;
mod job;
mod measure;
mod noise;
mod output;
mod plan;
mod progress;
mod reference;
mod run;
mod session;
mod shared;
mod start;
mod state;
mod tiling;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_bundle::{Bundle, ComponentName, Figures, SealKey};
use kiln_engine::Backend;
use kiln_lora::{Lora, LoraFile, LoraPlan};
use ndarray::ArrayD;

use crate::architecture::{Model, Task};
use crate::backends::Notice;
use crate::error::refuse;
use crate::image::RgbImage;
use crate::lora::targets;
use crate::plan::MemoryPlan;
use crate::residency::{Pool, Residency};
use crate::watch::Watch;
use crate::{Error, MemoryOptions, Offload, Request};
pub use builder::PipelineBuilder;
use controlnet::ControlNet;
pub use drawing::Drawing;
use facts::Facts;
use job::Resolver;
pub use job::{Job, Pass};
pub use output::{Output, Timings};
use plan::Forecaster;
use progress::Progress;
pub use reference::{Reference, Verification};
use run::Run;
pub use session::Session;
pub use shared::{Held, SharedPipeline};

/// A bundle ready to generate pictures.
///
/// It may move from thread to thread. Several pipelines on several threads share engines and a budget through a
/// [`Pool`].
pub struct Pipeline {
    bundle: Arc<Bundle>,
    facts: Facts,
    model: Model,
    engines: Residency,
    controlnets: Vec<ControlNet>,
    seal_key: Option<SealKey>,
    notices: Vec<Notice>,
    /// Which words are known; 0 for those of the tokenizer alone.
    vocabulary: u64,
}

impl Pipeline {
    /// What a pipeline of a bundle is made with.
    pub fn builder(bundle: Bundle) -> PipelineBuilder {
        PipelineBuilder::new(bundle)
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What is told of the scheduler's settings before pictures are drawn: one line.
    pub fn scheduler_note(&self) -> Option<String> {
        self.model.sampling.note()
    }

    /// The backend that runs the engines.
    pub fn backend(&self) -> &dyn Backend {
        &**self.engines.backend()
    }

    /// Whether requests of one [session](Pipeline::session) take less time together than one after the other. Large models on a
    /// processor, whose rows run one by one, gain nothing unless their weights are streamed for all.
    pub fn gains_from_batches(&self) -> bool {
        self.engines.gains_from_batches()
    }

    /// What is not as it was preferred to be where the builder opened the backend.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// The pool that holds the engines.
    pub fn pool(&self) -> &Pool {
        self.engines.pool()
    }

    /// How it spends memory.
    pub fn memory(&self) -> MemoryOptions {
        self.engines.memory()
    }

    /// Number of ControlNets.
    pub fn n_controlnets(&self) -> usize {
        self.controlnets.len()
    }

    /// What a request comes to; nothing is loaded or run for it.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] and [`Error::Scheduler`] for what cannot be done.
    pub fn resolve<'r>(&self, request: &'r Request) -> Result<Job<'r>, Error> {
        let (facts, model, n_controlnets) = (&self.facts, &self.model, self.controlnets.len());
        let job = Resolver { facts, model, n_controlnets, memory: self.memory() }.resolve(request)?;
        if request.approximations.deep_every > 1 {
            self.engines.check_depth(model.denoiser.component(job.task), &*model.denoiser)?;
        }
        Ok(job)
    }

    /// Generates the pictures of a request.
    pub fn generate(&mut self, request: &Request) -> Result<Output, Error> {
        self.generate_with(request, Watch::new())
    }

    /// Generates the pictures of a request while somebody watches, who can stop it.
    ///
    /// Under offload no engine stays loaded afterwards, however it ends.
    pub fn generate_with(&mut self, request: &Request, watch: Watch<'_>) -> Result<Output, Error> {
        let job = self.resolve(request)?;
        let _active = self.pool().activate();
        let output = self.run(watch).draw(job);
        self.rest();
        output
    }

    /// Works on several requests at once, which begin and end whenever they like.
    pub fn session(&mut self) -> Session<'_> {
        Session::new(self)
    }

    /// Decodes latents `[B, C, H, W]` like those of [`Output::latents`], one at a time.
    pub fn decode_latents(&mut self, latents: &ArrayD<f32>, watch: Watch<'_>) -> Result<Vec<RgbImage>, Error> {
        let channels = self.facts.latents.channels as usize;
        if latents.ndim() != 4 || latents.shape()[1] != channels || latents.is_empty() {
            return refuse("latents", format!("{:?} is not [B, {channels}, H, W]", latents.shape()));
        }
        let _active = self.pool().activate();
        let images = self.run(watch).decode(latents);
        self.rest();
        images
    }

    fn run<'a, 'w>(&'a mut self, watch: Watch<'w>) -> Run<'a, 'w> {
        Run {
            facts: &self.facts,
            model: &self.model,
            engines: &mut self.engines,
            controlnets: &mut self.controlnets,
            vocabulary: self.vocabulary,
            progress: Progress::new(watch),
        }
    }

    /// What a request will take under every way to spend memory, from [`Figures`] of its bundle.
    ///
    /// ControlNets are not measured, and a request with control pictures is refused.
    pub fn plan(&self, request: &Request, figures: &Figures) -> Result<MemoryPlan, Error> {
        let job = self.resolve(request)?;
        Forecaster { facts: &self.facts, model: &self.model, engines: &self.engines, figures }.plan(&job)
    }

    /// Runs the components at several sizes and measures what they take: of this process's memory or of the device's,
    /// and of time.
    ///
    /// In a process that holds little else, for what the process gives back to the components counts as theirs. `None`
    /// where the operating system does not tell what a process holds.
    pub fn measure(&mut self, progress: &mut dyn FnMut(ComponentName)) -> Result<Option<Figures>, Error> {
        let memory = self.engines.memory();
        // What a process holds that has drawn, beside engines. What does not draw from text alone is measured without.
        self.engines.set_memory(MemoryOptions { offload: Offload::Sequential, ..memory });
        let first = measure::first_request(&self.facts);
        let drawn = self.resolve(&first).is_ok().then(|| self.generate(&first));
        self.engines.set_memory(memory);
        drawn.transpose()?;
        measure::measure(&self.facts, &mut self.engines, progress)
    }

    /// Adds a ControlNet, which reads the request's control picture of the same index.
    ///
    /// Those of the bundle come first.
    pub fn add_controlnet(&mut self, bundle: Bundle) -> Result<(), Error> {
        builder::check_target(&bundle, self.backend(), self.seal_key.as_ref())?;
        let task = Task { controlled: true, ..Task::default() };
        let denoiser = self.engines.component(self.model.denoiser.component(task))?;
        self.controlnets.push(ControlNet::fit(&self.facts, denoiser, bundle, &self.engines)?);
        Ok(())
    }

    /// Learns a word from an embedding file (textual inversion); gives the word, which is `token` or the file's own.
    pub fn add_embedding(&mut self, path: impl AsRef<Path>, token: Option<&str>) -> Result<String, Error> {
        let word = self.model.conditioner.learn(path.as_ref(), token)?;
        self.new_vocabulary();
        Ok(word)
    }

    /// Adds LoRAs to the weights, each times its factor, in place of those of the last call; none restores the
    /// bundle's.
    ///
    /// Engines whose weights change are loaded again when they are next needed; the others stay. Words that a LoRA
    /// bundles are learned unless its factor is 0, and stay. A LoRA of which nothing fits the model is an error, and
    /// then nothing changes; gives what users should know of those that fit in part, a line each.
    pub fn set_loras(&mut self, loras: &[(Arc<LoraFile>, f32)]) -> Result<Vec<String>, Error> {
        let loras: Vec<Lora> =
            loras.iter().map(|(file, weight)| Lora { file: file.clone(), weight: *weight }).collect();
        let changes = LoraPlan::new(&loras, &targets(&self.bundle, &loras)?)?;
        for lora in loras.iter().filter(|lora| lora.weight != 0.0) {
            self.learn_bundled(&lora.file)?;
        }
        let notices = changes.notices().to_vec();
        self.engines.set_loras(loras, changes);
        Ok(notices)
    }

    fn learn_bundled(&mut self, file: &LoraFile) -> Result<(), Error> {
        for word in file.words()? {
            if self.model.conditioner.learn_word(file.path(), &word)? {
                self.new_vocabulary();
            }
        }
        Ok(())
    }

    /// Tells its encodings from those of pipelines that know other words.
    fn new_vocabulary(&mut self) {
        static N_VOCABULARIES: AtomicU64 = AtomicU64::new(0);
        self.vocabulary = N_VOCABULARIES.fetch_add(1, Ordering::Relaxed) + 1;
    }

    /// Spends memory in another way from now on; lets go of all engines.
    pub fn set_memory(&mut self, memory: MemoryOptions) -> Result<(), Error> {
        memory.validate()?;
        self.engines.set_memory(memory);
        self.controlnets.iter_mut().for_each(|net| net.engines.set_memory(memory));
        Ok(())
    }

    /// Lets go of all engines; they are loaded again when they are next needed.
    pub fn release(&mut self) {
        self.engines.clear();
        self.controlnets.iter_mut().for_each(|net| net.engines.clear());
    }

    /// Under offload, lets go of all weights between requests.
    fn rest(&mut self) {
        if self.memory().offload != Offload::None {
            self.engines.release(|_| false);
            self.controlnets.iter_mut().for_each(|net| net.engines.release(|_| false));
        }
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("bundle", &self.bundle.root())
            .field("model", &self.model)
            .field("backend", &self.backend().name())
            .field("memory", &self.memory())
            .finish_non_exhaustive()
    }
}
