use ndarray::{ArrayD, Zip};

use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::sigmas::{KSchedule, denoised, input_divisor};
use super::{PredictionType, SchedulerConfig, SchedulerError, Thresholding};

/// Heun's method (Karras et al. 2022, algorithm 1; diffusers `schedulers/scheduling_heun_discrete.py`).
struct Heun {
    /// One more than calls of the model: every one but the first and last belongs to two calls.
    sigmas: Vec<f32>,
    prediction: PredictionType,
    thresholding: Thresholding,
    /// Latents and slope at the start of a step whose second call is due.
    start: Option<(ArrayD<f32>, ArrayD<f32>)>,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let k = KSchedule::new(config, n_steps)?;
    let init_noise_sigma = k.init_noise_sigma(config);
    let sigmas = doubled(&k.sigmas).chain([0.0]).collect();
    let timesteps = doubled(&k.timesteps).map(|t| t as f32).collect();
    let heun =
        Heun { sigmas, prediction: config.prediction_type, thresholding: config.thresholding, start: None };
    Ok((Schedule { timesteps, init_noise_sigma, order: 2 }, Box::new(heun)))
}

/// Every element but the first twice.
pub(super) fn doubled<T: Copy>(values: &[T]) -> impl Iterator<Item = T> {
    values.iter().enumerate().flat_map(|(i, &value)| std::iter::repeat_n(value, if i == 0 { 1 } else { 2 }))
}

impl Method for Heun {
    fn reset(&mut self) {
        self.start = None;
    }

    fn input_divisor(&self, call: usize) -> Option<f32> {
        Some(input_divisor(self.sigmas[call]))
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        _noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        // The sigma of a second call is the one that the first call went to.
        let sigma = self.sigmas[call];
        let mut clean = combine(output, latents, |o, l| denoised(self.prediction, sigma, o, l));
        self.thresholding.apply(&mut clean);
        let slope = combine(latents, &clean, |latent, clean| (latent - clean) / sigma);
        match self.start.take() {
            None => {
                let distance = self.sigmas[call + 1] - sigma;
                let start = latents.clone();
                latents.zip_mut_with(&slope, |latent, slope| *latent += slope * distance);
                self.start = Some((start, slope));
            }
            Some((start, first)) => {
                let distance = sigma - self.sigmas[call - 1];
                Zip::from(latents).and(&start).and(&first).and(&slope).for_each(
                    |latent, &start, &first, &slope| *latent = start + (first + slope) / 2.0 * distance,
                );
            }
        }
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        Ok((1.0, self.sigmas[call]))
    }
}
