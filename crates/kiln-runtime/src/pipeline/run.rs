//! One request, from texts to pictures.

use std::sync::Arc;
use std::time::Instant;

use kiln_bundle::{ComponentName, PortInfo};
use kiln_engine::TensorView;
use ndarray::ArrayD;

use super::controlnet::{ActiveControl, ControlNet};
use super::decode::decode;
use super::denoise::Evaluation;
use super::drawing::{Drawing, NextPass, Pass, PassInputs};
use super::facts::Facts;
use super::job::Job;
use super::noise::Noise;
use super::output::{Output, Timings};
use super::progress::Progress;
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

impl<'w> Run<'_, 'w> {
    pub(super) fn draw(&mut self, job: Job<'_>) -> Result<Output, Error> {
        let mut drawing = self.begin(job)?;
        while !drawing.is_denoised() {
            #[cfg(feature = "cuda")]
            if self.pass_on_device(&mut drawing)? {
                continue;
            }
            let (step, steps, timestep) = (drawing.step() + 1, drawing.steps(), drawing.pass.timestep());
            let wants_preview = self.progress.watch.wants_preview(step, steps);
            drawing.keep_estimates(wants_preview);
            self.step(&mut drawing)?;
            self.progress.step = step;
            self.progress.tell(Event::Step { step, steps, timestep })?;
            if let Some(estimate) = drawing.estimate() {
                self.preview(drawing.component, estimate)?;
            }
            self.pass_on(&mut drawing)?;
        }
        self.finish(&drawing)
    }

    /// Everything before the first step.
    pub(super) fn begin(&mut self, job: Job<'_>) -> Result<Drawing, Error> {
        let begun = Instant::now();
        let component = self.model.denoiser.component(job.task);
        if self.engines.all_stay() {
            // Its segments load on all cores, and threads of a backend that has just run spin on those.
            self.load(component)?;
        }
        let conditioning = self.encode(&job)?;
        let mut noise = Noise::new(job.request.generator, &job.request.seeds);
        let start = self.start(&job, &mut noise)?;
        self.progress.steps = job.n_evaluations();
        let inputs = self.inputs(&job, &job.first, &conditioning)?;
        let next = match &job.second {
            Some(second) => Some(self.inputs(&job, second, &conditioning)?),
            None => None,
        };
        let (guidance, hires) = (job.guidance, job.request.hires);
        let next = job.second.zip(next).map(|(pass, inputs)| NextPass {
            size: pass.size,
            begin: pass.schedule.begin,
            sampler: pass.schedule.sampler,
            inputs,
            upscaler: hires.map(|hires| hires.upscaler).unwrap_or_default(),
        });
        let pass = Pass::new(job.first.schedule.sampler, start, inputs)?;
        self.load(component)?;
        self.progress.tell(Event::Started { steps: self.progress.steps })?;
        let ways = (guidance, job.request.approximations);
        Ok(Drawing::new(component, ways, noise, pass, next, begun))
    }

    /// What the denoiser reads in a pass besides latents and timestep.
    fn inputs(
        &self,
        job: &Job<'_>,
        pass: &super::job::Pass,
        conditioning: &Conditioning,
    ) -> Result<PassInputs, Error> {
        let (request, size, guidance) = (job.request, pass.size, job.guidance);
        let rows = guidance.rows(job.batch());
        let info = PassInfo { request, size, guidance, rows };
        let controls = request.controls.iter().zip(&job.control_scales);
        let controls = controls.map(|(control, &scale)| ActiveControl::new(control, scale, size, job.batch()));
        Ok(PassInputs {
            conditions: self.model.denoiser.conditions(&info, conditioning),
            controls: controls.collect::<Result<_, Error>>()?,
        })
    }

    /// What evaluates the denoiser, and what is told of it.
    fn evaluation(&mut self, component: ComponentName) -> Result<(Evaluation<'_>, &mut Progress<'w>), Error> {
        let evaluation = Evaluation {
            facts: self.facts,
            denoiser: &*self.model.denoiser,
            chain: self.engines.chain(component)?,
            controlnets: self.controlnets,
        };
        Ok((evaluation, &mut self.progress))
    }

    /// Takes a drawing over the call that is due.
    fn step(&mut self, drawing: &mut Drawing) -> Result<(), Error> {
        let (mut evaluation, _) = self.evaluation(drawing.component)?;
        let predictions = evaluation.predict(&mut [drawing])?;
        predictions.iter().try_for_each(|prediction| drawing.take(prediction))
    }

    /// Takes each drawing over the call that is due, those of one kind together; one that fails does not stop the others.
    pub(super) fn advance(&mut self, drawings: &mut [&mut Drawing]) -> Vec<Result<(), Error>> {
        let mut results: Vec<Result<(), Error>> = drawings.iter().map(|_| Ok(())).collect();
        let mut left: Vec<usize> = (0..drawings.len()).filter(|&i| !drawings[i].is_denoised()).collect();
        while let Some(&first) = left.first() {
            let together = match self.of_one_kind(first, &left, drawings) {
                Ok(together) => together,
                Err(error) => {
                    results[first] = Err(error);
                    vec![first]
                }
            };
            left.retain(|i| !together.contains(i));
            if results[first].is_err() {
                continue;
            }
            let mut group: Vec<&mut Drawing> = Vec::new();
            for (i, drawing) in drawings.iter_mut().enumerate() {
                if together.contains(&i) {
                    group.push(drawing);
                }
            }
            for (i, result) in together.into_iter().zip(self.advance_together(&mut group)) {
                results[i] = result;
            }
        }
        results
    }

    /// Which of `left` can be evaluated with one of them.
    fn of_one_kind(
        &mut self,
        first: usize,
        left: &[usize],
        drawings: &[&mut Drawing],
    ) -> Result<Vec<usize>, Error> {
        let is_fixed = self.facts.fixed.is_some();
        let (evaluation, _) = self.evaluation(drawings[first].component)?;
        let kind = evaluation.kind(drawings[first]);
        let fits = |&&i: &&usize| i == first || !is_fixed && evaluation.kind(drawings[i]) == kind;
        Ok(left.iter().filter(fits).copied().collect())
    }

    /// One evaluation for drawings of one kind; where it fails, one for each.
    fn advance_together(&mut self, group: &mut [&mut Drawing]) -> Vec<Result<(), Error>> {
        let component = group[0].component;
        let predicted = self.evaluation(component).and_then(|(mut evaluation, _)| evaluation.predict(group));
        let results: Vec<Result<(), Error>> = match predicted {
            Ok(predictions) => {
                group.iter_mut().zip(predictions).map(|(drawing, made)| drawing.take(&made)).collect()
            }
            Err(error) if group.len() == 1 => vec![Err(error)],
            Err(_) => group.iter_mut().map(|drawing| self.step(drawing)).collect(),
        };
        let passed_on = group.iter_mut().zip(results);
        passed_on.map(|(drawing, result)| result.and_then(|()| self.pass_on(drawing))).collect()
    }

    /// Leaves a pass to the device, where it can be.
    #[cfg(feature = "cuda")]
    fn pass_on_device(&mut self, drawing: &mut Drawing) -> Result<bool, Error> {
        if self.progress.watch.wants_previews() {
            return Ok(false);
        }
        let (mut evaluation, progress) = self.evaluation(drawing.component)?;
        let Some((device, linear)) = evaluation.on_device(drawing)? else { return Ok(false) };
        evaluation.run_on_device(&device, &linear, drawing, progress)?;
        self.pass_on(drawing)?;
        Ok(true)
    }

    /// Starts the second pass where the first is done.
    fn pass_on(&mut self, drawing: &mut Drawing) -> Result<(), Error> {
        let Some(next) = drawing.take_next() else { return Ok(()) };
        let start = self.enlarge(&next, &drawing.pass.latents, &mut drawing.noise)?;
        drawing.pass = Pass::new(next.sampler, start, next.inputs)?;
        self.load(drawing.component)
    }

    /// Tells what the pictures look like so far, unless an estimate has none yet.
    fn preview(&mut self, component: ComponentName, latents: &ArrayD<f32>) -> Result<(), Error> {
        let tiling = self.engines.memory().vae_tiling;
        let mut chain = self.engines.chain(component)?;
        let mut decoder = chain.other(self.facts.image_decoder)?;
        let images = decode(&mut decoder, self.facts, tiling, latents, None);
        chain.release_others();
        match images {
            Ok(images) => self.progress.tell(Event::Preview { step: self.progress.step, images }),
            Err(Error::Overflow { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Decodes what a drawing came to.
    pub(super) fn finish(&mut self, drawing: &Drawing) -> Result<Output, Error> {
        let stepped = drawing.elapsed();
        let images = self.decode(drawing.latents())?;
        let start = drawing.started;
        let timings = Timings { start, steps: stepped - start, decode: drawing.elapsed() - stepped };
        Ok(Output { images, latents: drawing.latents().clone(), timings })
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
