use ndarray::ArrayD;

use super::method::{Method, Noise, Planned, Schedule};
use super::sigmas::{KSchedule, denoised, input_divisor};
use super::{PredictionType, SchedulerConfig, SchedulerError};

/// Euler's method (Karras et al. 2022, algorithm 2 without churn; diffusers `schedulers/scheduling_euler_discrete.py`) and
/// its ancestral variant (`schedulers/scheduling_euler_ancestral_discrete.py`).
struct Euler {
    /// One more than calls of the model.
    sigmas: Vec<f32>,
    prediction: PredictionType,
    is_ancestral: bool,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let k = KSchedule::new(config, n_steps)?;
    let last = if config.ends_at_sigma_min { k.table.first() } else { 0.0 };
    let is_continuous = config.continuous_timesteps && config.prediction_type == PredictionType::VPrediction;
    let timesteps = match is_continuous {
        true => k.sigmas.iter().take(n_steps).map(|sigma| 0.25 * sigma.ln()).collect(),
        false => k.timesteps.iter().map(|&t| t as f32).collect(),
    };
    Ok(with_schedule(config, k, timesteps, last, false))
}

pub(super) fn plan_ancestral(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let k = KSchedule::new(config, n_steps)?;
    let timesteps = k.timesteps.iter().map(|&t| t as f32).collect();
    Ok(with_schedule(config, k, timesteps, 0.0, true))
}

fn with_schedule(
    config: &SchedulerConfig,
    k: KSchedule,
    timesteps: Vec<f32>,
    last: f32,
    is_ancestral: bool,
) -> Planned {
    let init_noise_sigma = k.init_noise_sigma(config);
    let mut sigmas = k.sigmas;
    sigmas.push(last);
    let euler = Euler { sigmas, prediction: config.prediction_type, is_ancestral };
    (Schedule { timesteps, init_noise_sigma, order: 1 }, Box::new(euler))
}

impl Method for Euler {
    fn input_divisor(&self, call: usize) -> Option<f32> {
        Some(input_divisor(self.sigmas[call]))
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let (sigma, next) = (self.sigmas[call], self.sigmas[call + 1]);
        let (down, up) = match self.is_ancestral {
            true => ancestral(sigma, next),
            false => (next, 0.0),
        };
        latents.zip_mut_with(output, |latent, &output| {
            let slope = (*latent - denoised(self.prediction, sigma, output, *latent)) / sigma;
            *latent += slope * (down - sigma);
        });
        if self.is_ancestral {
            latents.zip_mut_with(&noise(output.shape()), |latent, &noise| *latent += noise * up);
        }
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        Ok((1.0, self.sigmas[call]))
    }
}

/// How far an ancestral step goes down, and how much noise takes it up to `next` again.
pub(super) fn ancestral(sigma: f32, next: f32) -> (f32, f32) {
    let (sigma, next) = (sigma * sigma, next * next);
    let up = (next * (sigma - next) / sigma).sqrt();
    ((next - up * up).sqrt(), up)
}
