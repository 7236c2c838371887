//! How much signal is left at each timestep.

use super::{SchedulerConfig, SchedulerError};

/// How the noise grows over the timesteps.
#[derive(Clone, Debug, PartialEq)]
pub enum BetaSchedule {
    /// Evenly from `beta_start` to `beta_end`.
    Linear,
    /// Evenly in the square root.
    ScaledLinear,
    /// Glide's cosine schedule.
    SquaredCosCapV2,
    /// Hoogeboom et al. 2023; DDPM only.
    Laplace,
    /// GeoDiff's schedule; DDPM only.
    Sigmoid,
    /// Exponentially falling signal; Heun only.
    Exp,
    /// One beta per timestep.
    Trained(Vec<f32>),
}

/// Whether a beta leaves a variance to divide by and no negative signal.
pub(super) fn is_beta(beta: f64) -> bool {
    // Below half of f32's epsilon 1 - beta is 1 in single precision.
    beta > f64::from(f32::EPSILON) / 2.0 && beta <= 1.0
}

/// Cumulative products of `1 - beta`, and the one that stands behind the first timestep.
#[derive(Clone, Debug)]
pub(super) struct Alphas {
    pub(super) cumprod: Vec<f32>,
    last: f32,
}

impl Alphas {
    pub(super) fn new(config: &SchedulerConfig) -> Alphas {
        let cumprod = alphas_cumprod(config);
        let last = if config.set_alpha_to_one { 1.0 } else { cumprod[0] };
        Alphas { cumprod, last }
    }

    /// The cumulative product at a timestep; timesteps below zero are past the end of a run.
    pub(super) fn at(&self, timestep: i64) -> Result<f32, SchedulerError> {
        let Ok(index) = usize::try_from(timestep) else { return Ok(self.last) };
        let max = self.cumprod.len() - 1;
        self.cumprod.get(index).copied().ok_or(SchedulerError::NoTimestep { timestep, max })
    }

    /// Factors of signal and noise in the latents of a timestep.
    pub(super) fn level(&self, timestep: i64) -> Result<(f32, f32), SchedulerError> {
        let alpha = self.at(timestep)?;
        Ok((alpha.sqrt(), (1.0 - alpha).sqrt()))
    }
}

/// `alphas_cumprod`, with the last at zero where the schedule is rescaled to zero signal-to-noise ratio.
pub(super) fn alphas_cumprod(config: &SchedulerConfig) -> Vec<f32> {
    let n = config.num_train_timesteps;
    let (start, end) = (config.beta_start, config.beta_end);
    let mut alphas: Vec<f32> = match &config.beta_schedule {
        BetaSchedule::Trained(betas) => betas.iter().map(|beta| 1.0 - beta).collect(),
        BetaSchedule::Linear => linspace(start as f32, end as f32, n).map(|beta| 1.0 - beta).collect(),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, n).map(|root| 1.0 - root * root).collect()
        }
        BetaSchedule::Sigmoid => linspace(-6.0, 6.0, n)
            .map(|x| 1.0 - (1.0 / (1.0 + (-x).exp()) * (end - start) as f32 + start as f32))
            .collect(),
        BetaSchedule::SquaredCosCapV2 => {
            from_alpha_bar(n, |t| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2))
        }
        BetaSchedule::Exp => from_alpha_bar(n, |t| (t * -12.0).exp()),
        BetaSchedule::Laplace => from_alpha_bar(n, |t| {
            let log = (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
            let snr = (-0.5 * 1f64.copysign(0.5 - t) * log).exp();
            (snr / (1.0 + snr)).sqrt()
        }),
    };
    if config.rescale_betas_zero_snr {
        alphas = rescale_zero_snr(&alphas);
    }
    cumulative_product(&alphas)
}

/// Alphas whose products follow a function of the time from 0 to 1.
fn from_alpha_bar(n: usize, bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let beta = |i: usize| 1.0 - bar((i + 1) as f64 / n as f64) / bar(i as f64 / n as f64);
    (0..n).map(|i| 1.0 - beta(i).min(0.999) as f32).collect()
}

/// Shifts and scales the square roots of the cumulative products so that the last is zero (Lin et al. 2023, algorithm 1).
fn rescale_zero_snr(alphas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = cumulative_product(alphas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let bars: Vec<f32> =
        roots.iter().map(|root| (root - last) * (first / (first - last))).map(|r| r * r).collect();
    let ratios = bars.windows(2).map(|pair| pair[1] / pair[0]);
    // The round trip through beta is diffusers': it is where zero stays zero.
    [bars[0]].into_iter().chain(ratios).map(|alpha| 1.0 - (1.0 - alpha)).collect()
}

/// torch accumulates in double precision.
fn cumulative_product(alphas: &[f32]) -> Vec<f32> {
    let mut product = 1.0;
    alphas
        .iter()
        .map(|&alpha| {
            product *= f64::from(alpha);
            product as f32
        })
        .collect()
}

/// `torch.linspace`, which counts from the nearer end and rounds once.
pub(super) fn linspace(start: f32, end: f32, n: usize) -> impl Iterator<Item = f32> {
    let step = if n > 1 { (end - start) / (n - 1) as f32 } else { 0.0 };
    (0..n).map(move |i| match i < n / 2 || n == 1 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((n - 1 - i) as f32, end),
    })
}
