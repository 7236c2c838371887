use super::Generation;
use crate::Error;
use crate::architecture::{Defaults, PassSchedule, Sampling, SamplingRequest, Task};
use crate::companions::ModelScheduler;
use crate::error::refuse;
use crate::scheduler::{Correction, SamplerOptions};

/// Steps as diffusers' pipelines of Stable Diffusion take them.
#[derive(Debug)]
pub(super) struct StableDiffusionSampling {
    pub(super) generation: Generation,
    /// The checkpoint's own.
    pub(super) scheduler: ModelScheduler,
}

impl StableDiffusionSampling {
    /// How diffusers' pipeline of the task corrects the scheduler that it is made with.
    fn correction(&self, task: Task) -> Correction {
        match (self.generation, task) {
            (Generation::First, Task { controlled: false, masked: false, .. }) => Correction::StableDiffusion,
            (Generation::First, Task { controlled: false, masked: true, .. }) => Correction::Inpainting,
            _ => Correction::None,
        }
    }
}

impl Sampling for StableDiffusionSampling {
    fn defaults(&self, task: Task) -> Defaults {
        let Task { masked, controlled, .. } = task;
        let is_xl = self.generation == Generation::Xl;
        Defaults {
            steps: if self.generation == Generation::LatentConsistency { 4 } else { 50 },
            guidance_scale: match self.generation {
                Generation::First => 7.5,
                Generation::Xl if masked && !controlled => 7.5,
                Generation::Xl => 5.0,
                Generation::LatentConsistency => 8.5,
            },
            strength: match masked {
                true if is_xl => 0.9999,
                true => 1.0,
                false if is_xl && !controlled => 0.3,
                false => 0.8,
            },
            control_scale: match (task.from_picture, masked) {
                (false, _) => 1.0,
                (true, true) if is_xl => 1.0,
                (true, true) => 0.5,
                (true, false) => 0.8,
            },
        }
    }

    fn note(&self) -> Option<String> {
        self.scheduler.note()
    }

    fn schedule(&self, request: &SamplingRequest<'_>) -> Result<PassSchedule, Error> {
        let SamplingRequest { task, scheduler, steps, eta, strength } = *request;
        let config = self.scheduler.config(scheduler, self.correction(task))?;
        let mut options = SamplerOptions { eta, ..SamplerOptions::default() };
        let whole =
            |options: &SamplerOptions| Ok(PassSchedule { sampler: config.sampler(steps, options)?, begin: 0 });
        let Some((key, strength)) = strength else { return whole(&options) };
        if self.generation == Generation::LatentConsistency {
            options.strength = strength;
            return whole(&options);
        }
        let sampler = config.sampler(steps, &options)?;
        let begin = sampler.img2img_start(strength);
        match begin < sampler.timesteps().len() {
            true => Ok(PassSchedule { sampler, begin }),
            false => refuse(key, format!("{strength} leaves none of {steps} steps")),
        }
    }
}
