//! What a request leaves open, as diffusers' pipeline of the task fills it in.

use kiln_bundle::stable_diffusion::{LATENT_CONSISTENCY, STABLE_DIFFUSION_XL};
use ndarray::ArrayD;

use super::guidance::Guidance;
use super::{Pass, Pipeline};
use crate::request::refuse;
use crate::scheduler::{Sampler, SamplerOptions, SchedulerConfig};
use crate::{Error, Request};

/// Generation of the model, as far as defaults go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    StableDiffusion,
    Xl,
    LatentConsistency,
}

impl Pipeline {
    fn family(&self) -> Result<Family, Error> {
        Ok(match self.bundle.pipeline()?.architecture.as_str() {
            STABLE_DIFFUSION_XL => Family::Xl,
            LATENT_CONSISTENCY => Family::LatentConsistency,
            _ => Family::StableDiffusion,
        })
    }

    /// Height and width in pixels of the pictures that a request leads to, after a second pass where it has one.
    pub fn picture_size(&self, request: &Request) -> Result<[u32; 2], Error> {
        let size = self.size(request)?;
        request.hires.as_ref().map_or(Ok(size), |hires| self.hires_size(size, hires))
    }

    /// Height and width in pixels of the only or first pass that a request leads to.
    pub fn size(&self, request: &Request) -> Result<[u32; 2], Error> {
        let info = self.bundle.pipeline()?;
        let masked = request.init.as_ref().is_some_and(|init| init.mask.is_some());
        let picture = match (&request.init, request.controls.first()) {
            (Some(init), control) if !masked || control.is_some() => Some(&init.image),
            (None, Some(control)) => Some(&control.image),
            _ => None,
        };
        let [height, width] = match picture {
            Some(picture) => picture.size().map(|side| side - side % info.latents.scale_factor),
            None => [info.size.height, info.size.width],
        };
        Ok([request.height.unwrap_or(height), request.width.unwrap_or(width)])
    }

    /// Denoising steps that a request leads to.
    pub fn steps(&self, request: &Request) -> Result<usize, Error> {
        Ok(match (request.steps, self.family()?) {
            (Some(steps), _) => steps,
            (None, Family::LatentConsistency) => 4,
            (None, _) => 50,
        })
    }

    /// Guidance scale that a request leads to.
    pub fn guidance_scale(&self, request: &Request) -> Result<f32, Error> {
        let masked = request.init.as_ref().is_some_and(|init| init.mask.is_some());
        Ok(match (request.guidance_scale, self.family()?) {
            (Some(scale), _) => scale,
            (None, Family::StableDiffusion) => 7.5,
            (None, Family::Xl) if masked && request.controls.is_empty() => 7.5,
            (None, Family::Xl) => 5.0,
            (None, Family::LatentConsistency) => 8.5,
        })
    }

    pub(super) fn guidance(&self, request: &Request) -> Result<Guidance, Error> {
        Ok(Guidance {
            scale: self.guidance_scale(request)?,
            rescale: request.guidance_rescale,
            embedding: self.settings.guidance_embedding,
        })
    }

    /// How much of the initial picture a request leads to changing, where it has one.
    pub fn strength(&self, request: &Request) -> Result<Option<f64>, Error> {
        let Some(init) = &request.init else { return Ok(None) };
        if init.strength.is_some() {
            return Ok(init.strength);
        }
        Ok(Some(match (self.family()?, init.mask.is_some()) {
            (Family::Xl, false) if request.controls.is_empty() => 0.3,
            (Family::Xl, true) => 0.9999,
            (_, false) => 0.8,
            (_, true) => 1.0,
        }))
    }

    /// Factors on the ControlNets' residuals that a request leads to.
    pub fn control_scales(&self, request: &Request) -> Result<Vec<f32>, Error> {
        let default = self.default_control_scale(request)?;
        Ok(request.controls.iter().map(|control| control.scale.unwrap_or(default)).collect())
    }

