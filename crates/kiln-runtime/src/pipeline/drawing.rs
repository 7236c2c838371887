//! A request on its way from texts to latents.

use std::time::{Duration, Instant};

use kiln_bundle::ComponentName;
use ndarray::{ArrayD, Axis, Slice, Zip};

use super::controlnet::ActiveControl;
use super::noise::Noise;
use super::state::{Inpainting, Start};
use crate::residency::Deep;
use crate::scheduler::{Sampler, SchedulerError};
use crate::{Approximations, Error, Guidance, Upscaler};
use kiln_types::Size;

/// A request that has begun, and how far it is; [`Session`](crate::Session) takes it further.
pub struct Drawing {
    /// The denoiser that runs for it.
    pub(super) component: ComponentName,
    pub(super) guidance: Guidance,
    pub(super) approximations: Approximations,
    pub(super) noise: Noise,
    pub(super) pass: Pass,
    /// The pass at a larger size that comes next.
    pub(super) next: Option<NextPass>,
    progress: Evaluations,
    estimates: Estimates,
    begun: Instant,
    pub(super) started: Duration,
}

/// Evaluations of the denoiser, in all passes.
#[derive(Clone, Copy, Debug)]
struct Evaluations {
    done: usize,
    all: usize,
}

/// The clean latents that the last prediction stands for, where somebody wants to see them.
#[derive(Debug, Default)]
struct Estimates {
    are_wanted: bool,
    last: Option<ArrayD<f32>>,
}

/// What an evaluation does with the denoiser's deep layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// They run.
    Plain,
    /// They run, and leave what they made.
    Recorded,
    /// What they made last takes their place.
    Replayed,
}

/// A pass through the denoising loop.
pub(super) struct Pass {
    pub(super) sampler: Sampler,
    /// The first call of the pass, and the one that is due.
    pub(super) begin: usize,
    pub(super) call: usize,
    /// `[B, C, H, W]`.
    pub(super) latents: ArrayD<f32>,
    pub(super) inpainting: Option<Inpainting>,
    pub(super) inputs: PassInputs,
    /// What the last full evaluation left for those after it.
    pub(super) kept: Option<Kept>,
}

/// What deep layers made, and which ControlNets acted on them.
pub(super) struct Kept {
    pub(super) deep: Deep,
    pub(super) acting: Vec<bool>,
}

/// What the denoiser reads besides latents and timestep.
pub(super) struct PassInputs {
    /// By name, `[rows, ..]`.
    pub(super) conditions: Vec<(String, ArrayD<f32>)>,
    pub(super) controls: Vec<ActiveControl>,
}

/// A second pass, before its latents are known.
pub(super) struct NextPass {
    pub(super) size: Size,
    pub(super) sampler: Sampler,
    pub(super) begin: usize,
    pub(super) inputs: PassInputs,
    pub(super) upscaler: Upscaler,
}

impl Pass {
    pub(super) fn new(mut sampler: Sampler, start: Start, inputs: PassInputs) -> Result<Pass, Error> {
        let Start { latents, begin, inpainting } = start;
        sampler.start_at(begin)?;
        Ok(Pass { sampler, begin, call: begin, latents, inpainting, inputs, kept: None })
    }

    /// The timestep of the call that is due.
    pub(super) fn timestep(&self) -> f32 {
        self.sampler.timesteps()[self.call]
    }

    /// Whether the call that is due is the last.
    pub(super) fn is_at_last_call(&self) -> bool {
        self.call + 1 == self.sampler.timesteps().len()
    }

    fn is_done(&self) -> bool {
        self.call == self.sampler.timesteps().len()
    }

    /// Which ControlNets act in the call that is due.
    pub(super) fn acting(&self) -> Vec<bool> {
        self.inputs.controls.iter().map(|control| control.acts(self.share())).collect()
    }

    /// The shares of the pass between which the call that is due lies.
    pub(super) fn share(&self) -> [f64; 2] {
        let n = (self.sampler.timesteps().len() - self.begin) as f64;
        let i = (self.call - self.begin) as f64;
        [i / n, (i + 1.0) / n]
    }
}

impl Drawing {
    pub(super) fn new(
        component: ComponentName,
        (guidance, approximations): (Guidance, Approximations),
        noise: Noise,
        pass: Pass,
        next: Option<NextPass>,
        begun: Instant,
    ) -> Drawing {
        let calls = |sampler: &Sampler, begin: usize| sampler.timesteps().len() - begin;
        let second = next.as_ref().map_or(0, |next| calls(&next.sampler, next.begin));
        let all = calls(&pass.sampler, pass.begin) + second;
        Drawing {
            component,
            guidance,
            approximations,
            noise,
            pass,
            next,
            progress: Evaluations { done: 0, all },
            estimates: Estimates::default(),
            begun,
            started: begun.elapsed(),
        }
    }

    /// Whether the evaluation that is due is guided.
    pub(super) fn is_guided(&self) -> bool {
        self.guidance.is_guided() && self.approximations.guides(self.pass.share())
    }

