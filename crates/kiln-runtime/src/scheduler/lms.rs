use std::collections::VecDeque;

use ndarray::ArrayD;

use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::sigmas::{KSchedule, denoised, input_divisor};
use super::{PredictionType, SchedulerConfig, SchedulerError};

const ORDER: usize = 4;

/// Linear multistep of order 4 (diffusers `schedulers/scheduling_lms_discrete.py`).
struct Lms {
    /// One more than calls of the model.
    sigmas: Vec<f32>,
    prediction: PredictionType,
    /// Slopes, newest first.
    slopes: VecDeque<ArrayD<f32>>,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let k = KSchedule::new(config, n_steps)?;
    let init_noise_sigma = k.init_noise_sigma(config);
    let timesteps = k.timesteps.iter().map(|&t| t as f32).collect();
    let mut sigmas = k.sigmas;
    sigmas.push(0.0);
    let lms = Lms { sigmas, prediction: config.prediction_type, slopes: VecDeque::new() };
    Ok((Schedule { timesteps, init_noise_sigma, order: 1 }, Box::new(lms)))
}

impl Lms {
    /// The integral over a step of the Lagrange polynomial of one of the last `order` slopes.
    fn coefficient(&self, order: usize, call: usize, slope: usize) -> f32 {
        let sigma = |i: usize| f64::from(self.sigmas[i]);
        let polynomial = |tau: f64| {
            let others = (0..order).filter(|&k| k != slope);
            others.map(|k| (tau - sigma(call - k)) / (sigma(call - slope) - sigma(call - k))).product::<f64>()
        };
        // Gauss' rule with two points is exact up to the third degree.
        let (middle, half) = ((sigma(call + 1) + sigma(call)) / 2.0, (sigma(call + 1) - sigma(call)) / 2.0);
        let offset = half / 3f64.sqrt();
        (half * (polynomial(middle - offset) + polynomial(middle + offset))) as f32
    }
}

impl Method for Lms {
    fn reset(&mut self) {
        self.slopes.clear();
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
        let sigma = self.sigmas[call];
        let slope = combine(output, latents, |o, l| (l - denoised(self.prediction, sigma, o, l)) / sigma);
        self.slopes.push_front(slope);
        self.slopes.truncate(ORDER);
        // As in diffusers, the order follows the index of the step even where the run started late and slopes are missing.
        let order = ORDER.min(call + 1);
        let mut sum = ArrayD::zeros(latents.shape());
        for (i, slope) in self.slopes.iter().enumerate().take(order) {
            let coefficient = self.coefficient(order, call, i);
            sum.zip_mut_with(slope, |sum, slope| *sum += coefficient * slope);
        }
        *latents += &sum;
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        Ok((1.0, self.sigmas[call]))
    }
}
