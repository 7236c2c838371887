use ndarray::{ArrayD, Zip};

use super::alphas::Alphas;
use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::timesteps::{among, distilled_steps};
use super::{PredictionType, SamplerOptions, SchedulerConfig, SchedulerError, Thresholding};

/// `sigma_data` of the boundary condition.
const SIGMA_DATA: f32 = 0.5;

/// Latent consistency models (Luo et al. 2023; diffusers `schedulers/scheduling_lcm.py`).
struct Lcm {
    alphas: Alphas,
    timesteps: Vec<i64>,
    prediction: PredictionType,
    thresholding: Thresholding,
    timestep_scaling: f32,
}

pub(super) fn plan(
    config: &SchedulerConfig,
    n_steps: usize,
    options: &SamplerOptions,
) -> Result<Planned, SchedulerError> {
    let timesteps = timesteps(config, n_steps, options)?;
    let schedule = Schedule::plain(timesteps.iter().map(|&t| t as f64));
    let lcm = Lcm {
        alphas: Alphas::new(config),
        timesteps,
        prediction: config.prediction_type,
        thresholding: config.thresholding,
        timestep_scaling: config.timestep_scaling as f32,
    };
    Ok((schedule, Box::new(lcm)))
}

/// Evenly chosen among the steps of distillation, from the noisiest that `strength` leaves.
fn timesteps(
    config: &SchedulerConfig,
    n_steps: usize,
    options: &SamplerOptions,
) -> Result<Vec<i64>, SchedulerError> {
    let original = distilled_steps(config, n_steps, options)?;
    let n = (original as f64 * options.strength) as usize;
    among(n, config.num_train_timesteps / original, n_steps, n)
}

impl Method for Lcm {
    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let level = self.alphas.level(self.timesteps[call])?;
        let mut original = combine(output, latents, |o, l| self.prediction.original(level, o, l));
        self.thresholding.apply(&mut original);

        let scaled = self.timesteps[call] as f32 * self.timestep_scaling;
        let boundary = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / boundary, scaled / boundary.sqrt());
        latents.zip_mut_with(&original, |latent, original| *latent = out * original + skip * *latent);
        if let Some(&next) = self.timesteps.get(call + 1) {
            let (signal, spread) = self.alphas.level(next)?;
            let noise = noise(output.shape());
            Zip::from(latents).and(&noise).for_each(|latent, noise| {
                *latent = signal * *latent + spread * noise;
            });
        }
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        self.alphas.level(self.timesteps[call])
    }
}
