//! The denoising loop.

#[cfg(feature = "cuda")]
mod device;

use std::borrow::Cow;

use kiln_engine::{Tensor, TensorView};
use ndarray::{ArrayD, Axis, Slice, Zip, arr1};

use super::controlnet::ActiveControlNets;
use super::decode::decode;
use super::facts::Facts;
use super::noise::Noise;
use super::progress::Progress;
use super::state::{Inpainting, Start, joined};
use crate::architecture::Denoiser;
use crate::residency::Chain;
use crate::scheduler::{Sampler, SchedulerError};
use crate::watch::Event;
use crate::{Error, Guidance};

/// A pass through the loop: all that stays the same from step to step.
pub(super) struct DenoisingLoop<'a, 'w> {
    pub(super) facts: &'a Facts,
    pub(super) denoiser: &'a dyn Denoiser,
    pub(super) chain: Chain<'a>,
    pub(super) controlnets: Option<ActiveControlNets<'a>>,
    pub(super) guidance: Guidance,
    /// Inputs of the denoiser besides latents and timestep, by name.
    pub(super) conditions: &'a [(String, ArrayD<f32>)],
    pub(super) eta_noise: &'a mut Noise,
    pub(super) progress: &'a mut Progress<'w>,
}

impl DenoisingLoop<'_, '_> {
    /// Takes the latents `[B, C, H, W]` through all calls of the sampler from where the start says.
    pub(super) fn run(mut self, sampler: &mut Sampler, start: Start) -> Result<ArrayD<f32>, Error> {
        let Start { mut latents, begin, inpainting } = start;
        let timesteps = sampler.timesteps().to_vec();
        let n = timesteps.len() - begin;
        #[cfg(feature = "cuda")]
        if let Some(device) = self.chain.device().filter(|_| self.stays_on_device(inpainting.as_ref()))
            && let Some(linear) = sampler.linear_run(begin)?
        {
            return self.run_on_device(&device, &linear, &timesteps[begin..], &latents);
        }
        sampler.start_at(begin)?;
        for (i, &timestep) in timesteps.iter().enumerate().skip(begin) {
            if i + 1 == timesteps.len() {
                self.chain.prefetch_next(self.facts.image_decoder)?;
            }
            let input = sampler.scale_model_input(i, &latents).into_owned();
            let share = [(i - begin) as f64 / n as f64, (i - begin + 1) as f64 / n as f64];
            let prediction = self.predict(&input, timestep, share, inpainting.as_ref())?;
            let (step, steps) = (self.progress.step + 1, self.progress.steps);
            let estimate = match self.progress.watch.wants_preview(step, steps) {
                true => Some(sampler.estimate(i, &prediction, &latents)),
                false => None,
            };
            let noise = &mut *self.eta_noise;
            sampler.step(i, &prediction, &mut latents, &mut |shape| noise.randn(shape))?;
            if let Some(inpainting) = &inpainting {
                inpainting.restore(&mut latents, |kept, noise| match i + 1 < timesteps.len() {
                    true => sampler.add_noise(i + 1, kept, noise),
                    false => Ok(kept.clone()),
                })?;
            }
            self.progress.step = step;
            if !latents.iter().all(|x| x.is_finite()) {
                return Err(Error::NotFinite { step });
            }
            self.progress.tell(Event::Step { step, steps, timestep })?;
            if let Some(estimate) = estimate {
                self.preview(estimate.as_ref().unwrap_or(&latents))?;
            }
        }
        Ok(latents)
    }

    /// Whether the loop can be left to a device: nothing has to be looked at between two steps.
    #[cfg(feature = "cuda")]
    fn stays_on_device(&self, inpainting: Option<&Inpainting>) -> bool {
        let is_plain = self.controlnets.is_none() && inpainting.is_none() && self.denoiser.packing().is_none();
        is_plain && !self.progress.watch.wants_previews()
    }

    /// Tells what the pictures look like so far, unless an estimate has none yet.
    fn preview(&mut self, latents: &ArrayD<f32>) -> Result<(), Error> {
        let tiling = self.chain.memory().vae_tiling;
        let mut decoder = self.chain.other(self.facts.image_decoder)?;
        let images = decode(&mut decoder, self.facts, tiling, latents, None);
        self.chain.release_others();
        match images {
            Ok(images) => self.progress.tell(Event::Preview { step: self.progress.step, images }),
            Err(Error::Overflow { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The guided prediction `[B, C, H, W]`; `share` is the part of the steps between which the step lies.
    fn predict(
        &mut self,
        input: &ArrayD<f32>,
        timestep: f32,
        share: [f64; 2],
        inpainting: Option<&Inpainting>,
    ) -> Result<ArrayD<f32>, Error> {
        let is_guided = self.guidance.is_guided();
        let doubled = |array: &ArrayD<f32>| match is_guided {
            true => joined(Axis(0), &[array, array]),
            false => Ok(array.clone()),
        };
        let sample = doubled(input)?;
        let timestep = arr1(&[self.denoiser.timestep(timestep)]).into_dyn();
        let residuals = match &mut self.controlnets {
            Some(controlnets) => controlnets.residuals(&sample, &timestep, self.conditions, share)?,
            None => Vec::new(),
        };
        let sample = match inpainting.and_then(|inpainting| inpainting.channels.as_ref()) {
            Some(channels) => joined(Axis(1), &[&sample, &doubled(channels)?])?,
            None => sample,
        };
        let packing = self.denoiser.packing();
        let packed = match packing {
            Some(packing) => packing.pack(&sample)?,
            None => Cow::Borrowed(&sample),
        };
        let mut inputs = vec![
            (self.denoiser.latents_input(), TensorView::F32(packed.view())),
            (self.denoiser.timestep_input(), TensorView::F32(timestep.view())),
        ];
        inputs
            .extend(self.conditions.iter().map(|(name, value)| (name.as_str(), TensorView::F32(value.view()))));
        inputs.extend(residuals.iter().map(|(name, value)| (name.as_str(), value.view())));
        let made = self.chain.run(&inputs)?.into_iter().next().and_then(Tensor::into_f32);
        let made = made.ok_or_else(|| self.chain.no_output())?;
        let prediction = match packing {
            Some(packing) => packing.unpack(made, sample.shape())?,
            None => made,
        };
        Ok(if is_guided { self.guidance.combine(&prediction) } else { prediction })
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
