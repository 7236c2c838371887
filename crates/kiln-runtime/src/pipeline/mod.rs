//! The pipeline: text to picture, picture to picture, inpainting, ControlNets (diffusers `pipelines/stable_diffusion`,
//! `stable_diffusion_xl`, `controlnet`, `latent_consistency_models`).

mod control;
mod decode;
mod defaults;
mod denoise;
mod fixed;
mod guidance;
mod hires;
mod measure;
mod noise;
mod parity;
mod plan;
mod start;
mod text;
mod tiling;

use kiln_bundle::stable_diffusion::{CONTROLNET, Settings, UNET, UNET_CONTROLLED};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_bundle::{Bundle, ComponentName, SealKey, Target};
use kiln_engine::{Backend, Format, Tensor, heap};
use kiln_lora::{Lora, LoraFile, LoraPlan};
use ndarray::ArrayD;

use crate::image::RgbImage;
use crate::lora::targets;
use crate::prompt::LearnedWords;
use crate::request::{MicroConditioning, check_side, refuse};
use crate::residency::Residency;
use crate::scheduler::{Sampler, SchedulerConfig};
use crate::tokenizer::ClipTokenizer;
use crate::{Error, MemoryOptions, Offload, Request, open_scheduler, open_tokenizer};
use control::{ControlNet, Steering};
use denoise::Denoiser;
use guidance::Guidance;
use noise::Noise;
use start::Start;
use text::Conditioning;

/// A bundle ready to generate pictures.
pub struct Pipeline {
    bundle: Bundle,
    engines: Residency,
    tokenizers: Vec<ClipTokenizer>,
    learned: LearnedWords,
    controlnets: Vec<ControlNet>,
    scheduler: SchedulerConfig,
    pub(crate) settings: Settings,
}

/// What the pipeline is about to do or has done.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// An engine is being loaded.
    Loading(ComponentName),
    /// A prompt is longer than the text encoder reads; the tokens that were cut off.
    Truncated(usize),
    /// The engines are loaded and the first step starts.
    Started {
        /// Evaluations of the UNet to make, which for samplers of second order are nearly twice the steps.
        steps: usize,
    },
    /// An evaluation of the UNet is done.
    Step {
        /// Evaluations done.
        step: usize,
        /// Evaluations to make.
        steps: usize,
        /// The timestep that was left.
        timestep: f32,
    },
    /// Latents are being decoded.
    Decoding {
        /// Pictures done.
        done: usize,
        /// Pictures to decode.
        total: usize,
    },
}

/// What a request gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// One picture per prompt.
    pub images: Vec<RgbImage>,
    /// The latents they were decoded from, `[B, C, H, W]`, in the UNet's scale.
    pub latents: ArrayD<f32>,
    /// Where the time went.
    pub timings: Timings,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Until the first step: loading, tokenizing, encoding the prompt.
    pub start: Duration,
    /// All steps.
    pub steps: Duration,
    /// Decoding.
    pub decode: Duration,
}

/// Told of every [`Event`]; `Break` cancels before the next one.
pub type Progress<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

impl Pipeline {
    /// Reads the bundle's tokenizers and scheduler; engines are loaded when they are first needed.
    pub fn new(bundle: Bundle, backend: Arc<dyn Backend>) -> Result<Pipeline, Error> {
        let info = bundle.pipeline()?.clone();
        check_target(&bundle, &*backend)?;
        let tokenizer = |encoder: &kiln_bundle::TextEncoderInfo| {
            let folder = bundle.path(encoder.tokenizer.folder.as_deref().unwrap_or_default());
            open_tokenizer(&folder, encoder.positions as usize, u64::from(encoder.vocabulary))
        };
        let scheduler = open_scheduler(&bundle.path(&info.scheduler))?;
        let mut pipeline = Pipeline {
            tokenizers: info.text_encoders.iter().map(tokenizer).collect::<Result<_, _>>()?,
            engines: Residency::new(backend, MemoryOptions::default()),
            learned: LearnedWords::default(),
            controlnets: Vec::new(),
            scheduler,
            settings: Settings::of(&info)?,
            bundle,
        };
        for folder in &info.controlnets {
            let nested = Bundle::open(&pipeline.bundle.path(folder))?;
            pipeline.add_controlnet(nested)?;
        }
        Ok(pipeline)
    }