    /// What the evaluation that is due does with the denoiser's deep layers.
    pub(super) fn depth(&self) -> Depth {
        let (pass, every) = (&self.pass, self.approximations.deep_every);
        let n_rows = self.pass.latents.shape()[0] * if self.is_guided() { 2 } else { 1 };
        let fits = |kept: &Kept| kept.deep.n_rows() == n_rows && kept.acting == pass.acting();
        let is_kept = pass.kept.as_ref().is_some_and(fits);
        match (pass.call - pass.begin).is_multiple_of(every) {
            _ if every == 1 => Depth::Plain,
            false if is_kept => Depth::Replayed,
            _ => Depth::Recorded,
        }
    }

    /// Evaluations of the denoiser that are done.
    pub fn step(&self) -> usize {
        self.progress.done
    }

    /// Evaluations of the denoiser in all; for samplers of second order, nearly twice the steps.
    pub fn steps(&self) -> usize {
        self.progress.all
    }

    /// The timestep that the next evaluation leaves; none where nothing is left to evaluate, or a second pass begins.
    pub fn timestep(&self) -> Option<f32> {
        (!self.pass.is_done()).then(|| self.pass.timestep())
    }

    /// Whether nothing but decoding is left.
    pub fn is_denoised(&self) -> bool {
        self.pass.is_done() && self.next.is_none()
    }

    /// Number of pictures.
    pub fn n_pictures(&self) -> usize {
        self.pass.latents.shape()[0]
    }

    /// Rows of the denoiser's batch that it takes.
    pub fn n_rows(&self) -> usize {
        self.guidance.rows(self.n_pictures())
    }

    /// The latents `[B, C, H, W]`.
    pub fn latents(&self) -> &ArrayD<f32> {
        &self.pass.latents
    }

    /// Keeps the clean latents that each prediction stands for from now on, or no longer.
    pub fn keep_estimates(&mut self, keep: bool) {
        self.estimates = Estimates { are_wanted: keep, last: None };
    }

    /// The clean latents `[B, C, H, W]` that the last prediction stands for; the latents where a sampler does not tell.
    /// None before the first step, and unless they are kept.
    pub fn estimate(&self) -> Option<&ArrayD<f32>> {
        self.estimates.last.as_ref()
    }

    /// Time since it began.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Counts steps that were taken elsewhere.
    #[cfg(feature = "cuda")]
    pub(super) fn arrive(&mut self, latents: ArrayD<f32>, done: usize) {
        self.pass.call = self.pass.sampler.timesteps().len();
        self.pass.latents = latents;
        self.progress.done = done;
    }

    /// The second pass, where it is due.
    pub(super) fn take_next(&mut self) -> Option<NextPass> {
        match self.pass.is_done() {
            true => self.next.take(),
            false => None,
        }
    }

    /// Takes the latents over a call whose guided prediction is `[B, C, H, W]`.
    pub(super) fn take(&mut self, prediction: &ArrayD<f32>) -> Result<(), Error> {
        let Pass { sampler, call, latents, inpainting, kept, .. } = &mut self.pass;
        if self.estimates.are_wanted {
            self.estimates.last = sampler.estimate(*call, prediction, latents);
        }
        let noise = &mut self.noise;
        sampler.step(*call, prediction, latents, &mut |shape| noise.randn(shape))?;
        let n_calls = sampler.timesteps().len();
        if let Some(inpainting) = inpainting {
            inpainting.restore(latents, |initial, noise| match *call + 1 < n_calls {
                true => sampler.add_noise(*call + 1, initial, noise),
                false => Ok(initial.clone()),
            })?;
        }
        *call += 1;
        if *call == n_calls {
            *kept = None;
        }
        self.progress.done += 1;
        if !latents.iter().all(|x| x.is_finite()) {
            return Err(Error::NotFinite { step: self.progress.done });
        }
        if self.estimates.are_wanted && self.estimates.last.is_none() {
            self.estimates.last = Some(latents.clone());
        }
        Ok(())
    }
}

impl Inpainting {
    /// Puts the kept part of the picture back, with as much noise as the next step expects.
    fn restore(
        &self,
        latents: &mut ArrayD<f32>,
        noised: impl FnOnce(&ArrayD<f32>, &ArrayD<f32>) -> Result<ArrayD<f32>, SchedulerError>,
    ) -> Result<(), Error> {
        let Some(blend) = &self.blend else { return Ok(()) };
        let kept = noised(&blend.kept, &blend.noise)?;
        let channels = latents.shape()[1];
        for c in 0..channels {
            let slice = Slice::from(c..=c);
            Zip::from(latents.slice_axis_mut(Axis(1), slice))
                .and(kept.slice_axis(Axis(1), slice))
                .and(&self.mask)
                .for_each(|latent, &kept, &mask| *latent = (1.0 - mask) * kept + mask * *latent);
        }
        Ok(())
    }
}
