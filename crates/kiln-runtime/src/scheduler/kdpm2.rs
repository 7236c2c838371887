use ndarray::{ArrayD, Zip};

use super::euler::ancestral;
use super::heun::doubled;
use super::method::{Method, Noise, Planned, Schedule};
use super::sigmas::{KSchedule, SigmaSpacing, denoised, input_divisor};
use super::{PredictionType, SchedulerConfig, SchedulerError};

/// DPM-Solver-2 as in k-diffusion (Karras et al. 2022, algorithm 2 with the midpoint in the logarithm of sigma; diffusers
/// `schedulers/scheduling_k_dpm_2_discrete.py`), and its ancestral variant
/// (`schedulers/scheduling_k_dpm_2_ancestral_discrete.py`).
struct Kdpm2 {
    steps: Vec<Step>,
    prediction: PredictionType,
    is_ancestral: bool,
    /// Latents at the start of a step whose second call is due.
    start: Option<ArrayD<f32>>,
}

/// A step of two calls, the second at `middle`.
#[derive(Clone, Copy)]
struct Step {
    sigma: f32,
    middle: f32,
    /// Where the second call goes.
    down: f32,
    /// Standard deviation of the noise that is added there.
    up: f32,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    build(config, n_steps, false)
}

pub(super) fn plan_ancestral(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    build(config, n_steps, true)
}

fn build(config: &SchedulerConfig, n_steps: usize, is_ancestral: bool) -> Result<Planned, SchedulerError> {
    let mut k = KSchedule::new(config, n_steps)?;
    if config.sigma_spacing == SigmaSpacing::Karras {
        k.timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
    }
    let steps: Vec<Step> = k
        .sigmas
        .iter()
        .enumerate()
        .map(|(i, &sigma)| {
            let next = k.sigmas.get(i + 1).copied().unwrap_or(0.0);
            let (down, up) = if is_ancestral { ancestral(sigma, next) } else { (next, 0.0) };
            // `torch.lerp` at one half counts from its end, which the two variants have on different sides.
            let (start, end) = if is_ancestral { (sigma, down) } else { (next, sigma) };
            let (start, end) = (start.ln(), end.ln());
            let middle = if next == 0.0 { 0.0 } else { (end - (end - start) * 0.5).exp() };
            Step { sigma, middle, down, up }
        })
        .collect();
    let middles = steps.iter().map(|step| k.table.timestep_f32(step.middle));
    let timesteps: Vec<f32> = k.timesteps.iter().map(|&t| t as f32).collect();
    let pairs = middles.zip(&timesteps[1..]).flat_map(|(middle, &t)| [middle, t]);
    let schedule = Schedule {
        timesteps: timesteps[..1].iter().copied().chain(pairs).collect(),
        init_noise_sigma: k.init_noise_sigma(config),
        order: 2,
    };
    let kdpm2 = Kdpm2 { steps, prediction: config.prediction_type, is_ancestral, start: None };
    Ok((schedule, Box::new(kdpm2)))
}

impl Kdpm2 {
    /// The step that the call that is due belongs to.
    fn at(&self, call: usize) -> Step {
        match self.start.is_some() {
            true => self.steps[call.saturating_sub(1) / 2],
            false => self.steps[call.div_ceil(2)],
        }
    }
}

impl Method for Kdpm2 {
    fn reset(&mut self) {
        self.start = None;
    }

    fn input_divisor(&self, call: usize) -> Option<f32> {
        let step = self.at(call);
        Some(input_divisor(if self.start.is_some() { step.middle } else { step.sigma }))
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let Step { sigma, middle, down, up } = self.at(call);
        let prediction = self.prediction;
        let slope = |sigma: f32, output: f32, latent: f32| {
            (latent - denoised(prediction, sigma, output, latent)) / sigma
        };
        match self.start.take() {
            None => {
                self.start = Some(latents.clone());
                latents.zip_mut_with(output, |latent, &output| {
                    *latent += slope(sigma, output, *latent) * (middle - sigma);
                });
            }
            Some(start) => {
                Zip::from(&mut *latents).and(output).and(&start).for_each(|latent, &output, &start| {
                    *latent = start + slope(middle, output, *latent) * (down - sigma);
                });
                if self.is_ancestral {
                    latents.zip_mut_with(&noise(output.shape()), |latent, &noise| *latent += noise * up);
                }
            }
        }
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        let sigma = doubled(&self.steps).nth(call).map_or(0.0, |step| step.sigma);
        Ok((1.0, sigma))
    }
}