    /// Adds a ControlNet, which reads the request's control picture of the same index.
    ///
    /// Those of the bundle come first.
    pub fn add_controlnet(&mut self, bundle: Bundle) -> Result<(), Error> {
        let (info, net) = (self.bundle.pipeline()?, bundle.controlnet()?);
        check_target(&bundle, self.backend())?;
        let width: u32 = info.text_encoders.iter().map(|encoder| encoder.width).sum();
        let refuse = |reason: String| Err(Error::ControlNet { path: bundle.root().into(), reason });
        if net.cross_attention_dim != width {
            return refuse(format!(
                "attends to text states of width {}; this model's have {width}",
                net.cross_attention_dim
            ));
        }
        if net.latent_channels != info.latents.channels {
            let (found, expected) = (net.latent_channels, info.latents.channels);
            return refuse(format!("reads latents of {found} channels; this model's have {expected}"));
        }
        if net.scale_factor != info.latents.scale_factor {
            let (found, expected) = (net.scale_factor, info.latents.scale_factor);
            return refuse(format!("expects {found} pixels per latent; this model has {expected}"));
        }
        let residuals = self.bundle.component(UNET_CONTROLLED)?.inputs.iter();
        let residuals: Vec<_> = residuals.filter(|port| port.name.contains("_block_residual")).collect();
        let outputs = &bundle.component(CONTROLNET)?.outputs;
        if outputs.iter().collect::<Vec<_>>() != residuals {
            return refuse("makes residuals of other shapes than this model's UNet adds".into());
        }
        let engines = self.engines.sibling();
        self.controlnets.push(ControlNet { bundle, engines });
        Ok(())
    }

    /// Number of ControlNets.
    pub fn n_controlnets(&self) -> usize {
        self.controlnets.len()
    }

    /// Learns a word from an embedding file (textual inversion); gives the word, which is `token` or the file's own.
    pub fn add_embedding(&mut self, path: &Path, token: Option<&str>) -> Result<String, Error> {
        let encoders = self.bundle.pipeline()?.text_encoders.clone();
        self.learned.learn(path, token, &encoders, &mut self.tokenizers)
    }

