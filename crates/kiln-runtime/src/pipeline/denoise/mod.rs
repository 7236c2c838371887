//! The denoising loop.

#[cfg(feature = "cuda")]
mod device;

use kiln_bundle::stable_diffusion::{UNET, VAE_DECODER};
use kiln_engine::{Tensor, TensorView};
use ndarray::{ArrayD, Axis, Slice, Zip, arr1, concatenate};

use super::control::Steering;
use super::guidance::Guidance;
use super::noise::Noise;
use super::start::{Inpainting, Start};
use super::{Event, Run, only_output};
use crate::Error;
use crate::residency::Network;
use crate::scheduler::Sampler;

/// All that stays the same from step to step.
pub(super) struct Denoiser<'a> {
    pub(super) unet: Network<'a>,
    pub(super) steering: Option<Steering<'a>>,
    pub(super) guidance: Guidance,
    /// Inputs of the UNet besides latents and timestep, by name.
    pub(super) conditions: &'a [(&'static str, ArrayD<f32>)],
    pub(super) eta_noise: &'a mut Noise,
}

impl Denoiser<'_> {
    /// Takes the latents `[B, C, H, W]` through all steps of the sampler from where the start says.
    pub(super) fn run(
        &mut self,
        sampler: &mut Sampler,
        start: Start,
        run: &mut Run<'_, '_>,
    ) -> Result<ArrayD<f32>, Error> {
        let Start { mut latents, begin, inpainting } = start;
        let timesteps = sampler.timesteps().to_vec();
        let n = timesteps.len() - begin;
        #[cfg(feature = "cuda")]
        if let (Some(device), None, None) = (self.unet.device(), &self.steering, &inpainting)
            && let Some(linear) = sampler.linear_run(begin)?
        {
            return self.run_on_device(&device, &linear, &timesteps[begin..], &latents, run);
        }
        sampler.start_at(begin)?;
        for (i, &timestep) in timesteps.iter().enumerate().skip(begin) {
            if i + 1 == timesteps.len() {
                self.unet.prefetch_next(VAE_DECODER)?;
            }
            let input = sampler.scale_model_input(i, &latents).into_owned();
            let share = [(i - begin) as f64 / n as f64, (i - begin + 1) as f64 / n as f64];
            let prediction = self.predict(&input, timestep, share, inpainting.as_ref())?;
            let noise = &mut *self.eta_noise;
            sampler.step(i, &prediction, &mut latents, &mut |shape| noise.randn(shape))?;
            if let Some(inpainting) = &inpainting {
                inpainting.restore(&mut latents, |kept, noise| match i + 1 < timesteps.len() {
                    true => sampler.add_noise(i + 1, kept, noise),
                    false => Ok(kept.clone()),
                })?;
            }
            run.step += 1;
            if !latents.iter().all(|x| x.is_finite()) {
                return Err(Error::NotFinite { step: run.step });
            }
            run.tell(Event::Step { step: run.step, steps: run.steps, timestep })?;
        }
        Ok(latents)
    }

    /// The guided prediction `[B, C, H, W]`; `share` is the part of the steps between which the step lies.
    fn predict(
        &mut self,
        input: &ArrayD<f32>,
        timestep: f32,
        share: [f64; 2],
        inpainting: Option<&Inpainting>,
    ) -> Result<ArrayD<f32>, Error> {
        let join = |axis, parts: &[ndarray::ArrayViewD<'_, f32>]| {
            concatenate(Axis(axis), parts)
                .map_err(|e| Error::Component { component: UNET, reason: e.to_string() })
        };
        let guided = self.guidance.is_guided();
        let sample = if guided { join(0, &[input.view(), input.view()])? } else { input.clone() };
        let timestep = arr1(&[timestep]).into_dyn();
        let residuals = match &mut self.steering {
            Some(steering) => steering.residuals(&sample, &timestep, self.conditions, share)?,
            None => Vec::new(),
        };
        let sample = match inpainting.and_then(|inpainting| inpainting.channels.as_ref()) {
            Some(channels) if guided => {
                let doubled = join(0, &[channels.view(), channels.view()])?;
                join(1, &[sample.view(), doubled.view()])?
            }
            Some(channels) => join(1, &[sample.view(), channels.view()])?,
            None => sample,
        };
        let mut inputs =
            vec![("sample", TensorView::F32(sample.view())), ("timestep", TensorView::F32(timestep.view()))];
        inputs.extend(self.conditions.iter().map(|(name, value)| (*name, TensorView::F32(value.view()))));
        inputs.extend(residuals.iter().map(|(name, value)| (name.as_str(), value.view())));
        let prediction = only_output(UNET, self.unet.run(&inputs)?)?;
        Ok(if guided { self.guidance.combine(&prediction) } else { prediction })
    }
}

impl Inpainting {
    /// Puts the kept part of the picture back, with as much noise as the next step expects.
    fn restore(
        &self,
        latents: &mut ArrayD<f32>,
        noised: impl FnOnce(&ArrayD<f32>, &ArrayD<f32>) -> Result<ArrayD<f32>, crate::scheduler::SchedulerError>,
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

/// Outputs of an engine by name.
pub(super) type Named = Vec<(String, Tensor)>;
