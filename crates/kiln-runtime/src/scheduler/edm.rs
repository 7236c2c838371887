//! Schedulers of networks with the preconditioning of EDM (Karras et al. 2022, table 1).

use ndarray::ArrayD;

use super::alphas::linspace as torch_linspace;
use super::method::{Method, Noise, Planned, Schedule};
use super::timesteps::linspace;
use super::{PredictionType, SchedulerClass, SchedulerConfig, SchedulerError};

/// Most steps of a run, which no table of training steps bounds.
const MAX_STEPS: usize = 100_000;

/// Factors of EDM's networks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preconditioning {
    /// Standard deviation of the data.
    data: f32,
}

impl Preconditioning {
    pub(super) fn new(config: &SchedulerConfig) -> Preconditioning {
        Preconditioning { data: config.sigma_data as f32 }
    }

    /// What the model's input is divided by at noise level `sigma`.
    pub(super) fn input_divisor(&self, sigma: f32) -> f32 {
        (sigma * sigma + self.data * self.data).sqrt()
    }

    /// The clean latents that a model's output stands for.
    pub(super) fn denoised(&self, prediction: PredictionType, sigma: f32, output: f32, latent: f32) -> f32 {
        let variance = sigma * sigma + self.data * self.data;
        let (skip, out) = (self.data * self.data / variance, sigma * self.data / variance.sqrt());
        match prediction {
            PredictionType::VPrediction => skip * latent - out * output,
            _ => skip * latent + out * output,
        }
    }
}

/// The least sigma of a run.
pub(super) fn sigma_min(config: &SchedulerConfig) -> f64 {
    config.sigma_min.unwrap_or(0.002)
}

fn sigma_max(config: &SchedulerConfig) -> f64 {
    config.sigma_max.unwrap_or(80.0)
}

/// One sigma per step, falling.
pub(super) fn sigmas(config: &SchedulerConfig, n_steps: usize) -> Result<Vec<f32>, SchedulerError> {
    if !(1..=MAX_STEPS).contains(&n_steps) {
        return Err(SchedulerError::Steps { steps: n_steps, min: 1, max: MAX_STEPS });
    }
    let (min, max) = (sigma_min(config), sigma_max(config));
    if config.exponential_sigmas {
        let mut sigmas: Vec<f32> =
            torch_linspace(min.ln() as f32, max.ln() as f32, n_steps).map(f32::exp).collect();
        sigmas.reverse();
        return Ok(sigmas);
    }
    let rho = config.rho;
    let (min, max) = (min.powf(1.0 / rho), max.powf(1.0 / rho));
    // Euler's scheduler counts in double precision, DPM-Solver's in single.
    Ok(match config.class() {
        SchedulerClass::EdmEuler => {
            let ramp = linspace(0.0, 1.0, n_steps).into_iter();
            ramp.map(|x| (max + x * (min - max)).powf(rho) as f32).collect()
        }
        _ => {
            let ramp = torch_linspace(0.0, 1.0, n_steps);
            ramp.map(|x| (max as f32 + x * (min - max) as f32).powf(rho as f32)).collect()
        }
    })
}

/// Timesteps are a quarter of the logarithm of the sigmas.
pub(super) fn schedule(config: &SchedulerConfig, sigmas: &[f32]) -> Schedule {
    let timesteps = sigmas.iter().map(|sigma| 0.25 * sigma.ln()).collect();
    let max = sigma_max(config);
    Schedule { timesteps, init_noise_sigma: (max * max + 1.0).sqrt() as f32, order: 1 }
}

/// Euler's method without churn (diffusers `schedulers/scheduling_edm_euler.py`).
struct EdmEuler {
    /// One more than calls of the model.
    sigmas: Vec<f32>,
    prediction: PredictionType,
    edm: Preconditioning,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let mut sigmas = sigmas(config, n_steps)?;
    let schedule = schedule(config, &sigmas);
    sigmas.push(if config.ends_at_sigma_min { sigmas[n_steps - 1] } else { 0.0 });
    let edm = Preconditioning::new(config);
    Ok((schedule, Box::new(EdmEuler { sigmas, prediction: config.prediction_type, edm })))
}

impl Method for EdmEuler {
    fn input_divisor(&self, call: usize) -> Option<f32> {
        Some(self.edm.input_divisor(self.sigmas[call]))
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        _noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let (sigma, next) = (self.sigmas[call], self.sigmas[call + 1]);
        latents.zip_mut_with(output, |latent, &output| {
            let slope = (*latent - self.edm.denoised(self.prediction, sigma, output, *latent)) / sigma;
            *latent += slope * (next - sigma);
        });
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        Ok((1.0, self.sigmas[call]))
    }
}
