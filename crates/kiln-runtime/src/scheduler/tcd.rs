use ndarray::{ArrayD, Zip};

use super::alphas::Alphas;
use super::method::{Method, Noise, Planned, Schedule};
use super::timesteps::{among, distilled_steps};
use super::{PredictionType, SamplerOptions, SchedulerConfig, SchedulerError};

/// Trajectory consistency distillation (Zheng et al. 2024; diffusers `schedulers/scheduling_tcd.py`); `eta` is the
/// paper's gamma.
struct Tcd {
    alphas: Alphas,
    timesteps: Vec<i64>,
    prediction: PredictionType,
    eta: f32,
}

pub(super) fn plan(
    config: &SchedulerConfig,
    n_steps: usize,
    options: &SamplerOptions,
) -> Result<Planned, SchedulerError> {
    let eta = options.checked_eta()?;
    let timesteps = timesteps(config, n_steps, options)?;
    let schedule = Schedule::plain(timesteps.iter().map(|&t| t as f64));
    let tcd = Tcd { alphas: Alphas::new(config), timesteps, prediction: config.prediction_type, eta };
    Ok((schedule, Box::new(tcd)))
}

/// Evenly chosen among the steps of distillation, from the noisiest that `strength` leaves; among all training steps
/// where their number is an option of the run.
fn timesteps(
    config: &SchedulerConfig,
    n_steps: usize,
    options: &SamplerOptions,
) -> Result<Vec<i64>, SchedulerError> {
    let (trained, original) = (config.num_train_timesteps, distilled_steps(config, n_steps, options)?);
    let (from, stride) = match options.original_inference_steps {
        Some(_) => (trained, 1),
        None => (original, trained / original),
    };
    let n = (from as f64 * options.strength) as usize;
    among(n, stride, n_steps, n.min(original))
}

impl Method for Tcd {
    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let next = self.timesteps.get(call + 1).copied();
        let to = next.unwrap_or(0);
        let between = ((1.0 - f64::from(self.eta)) as f32 * to as f32).floor() as i64;
        let level = self.alphas.level(self.timesteps[call])?;
        let (signal, spread) = self.alphas.level(between)?;
        let prediction = self.prediction;
        latents.zip_mut_with(output, |latent, &output| {
            let original = prediction.original(level, output, *latent);
            *latent = signal * original + spread * prediction.epsilon(level, output, *latent);
        });
        if self.eta > 0.0 && next.is_some() {
            let ratio = self.alphas.at(to)? / self.alphas.at(between)?;
            let (kept, added) = (ratio.sqrt(), (1.0 - ratio).sqrt());
            let noise = noise(output.shape());
            Zip::from(latents).and(&noise).for_each(|latent, noise| *latent = kept * *latent + added * noise);
        }
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        self.alphas.level(self.timesteps[call])
    }
}