    /// Adds LoRAs to the weights, each times its factor, in place of those of the last call; none restores the bundle's.
    ///
    /// Engines whose weights change are loaded again when they are next needed; the others stay. A LoRA that does not
    /// fit the model is an error, and then nothing changes.
    pub fn set_loras(&mut self, loras: &[(Arc<LoraFile>, f32)]) -> Result<(), Error> {
        let loras: Vec<Lora> =
            loras.iter().map(|(file, weight)| Lora { file: file.clone(), weight: *weight }).collect();
        let plan = LoraPlan::new(&loras, &targets(&self.bundle, &loras)?)?;
        self.engines.set_loras(plan);
        Ok(())
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The backend that runs the engines.
    pub fn backend(&self) -> &dyn Backend {
        self.engines.backend()
    }

    /// Generates the pictures of a request; `progress` hears of every step and can cancel between steps.
    ///
    /// Under offload no engine stays loaded afterwards, however it ends.
    pub fn generate(&mut self, request: &Request, progress: &mut Progress<'_>) -> Result<Output, Error> {
        let output = self.run(request, progress);
        self.rest();
        output
    }

    /// Decodes latents `[B, C, H, W]` like those of [`Output::latents`], one at a time.
    pub fn decode_latents(
        &mut self,
        latents: &ArrayD<f32>,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<RgbImage>, Error> {
        let channels = self.bundle.pipeline()?.latents.channels as usize;
        if latents.ndim() != 4 || latents.shape()[1] != channels || latents.is_empty() {
            return refuse("latents", format!("{:?} is not [B, {channels}, H, W]", latents.shape()));
        }
        let images = self.decode(latents, &mut Run { step: 0, steps: 0, progress });
        self.rest();
        images
    }

    fn run(&mut self, request: &Request, progress: &mut Progress<'_>) -> Result<Output, Error> {
        let size = self.size(request)?;
        self.check(request, size)?;
        let (steps, guidance) = (self.steps(request)?, self.guidance(request)?);
        let strength = self.strength(request)?.map(|strength| ("strength", strength));
        let (mut sampler, begin) = self.sampler(request, steps, strength)?;
        let mut run = Run { step: 0, steps: 0, progress };

        let begun = Instant::now();
        let conditioning = self.encode_prompts(request, guidance.is_guided(), &mut run)?;
        let mut noise = Noise::new(request.generator, &request.seeds);
        let start = self.start(request, size, &sampler, begin, &mut noise, &mut run)?;
        run.steps = sampler.timesteps().len() - start.begin + self.hires_steps(request, steps)?;
        self.load(self.unet_role(request), &mut run)?;
        run.tell(Event::Started { steps: run.steps })?;
        let started = begun.elapsed();

        let pass = Pass { request, size, guidance, conditioning: &conditioning };
        let mut latents = self.denoise(&pass, &mut sampler, start, &mut noise, &mut run)?;
        if let Some(hires) = &request.hires {
            latents = self.refine(hires, &pass, &latents, steps, &mut noise, &mut run)?;
        }
        let stepped = begun.elapsed();
        let images = self.decode(&latents, &mut run)?;
        let timings = Timings { start: started, steps: stepped - started, decode: begun.elapsed() - stepped };
        Ok(Output { images, latents, timings })
    }

    fn denoise(
        &mut self,
        pass: &Pass<'_>,
        sampler: &mut Sampler,
        start: Start,
        noise: &mut Noise,
        run: &mut Run<'_, '_>,
    ) -> Result<ArrayD<f32>, Error> {
        let batch = pass.request.prompts.len();
        let rows = if pass.guidance.is_guided() { 2 * batch } else { batch };
        let conditions = self.conditions(pass, rows)?;
        let scales = self.control_scales(pass.request)?;
        let steering = match pass.request.controls.as_slice() {
            [] => None,
            controls => Some(Steering::new(self.controlnets.iter_mut(), controls, scales, pass.size, rows)?),
        };
        let role = if steering.is_some() { UNET_CONTROLLED } else { UNET };
        let unet = self.engines.network(&self.bundle, role)?;
        let mut denoiser =
            Denoiser { unet, steering, guidance: pass.guidance, conditions: &conditions, eta_noise: noise };
        denoiser.run(sampler, start, run)
    }

    fn unet_role(&self, request: &Request) -> ComponentName {
        if request.controls.is_empty() { UNET } else { UNET_CONTROLLED }
    }

    fn load(&mut self, role: ComponentName, run: &mut Run<'_, '_>) -> Result<ComponentName, Error> {
        // What the component before it used is of other sizes.
        heap::trim_tensors(0);
        if self.engines.memory().offload != Offload::None {
            self.release_but(role);
        }
        if !self.engines.is_loaded(role) {
            run.tell(Event::Loading(role))?;
            self.engines.load(&self.bundle, role)?;
        }
        Ok(role)
    }

    /// Drops the engines that a component does not run together with.
    fn release_but(&mut self, role: ComponentName) {
        self.engines.release(|loaded| loaded == role);
        if role != UNET_CONTROLLED {
            self.controlnets.iter_mut().for_each(|net| net.engines.release(|_| false));
        }
    }

    /// Under offload, lets go of all weights between requests.
    fn rest(&mut self) {
        if self.engines.memory().offload != Offload::None {
            self.engines.release(|_| false);
            self.controlnets.iter_mut().for_each(|net| net.engines.release(|_| false));
        }
    }

    /// Drops all engines; they are loaded again when they are next needed.
    pub fn release(&mut self) {
        self.engines.clear();
        self.controlnets.iter_mut().for_each(|net| net.engines.clear());
    }

    /// How it spends memory.
    pub fn memory(&self) -> MemoryOptions {
        self.engines.memory()
    }

    /// Spends memory in another way from now on; drops all engines.
    pub fn set_memory(&mut self, memory: MemoryOptions) -> Result<(), Error> {
        memory.validate()?;
        self.engines.set_memory(memory);
        self.controlnets.iter_mut().for_each(|net| net.engines.set_memory(memory));
        Ok(())
    }

    fn check(&self, request: &Request, [height, width]: [u32; 2]) -> Result<(), Error> {
        request.validate()?;
        let factor = self.bundle.pipeline()?.latents.scale_factor;
        check_side("height", Some(height), factor)?;
        check_side("width", Some(width), factor)?;
        self.check_fixed(request, [height, width])?;
        let latents = self.latent_shape(1, [height, width])?;
        self.decoding_tiles(self.memory().vae_tiling, &latents)?;
        self.encoding_tiles(self.memory().vae_tiling, &[1, 3, height as usize, width as usize])?;
        if self.settings.time_ids.is_none() && request.micro_conditioning != MicroConditioning::default() {
            return refuse(
                "original size",
                "sizes, crop and aesthetic scores are for models that read them (SDXL)".into(),
            );
        }
        match (request.controls.len(), self.controlnets.len()) {
            (0, _) => Ok(()),
            (found, n) if found == n => Ok(()),
            (found, n) => refuse("control image", format!("{found} of them for {n} ControlNets")),
        }
    }

    fn latent_shape(&self, batch: usize, [height, width]: [u32; 2]) -> Result<[usize; 4], Error> {
        let info = self.bundle.pipeline()?;
        let factor = info.latents.scale_factor;
        Ok([batch, info.latents.channels as usize, (height / factor) as usize, (width / factor) as usize])
    }
}

/// What the passes of a request share.
struct Pass<'a> {
    request: &'a Request,
    /// Height and width in pixels.
    size: [u32; 2],
    guidance: Guidance,
    conditioning: &'a Conditioning,
}

fn only_output(component: ComponentName, outputs: Vec<Tensor>) -> Result<ArrayD<f32>, Error> {
    let output = outputs.into_iter().next().and_then(Tensor::into_f32);
    output.ok_or_else(|| Error::Component { component, reason: "has no output of floats".into() })
}

struct Run<'a, 'p> {
    step: usize,
    steps: usize,
    progress: &'a mut Progress<'p>,
}

impl Run<'_, '_> {
    fn tell(&mut self, event: Event) -> Result<(), Error> {
        match (self.progress)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled { step: self.step, steps: self.steps }),
        }
    }
}

/// Refuses engines that a backend does not run, and code that nobody vouches for.
fn check_target(bundle: &Bundle, backend: &dyn Backend) -> Result<(), Error> {
    let target = bundle.manifest().target;
    let refuse = |reason: String| Err(Error::Target { path: bundle.root().into(), target, reason });
    match (target, backend.format()) {
        (Target::Cpu, Format::Onnx) | (Target::Cuda, Format::OnnxForCuda) => Ok(()),
        (Target::TensorrtRtx, Format::TensorRtRtx) | (Target::Tensorrt, Format::TensorRt) => {
            let key = kiln_native::cache_dir()?.join(SealKey::FILE);
            Ok(bundle.check_seal(&SealKey::open(&key)?)?)
        }
        (Target::Onnx, _) => refuse("engines are built from it".into()),
        _ => refuse(format!("{} does not run them", backend.name())),
    }
}