    fn default_control_scale(&self, request: &Request) -> Result<f32, Error> {
        let masked = request.init.as_ref().map(|init| init.mask.is_some());
        Ok(match (masked, self.family()?) {
            (None, _) | (Some(true), Family::Xl) => 1.0,
            (Some(false), _) => 0.8,
            (Some(true), _) => 0.5,
        })
    }

    /// The scheduler of a request: the one that it names, or the checkpoint's own, corrected as diffusers' pipeline of the
    /// task corrects it.
    pub fn scheduler(&self, request: &Request) -> Result<SchedulerConfig, Error> {
        let masked = request.init.as_ref().is_some_and(|init| init.mask.is_some());
        let config = match (self.family()?, masked) {
            (Family::StableDiffusion, _) if !request.controls.is_empty() => self.scheduler.clone(),
            (Family::StableDiffusion, false) => self.scheduler.for_stable_diffusion(),
            (Family::StableDiffusion, true) => self.scheduler.for_inpainting(),
            _ => self.scheduler.clone(),
        };
        Ok(match &request.scheduler {
            Some(name) => config.with_scheduler(name)?,
            None => config,
        })
    }

    /// The sampler of a request and its first call of the UNet, where a strength that goes by a name skips some.
    pub(super) fn sampler(
        &self,
        request: &Request,
        steps: usize,
        strength: Option<(&'static str, f64)>,
    ) -> Result<(Sampler, usize), Error> {
        let config = self.scheduler(request)?;
        let mut options = SamplerOptions { eta: request.eta, ..SamplerOptions::default() };
        let Some((key, strength)) = strength else { return Ok((config.sampler(steps, &options)?, 0)) };
        if self.family()? == Family::LatentConsistency {
            options.strength = strength;
            return Ok((config.sampler(steps, &options)?, 0));
        }
        let sampler = config.sampler(steps, &options)?;
        let begin = sampler.img2img_start(strength);
        match begin < sampler.timesteps().len() {
            true => Ok((sampler, begin)),
            false => refuse(key, format!("{strength} leaves none of {steps} steps")),
        }
    }

    /// Inputs of UNet and ControlNets that stay the same from step to step, for a batch of `rows`.
    pub(super) fn conditions(
        &self,
        pass: &Pass<'_>,
        rows: usize,
    ) -> Result<Vec<(&'static str, ArrayD<f32>)>, Error> {
        let mut conditions = vec![("encoder_hidden_states", pass.conditioning.states.clone())];
        if let Some(embedded) = pass.guidance.embedded(rows) {
            conditions.push(("timestep_cond", embedded));
        }
        let n_time_ids = self.settings.time_ids;
        if let (Some(n), Some(pooled)) = (n_time_ids, &pass.conditioning.pooled) {
            conditions.push(("text_embeds", pooled.clone()));
            conditions.push(("time_ids", time_ids(pass, n as usize, rows)));
        }
        Ok(conditions)
    }
}

/// SDXL's `add_time_ids` `[rows, n]`: original size and crop, then target size or, where there are five, aesthetic score.
fn time_ids(pass: &Pass<'_>, n: usize, rows: usize) -> ArrayD<f32> {
    let micro = &pass.request.micro_conditioning;
    let original = micro.original_size.unwrap_or(pass.size);
    let target = micro.target_size.unwrap_or(pass.size);
    let n_negative = if pass.guidance.is_guided() { rows / 2 } else { 0 };
    // The refiner's pipelines crop the picture alone, all others the negative prompt's too.
    let uncropped = if n == 5 && pass.request.controls.is_empty() { n_negative } else { 0 };
    ArrayD::from_shape_fn(vec![rows, n], |index| match index[1] {
        i @ (0 | 1) => original[i] as f32,
        2 | 3 if index[0] < uncropped => 0.0,
        i @ (2 | 3) => micro.crop[i - 2] as f32,
        4 if n == 5 && index[0] < n_negative => micro.negative_aesthetic_score,
        4 if n == 5 => micro.aesthetic_score,
        i => target[i - 4] as f32,
    })
}
