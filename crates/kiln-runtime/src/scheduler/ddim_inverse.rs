use ndarray::{ArrayD, Zip};

use super::alphas::Alphas;
use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::timesteps::whole;
use super::{PredictionType, SchedulerConfig, SchedulerError, Thresholding};

/// DDIM from latents to noise (Song et al. 2020; diffusers `schedulers/scheduling_ddim_inverse.py`).
struct DdimInverse {
    alphas: Alphas,
    timesteps: Vec<i64>,
    /// Timesteps between two steps.
    stride: i64,
    prediction: PredictionType,
    thresholding: Thresholding,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let mut timesteps = whole(config, n_steps)?;
    timesteps.reverse();
    let inverse = DdimInverse {
        alphas: Alphas::new(config),
        timesteps: timesteps.iter().map(|&t| t as i64).collect(),
        stride: (config.num_train_timesteps / n_steps) as i64,
        prediction: config.prediction_type,
        thresholding: config.thresholding,
    };
    Ok((Schedule::plain(timesteps), Box::new(inverse)))
}

impl Method for DdimInverse {
    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        _noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        // The model is asked at the timestep that the step goes to.
        let to = self.timesteps[call];
        let (level, next) = (self.alphas.level(to - self.stride)?, self.alphas.level(to)?);
        let prediction = self.prediction;
        let mut original = combine(output, latents, |o, l| prediction.original(level, o, l));
        self.thresholding.apply(&mut original);
        Zip::from(latents).and(output).and(&original).for_each(|latent, &output, &original| {
            *latent = next.0 * original + next.1 * prediction.epsilon(level, output, *latent);
        });
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        self.alphas.level(self.timesteps[call] - self.stride)
    }
}
