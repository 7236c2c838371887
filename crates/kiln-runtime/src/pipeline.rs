//! The pipeline (diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py`).

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_bundle::{Bundle, Role};
use kiln_engine::{Backend, Engine, HostTensor, LoadOptions, TensorView};
use ndarray::{ArrayD, Axis, Slice, Zip, arr1, concatenate};

use crate::generator::Generator;
use crate::image::RgbImage;
use crate::residency::Residency;
use crate::scheduler::{SamplerOptions, SchedulerClass, SchedulerConfig, SchedulerError};
use crate::tokenizer::ClipTokenizer;
use crate::{Error, Request};

/// A bundle ready to generate pictures.
pub struct Pipeline {
    bundle: Bundle,
    engines: Residency,
    tokenizer: ClipTokenizer,
    scheduler: SchedulerConfig,
}

/// What the pipeline is about to do or has done.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// An engine is being loaded.
    Loading(Role),
    /// A prompt is longer than the text encoder reads; the tokens that were cut off.
    Truncated(usize),
    /// The engines are loaded and the first step starts.
    Started {
        /// Steps to take.
        steps: usize,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: usize,
        /// Steps to take.
        steps: usize,
        /// The timestep that was left, not always a whole number.
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
    /// Reads the bundle's tokenizer and scheduler; engines are loaded when they are first needed.
    pub fn new(bundle: Bundle, backend: Arc<dyn Backend>) -> Result<Pipeline, Error> {
        Pipeline::with_options(bundle, backend, LoadOptions::default())
    }

    /// Like [`Pipeline::new`], with options for the engines.
    pub fn with_options(
        bundle: Bundle,
        backend: Arc<dyn Backend>,
        options: LoadOptions,
    ) -> Result<Pipeline, Error> {
        let info = &bundle.manifest().pipeline;
        let tokenizer = ClipTokenizer::from_dir(&bundle.path(&info.tokenizer), info.text_positions as usize)?;
        let path = bundle.path(&info.scheduler);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
        let config =
            SchedulerConfig::from_json(&text).map_err(|source| Error::SchedulerFile { path, source })?;
        Ok(Pipeline {
            scheduler: config.for_stable_diffusion(),
            engines: Residency::new(backend, options),
            tokenizer,
            bundle,
        })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The scheduler that a request runs with: the checkpoint's own, or the one that the request names.
    pub fn scheduler_class(&self, request: &Request) -> Result<SchedulerClass, SchedulerError> {
        Ok(self.scheduler(request)?.class())
    }

    fn scheduler(&self, request: &Request) -> Result<SchedulerConfig, SchedulerError> {
        match &request.scheduler {
            Some(name) => self.scheduler.with_scheduler(name),
            None => Ok(self.scheduler.clone()),
        }
    }

    /// The backend that runs the engines.
    pub fn backend(&self) -> &dyn Backend {
        self.engines.backend()
    }

    /// Height and width in pixels that a request leads to.
    pub fn size(&self, request: &Request) -> [u32; 2] {
        let info = &self.bundle.manifest().pipeline;
        [request.height.unwrap_or(info.height), request.width.unwrap_or(info.width)]
    }

    /// Generates the pictures of a request; `progress` hears of every step and can cancel between steps.
    pub fn generate(&mut self, request: &Request, progress: &mut Progress<'_>) -> Result<Output, Error> {
        let [height, width] = self.size(request);
        let info = self.bundle.manifest().pipeline.clone();
        request.check(height, width, info.vae_scale_factor)?;
        let options = SamplerOptions { eta: request.eta, ..SamplerOptions::default() };
        let mut sampler = self.scheduler(request)?.sampler(request.steps, &options)?;
        sampler.start_at(0)?;
        let timesteps = sampler.timesteps().to_vec();
        let mut run = Run { step: 0, steps: timesteps.len(), progress };

        let start = Instant::now();
        let states = self.encode_prompts(request, &mut run)?;
        let mut generator = Generator::new(request.generator, request.seed);
        let shape = [
            request.prompts.len(),
            info.latent_channels as usize,
            (height / info.vae_scale_factor) as usize,
            (width / info.vae_scale_factor) as usize,
        ];
        let mut latents = generator.randn(&shape) * sampler.init_noise_sigma();
        let unet = self.load(Role::Unet, &mut run)?;
        run.tell(Event::Started { steps: timesteps.len() })?;
        let started = start.elapsed();

        let unet = self.engines.engine(&self.bundle, unet)?;
        for (i, &timestep) in timesteps.iter().enumerate() {
            let input = sampler.scale_model_input(i, &latents);
            let prediction = predict(unet, request, &input, timestep, &states)?;
            sampler.step(i, &prediction, &mut latents, &mut |shape| generator.randn(shape))?;
            run.step += 1;
            if !latents.iter().all(|x| x.is_finite()) {
                return Err(Error::NotFinite { step: run.step });
            }
            run.tell(Event::Step { step: run.step, steps: run.steps, timestep })?;
        }
        let stepped = start.elapsed();
        let images = self.decode(&latents, &mut run)?;
        let timings = Timings { start: started, steps: stepped - started, decode: start.elapsed() - stepped };
        Ok(Output { images, latents, timings })
    }

    fn load(&mut self, role: Role, run: &mut Run<'_, '_>) -> Result<Role, Error> {
        if !self.engines.is_loaded(role) {
            run.tell(Event::Loading(role))?;
            self.engines.engine(&self.bundle, role)?;
        }
        Ok(role)
    }

    /// Hidden states `[B, 77, width]` of the prompts, behind those of the negative prompts where guidance is on.
    fn encode_prompts(&mut self, request: &Request, run: &mut Run<'_, '_>) -> Result<ArrayD<f32>, Error> {
        let n = request.prompts.len();
        let negative = (0..n).filter(|_| request.is_guided()).map(|i| request.negative_prompt(i));
        let texts: Vec<&str> = negative.chain(request.prompts.iter().map(String::as_str)).collect();
        let mut ids = Vec::new();
        let mut n_truncated = 0;
        for text in &texts {
            let mut encoding = self.tokenizer.encode(text)?;
            ids.append(&mut encoding.ids);
            n_truncated = n_truncated.max(encoding.n_truncated);
        }
        if n_truncated > 0 {
            run.tell(Event::Truncated(n_truncated))?;
        }
        let positions = ids.len() / texts.len();
        let ids = ndarray::ArrayView2::from_shape((texts.len(), positions), &ids)
            .map_err(|e| Error::Component { component: Role::TextEncoder, reason: e.to_string() })?;
        let role = self.load(Role::TextEncoder, run)?;
        let engine = self.engines.engine(&self.bundle, role)?;
        let outputs = engine.run(&[("input_ids", TensorView::I64(ids.into_dyn()))])?;
        only_output(Role::TextEncoder, outputs)
    }

    /// Decodes one latent at a time, or as many as the engine was built for.
    fn decode(&mut self, latents: &ArrayD<f32>, run: &mut Run<'_, '_>) -> Result<Vec<RgbImage>, Error> {
        let info = self.bundle.manifest().pipeline.clone();
        let total = latents.shape()[0];
        let role = self.load(Role::VaeDecoder, run)?;
        let latents = latents.mapv(|x| x / info.scaling_factor as f32);
        let engine = self.engines.engine(&self.bundle, role)?;
        let at_once =
            engine.inputs().first().and_then(|port| port.shape.first().copied().flatten()).unwrap_or(1);
        let mut images = Vec::new();
        for part in latents.axis_chunks_iter(Axis(0), at_once.max(1)) {
            run.tell(Event::Decoding { done: images.len(), total })?;
            let outputs = engine.run(&[("latents", TensorView::F32(part))])?;
            images.extend(RgbImage::from_decoded(only_output(role, outputs)?.view())?);
        }
        run.tell(Event::Decoding { done: total, total })?;
        Ok(images)
    }
}

/// The guided prediction, `[B, C, H, W]`.
fn predict(
    unet: &mut dyn Engine,
    request: &Request,
    latents: &ArrayD<f32>,
    timestep: f32,
    states: &ArrayD<f32>,
) -> Result<ArrayD<f32>, Error> {
    let guided = request.is_guided();
    let doubled;
    let sample = match guided {
        true => {
            doubled = concatenate(Axis(0), &[latents.view(), latents.view()])
                .map_err(|e| Error::Component { component: Role::Unet, reason: e.to_string() })?;
            doubled.view()
        }
        false => latents.view(),
    };
    let timestep = arr1(&[timestep]).into_dyn();
    let outputs = unet.run(&[
        ("sample", TensorView::F32(sample)),
        ("timestep", TensorView::F32(timestep.view())),
        ("encoder_hidden_states", TensorView::F32(states.view())),
    ])?;
    let prediction = only_output(Role::Unet, outputs)?;
    if !guided {
        return Ok(prediction);
    }
    let half = request.prompts.len();
    let unconditional = prediction.slice_axis(Axis(0), Slice::from(..half));
    let conditional = prediction.slice_axis(Axis(0), Slice::from(half..));
    let scale = request.guidance_scale;
    Ok(Zip::from(unconditional).and(conditional).map_collect(|u, c| u + scale * (c - u)))
}

fn only_output(component: Role, outputs: Vec<HostTensor>) -> Result<ArrayD<f32>, Error> {
    let output = outputs.into_iter().next().and_then(HostTensor::into_f32);
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
