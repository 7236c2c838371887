//! One request, from texts to pictures.

use std::sync::Arc;
use std::time::Instant;

use kiln_bundle::{ComponentName, PortInfo};
use kiln_engine::TensorView;
use ndarray::ArrayD;

use super::controlnet::{ActiveControlNets, ControlNet};
use super::decode::decode;
use super::denoise::DenoisingLoop;
use super::facts::Facts;
use super::job::Job;
use super::noise::Noise;
use super::output::{Output, Timings};
use super::progress::Progress;
use super::state::Start;
use crate::architecture::{Conditioning, Engines, Model, Outputs, PassInfo, Texts};
use crate::image::RgbImage;
use crate::residency::{EncodingKey, Residency};
use crate::watch::Event;
use crate::{Error, Offload};

/// What works on a request.
pub(super) struct Run<'a, 'w> {
    pub(super) facts: &'a Facts,
    pub(super) model: &'a Model,
    pub(super) engines: &'a mut Residency,
    pub(super) controlnets: &'a mut [ControlNet],
    /// Tells what learned words a pipeline has that others do not.
    pub(super) vocabulary: u64,
    pub(super) progress: Progress<'w>,
}

impl Run<'_, '_> {
    pub(super) fn draw(&mut self, job: &mut Job<'_>) -> Result<Output, Error> {
        let begun = Instant::now();
        let denoiser = self.model.denoiser.component(job.task);
        if self.engines.all_stay() {
            // Its segments load on all cores, and threads of a backend that has just run spin on those.
            self.load(denoiser)?;
        }
        let conditioning = self.encode(job)?;
        let mut noise = Noise::new(job.request.generator, &job.request.seeds);
        let start = self.start(job, &mut noise)?;
        self.progress.steps = job.n_evaluations();
        self.load(denoiser)?;
        self.progress.tell(Event::Started { steps: self.progress.steps })?;
        let started = begun.elapsed();

        let mut latents = self.denoise(job, Which::First, &conditioning, start, &mut noise)?;
        if job.second.is_some() {
            let start = self.enlarge(job, &latents, &mut noise)?;
            latents = self.denoise(job, Which::Second, &conditioning, start, &mut noise)?;
        }
        let stepped = begun.elapsed();
        let images = self.decode(&latents)?;
        let timings = Timings { start: started, steps: stepped - started, decode: begun.elapsed() - stepped };
        Ok(Output { images, latents, timings })
    }

    /// Encodes the texts, unless the pool remembers what they came to.
    fn encode(&mut self, job: &Job<'_>) -> Result<Arc<Conditioning>, Error> {
        for remark in self.model.conditioner.remarks(&job.texts) {
            self.progress.tell(Event::Misread(remark))?;
        }
        let key = self.encoding_key(&job.texts)?;
        let known = self.engines.pool().encodings().get(&key);
        let conditioning = match known {
            Some(known) => known,
            None => {
                let made = Arc::new(self.model.conditioner.encode(&job.texts, self)?);
                self.engines.pool().encodings().put(key, made.clone());
                made
            }
        };
        match conditioning.n_truncated {
            0 => {}
            n => self.progress.tell(Event::Truncated(n))?,
        }
        Ok(conditioning)
    }

    /// All that an encoding depends on: texts, learned words, the encoders, their tokenizers and the architecture's
    /// settings; of a bundle without text encoders, all its files.
    fn encoding_key(&self, texts: &Texts<'_>) -> Result<EncodingKey, Error> {
        let bundle = self.engines.bundle();
        let info = bundle.pipeline()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.vocabulary.to_le_bytes());
        hasher.update(format!("{:?}", (&info.architecture, &info.settings, &info.text_encoders)).as_bytes());
        for encoder in &info.text_encoders {
            hasher.update(self.engines.identity(encoder.component)?.as_bytes());
        }
        let tokenizers: Vec<_> = info.text_encoders.iter().map(|e| e.tokenizer.folder.as_deref()).collect();
        for (file, entry) in &bundle.manifest().files {
            let folder = file.rsplit_once('/').map(|(folder, _)| folder);
            if tokenizers.is_empty() || folder.is_some_and(|folder| tokenizers.contains(&Some(folder))) {
                hasher.update(entry.blake3.as_bytes());
            }
        }
        hasher.update(format!("{texts:?}").as_bytes());
        Ok(hasher.finalize().into())
    }

    fn denoise(
        &mut self,
        job: &mut Job<'_>,
        which: Which,
        conditioning: &Conditioning,
        start: Start,
        noise: &mut Noise,
    ) -> Result<ArrayD<f32>, Error> {
        let rows = job.guidance.rows(job.batch());
        let component = self.model.denoiser.component(job.task);
        let (request, guidance) = (job.request, job.guidance);
        let pass = match (which, &mut job.second) {
            (Which::Second, Some(second)) => second,
            _ => &mut job.first,
        };
        let size = pass.size;
        let conditions =
            self.model.denoiser.conditions(&PassInfo { request, size, guidance, rows }, conditioning);
        let controlnets = match request.controls.as_slice() {
            [] => None,
            controls => {
                let nets = self.controlnets.iter_mut();
                Some(ActiveControlNets::new(nets, controls, &job.control_scales, size, rows)?)
            }
        };
        DenoisingLoop {
            facts: self.facts,
            denoiser: &*self.model.denoiser,
            chain: self.engines.chain(component)?,
            controlnets,
            guidance,
            conditions: &conditions,
            eta_noise: noise,
            progress: &mut self.progress,
        }
        .run(&mut pass.schedule.sampler, start)
    }

    /// Decodes one latent at a time (diffusers' `enable_vae_slicing`), or as many as the engine was built for.
    pub(super) fn decode(&mut self, latents: &ArrayD<f32>) -> Result<Vec<RgbImage>, Error> {
        let name = self.facts.image_decoder;
        self.load(name)?;
        let tiling = self.engines.memory().vae_tiling;
        let mut chain = self.engines.chain(name)?;
        decode(&mut chain, self.facts, tiling, latents, Some(&mut self.progress))
    }

    /// Loads a component and, under offload, lets go of those that do not run together with it.
    pub(super) fn load(&mut self, name: ComponentName) -> Result<(), Error> {
        // What the component before it used is of other sizes.
        self.engines.trim_tensors();
        if self.engines.memory().offload != Offload::None {
            self.engines.release(|loaded| loaded == name);
            let is_in_loop = self.engines.component(name)?.stage.is_in_loop();
            if !is_in_loop {
                self.controlnets.iter_mut().for_each(|net| net.engines.release(|_| false));
            }
        }
        if !self.engines.is_loaded(name) {
            self.progress.tell(Event::Loading(name))?;
            self.engines.load(name)?;
        }
        Ok(())
    }
}

/// Which pass of a job.
#[derive(Clone, Copy)]
enum Which {
    First,
    Second,
}

impl Engines for Run<'_, '_> {
    fn inputs(&self, component: ComponentName) -> Result<&[PortInfo], Error> {
        Ok(&self.engines.component(component)?.inputs)
    }

    fn run(&mut self, component: ComponentName, inputs: &[(&str, TensorView<'_>)]) -> Result<Outputs, Error> {
        self.load(component)?;
        let mut chain = self.engines.chain(component)?;
        let outputs = chain.run(inputs)?;
        let names = chain.outputs().iter().map(|port| port.name.clone());
        Ok(Outputs::new(component, names.zip(outputs).collect()))
    }
}
