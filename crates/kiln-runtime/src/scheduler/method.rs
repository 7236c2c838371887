//! What every sampler is made of: a schedule and a method.

use ndarray::ArrayD;

use super::SchedulerError;

/// Draws standard normal numbers of a shape.
pub type Noise<'a> = dyn FnMut(&[usize]) -> ArrayD<f32> + 'a;

/// Options of a run, with the defaults of diffusers' pipelines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// DDIM and TCD: 0 for no noise, 1 for the most, as much as DDPM adds. Others ignore it.
    pub eta: f32,
    /// LCM and TCD: how many steps of distillation those of the run are chosen from; the configuration's number by
    /// default.
    pub original_inference_steps: Option<usize>,
    /// LCM and TCD: the part of the schedule that is run, from 0 to 1. For others, see
    /// [`Sampler::img2img_start`](super::Sampler::img2img_start).
    pub strength: f64,
}

impl SamplerOptions {
    /// `eta`, if it is a share.
    pub(super) fn checked_eta(&self) -> Result<f32, SchedulerError> {
        match (0.0..=1.0).contains(&self.eta) {
            true => Ok(self.eta),
            false => Err(SchedulerError::Option { key: "eta", value: self.eta.into(), range: "from 0 to 1" }),
        }
    }
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions { eta: 0.0, original_inference_steps: None, strength: 1.0 }
    }
}

/// What a run looks like from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// One per call of the model.
    pub timesteps: Vec<f32>,
    /// Standard deviation of the latents that a whole run starts from.
    pub init_noise_sigma: f32,
    /// Calls of the model per step.
    pub order: usize,
}

impl Schedule {
    /// One call per step, from noise of variance 1.
    pub fn plain(timesteps: impl IntoIterator<Item = f64>) -> Schedule {
        let timesteps = timesteps.into_iter().map(|t| t as f32).collect();
        Schedule { timesteps, init_noise_sigma: 1.0, order: 1 }
    }
}

/// A schedule and the method that follows it.
pub(super) type Planned = (Schedule, Box<dyn Method>);

/// The part of a sampler that differs from one to another.
pub trait Method: Send {
    /// Forgets all earlier calls.
    fn reset(&mut self) {}

    /// What the model's input is divided by.
    fn input_divisor(&self, _call: usize) -> Option<f32> {
        None
    }

    /// Whether the model's output may have more channels than the latents, which hold a variance.
    fn takes_variance(&self) -> bool {
        false
    }

    /// Replaces latents by those after the call; shapes are checked.
    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError>;

    /// Factors of signal and noise in the latents that a call starts from.
    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError>;
}
