use ndarray::{ArrayD, Zip};

use super::alphas::Alphas;
use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::timesteps::whole;
use super::{PredictionType, SamplerOptions, SchedulerConfig, SchedulerError, Thresholding};

/// DDIM (Song et al. 2020; diffusers `schedulers/scheduling_ddim.py`).
struct Ddim {
    alphas: Alphas,
    timesteps: Vec<i64>,
    /// Timesteps between two steps.
    stride: i64,
    prediction: PredictionType,
    thresholding: Thresholding,
    eta: f32,
}

pub(super) fn plan(
    config: &SchedulerConfig,
    n_steps: usize,
    options: &SamplerOptions,
) -> Result<Planned, SchedulerError> {
    let eta = options.checked_eta()?;
    let timesteps = whole(config, n_steps)?;
    let ddim = Ddim {
        alphas: Alphas::new(config),
        timesteps: timesteps.iter().map(|&t| t as i64).collect(),
        stride: (config.num_train_timesteps / n_steps) as i64,
        prediction: config.prediction_type,
        thresholding: config.thresholding,
        eta,
    };
    Ok((Schedule::plain(timesteps), Box::new(ddim)))
}

impl Method for Ddim {
    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let timestep = self.timesteps[call];
        let (alpha, alpha_previous) = (self.alphas.at(timestep)?, self.alphas.at(timestep - self.stride)?);
        let (beta, beta_previous) = (1.0 - alpha, 1.0 - alpha_previous);
        let variance = beta_previous / beta * (1.0 - alpha / alpha_previous);
        let std = self.eta * variance.sqrt();
        let direction = (1.0 - alpha_previous - std * std).sqrt();
        let (level, root_previous) = ((alpha.sqrt(), beta.sqrt()), alpha_previous.sqrt());

        let prediction = self.prediction;
        let mut original = combine(output, latents, |o, l| prediction.original(level, o, l));
        self.thresholding.apply(&mut original);
        Zip::from(&mut *latents).and(output).and(&original).for_each(|latent, &output, &original| {
            *latent = root_previous * original + direction * prediction.epsilon(level, output, *latent);
        });
        if self.eta > 0.0 {
            latents.zip_mut_with(&noise(output.shape()), |latent, &noise| *latent += std * noise);
        }
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        self.alphas.level(self.timesteps[call])
    }
}
