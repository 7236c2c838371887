use ndarray::{ArrayD, Axis, Zip};

use super::{BetaSchedule, PredictionType, SchedulerConfig, SchedulerError, Thresholding, TimestepSpacing};

/// DDIM (Song et al. 2020; diffusers `schedulers/scheduling_ddim.py`).
///
/// Arithmetic is in single precision, as torch does it.
#[derive(Clone, Debug)]
pub struct Ddim {
    config: SchedulerConfig,
    alphas_cumprod: Vec<f32>,
    final_alpha_cumprod: f32,
}

impl Ddim {
    /// The noise schedule of a configuration.
    pub fn new(config: &SchedulerConfig) -> Ddim {
        let alphas_cumprod = alphas_cumprod(config);
        let final_alpha_cumprod = if config.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        Ddim { config: config.clone(), alphas_cumprod, final_alpha_cumprod }
    }

    /// Standard deviation of the latents that sampling starts from.
    pub fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// The timesteps of `n_steps` steps, noisiest first.
    pub fn timesteps(&self, n_steps: usize) -> Result<Vec<i64>, SchedulerError> {
        let trained = self.config.num_train_timesteps;
        if n_steps == 0 || n_steps > trained {
            return Err(SchedulerError::Steps { steps: n_steps, max: trained });
        }
        let offset = self.config.steps_offset;
        let timesteps: Vec<i64> = match self.config.timestep_spacing {
            TimestepSpacing::Linspace => {
                let step = (trained - 1) as f64 / (n_steps.max(2) - 1) as f64;
                let at = |i: usize| match i + 1 == n_steps && n_steps > 1 {
                    true => (trained - 1) as i64,
                    false => (i as f64 * step).round_ties_even() as i64,
                };
                (0..n_steps).rev().map(at).collect()
            }
            TimestepSpacing::Leading => {
                let ratio = trained / n_steps;
                (0..n_steps).rev().map(|i| (i * ratio) as i64 + offset).collect()
            }
            TimestepSpacing::Trailing => {
                let ratio = trained as f64 / n_steps as f64;
                // As `np.arange` counts: rounding of this difference decides ties.
                let step = (trained as f64 - ratio) - trained as f64;
                (0..n_steps).map(|i| (trained as f64 + i as f64 * step).round_ties_even() as i64 - 1).collect()
            }
        };
        match timesteps.iter().find(|t| !(0..trained as i64).contains(t)) {
            Some(&timestep) => Err(SchedulerError::Timestep { steps: n_steps, offset, timestep, trained }),
            None => Ok(timesteps),
        }
    }

    /// Takes `latents` from `timestep` to the one before it.
    ///
    /// `model_output` is the UNet's guided prediction and has the shape of `latents`, `[B, C, H, W]`. `noise`, of that
    /// shape too, is added where `eta` is not zero. Latents keep their value where an argument is refused.
    pub fn step(
        &self,
        model_output: &ArrayD<f32>,
        timestep: i64,
        n_steps: usize,
        latents: &mut ArrayD<f32>,
        eta: f32,
        noise: Option<&ArrayD<f32>>,
    ) -> Result<(), SchedulerError> {
        let trained = self.config.num_train_timesteps;
        if n_steps == 0 || n_steps > trained {
            return Err(SchedulerError::Steps { steps: n_steps, max: trained });
        }
        if !(0.0..=1.0).contains(&eta) || (eta > 0.0 && noise.is_none()) {
            return Err(SchedulerError::Eta(eta));
        }
        for (what, array) in [("model output", Some(model_output)), ("noise", noise)] {
            same_shape(what, array, latents)?;
        }
        let alpha = self.alpha(timestep)?;
        let previous = timestep - (trained / n_steps) as i64;
        let alpha_previous =
            usize::try_from(previous).map_or(self.final_alpha_cumprod, |t| self.alphas_cumprod[t]);
        let (beta, beta_previous) = (1.0 - alpha, 1.0 - alpha_previous);
        let variance = beta_previous / beta * (1.0 - alpha / alpha_previous);
        let std = eta * variance.sqrt();
        let direction = (1.0 - alpha_previous - std * std).sqrt();
        let (root_alpha, root_beta, root_previous) = (alpha.sqrt(), beta.sqrt(), alpha_previous.sqrt());

        let prediction = self.config.prediction_type;
        let original = move |output: f32, latent: f32| match prediction {
            PredictionType::Epsilon => (latent - root_beta * output) / root_alpha,
            PredictionType::Sample => output,
            PredictionType::VPrediction => root_alpha * latent - root_beta * output,
        };
        let epsilon = move |output: f32, latent: f32| match prediction {
            PredictionType::Epsilon => output,
            PredictionType::Sample => (latent - root_alpha * output) / root_beta,
            PredictionType::VPrediction => root_alpha * output + root_beta * latent,
        };

        for (i, mut latents) in latents.axis_iter_mut(Axis(0)).enumerate() {
            let output = model_output.index_axis(Axis(0), i);
            let limit =
                self.limit(|| output.iter().zip(&latents).map(|(&o, &l)| original(o, l).abs()).collect());
            Zip::from(&mut latents).and(&output).for_each(|latent, &output| {
                let original = limit.apply(original(output, *latent));
                *latent = root_previous * original + direction * epsilon(output, *latent);
            });
        }
        if let Some(noise) = noise.filter(|_| eta > 0.0) {
            Zip::from(latents).and(noise).for_each(|latent, &noise| *latent += std * noise);
        }
        Ok(())
    }

    fn alpha(&self, timestep: i64) -> Result<f32, SchedulerError> {
        let alpha = usize::try_from(timestep).ok().and_then(|t| self.alphas_cumprod.get(t)).copied();
        alpha.ok_or(SchedulerError::NoTimestep { timestep, max: self.alphas_cumprod.len() - 1 })
    }

    /// How far one sample's predicted clean latents, given by their magnitudes, may go.
    fn limit(&self, magnitudes: impl FnOnce() -> Vec<f32>) -> Limit {
        match self.config.thresholding {
            Thresholding::None => Limit { range: f32::INFINITY, divisor: 1.0 },
            Thresholding::Clip { range } => Limit { range, divisor: 1.0 },
            Thresholding::Dynamic { ratio, max } => {
                let range = quantile(magnitudes(), ratio).max(1.0).min(max);
                Limit { range, divisor: range }
            }
        }
    }

    /// `latents` with the noise of `timestep`: `sqrt(alpha) latents + sqrt(1 - alpha) noise`.
    pub fn add_noise(
        &self,
        latents: &ArrayD<f32>,
        noise: &ArrayD<f32>,
        timestep: i64,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        same_shape("noise", Some(noise), latents)?;
        let alpha = self.alpha(timestep)?;
        let (signal, spread) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        Ok(Zip::from(latents).and(noise).map_collect(|latent, noise| signal * latent + spread * noise))
    }
}

fn same_shape(
    what: &'static str,
    array: Option<&ArrayD<f32>>,
    latents: &ArrayD<f32>,
) -> Result<(), SchedulerError> {
    match array.filter(|array| array.shape() != latents.shape()) {
        None => Ok(()),
        Some(array) => {
            Err(SchedulerError::Shape { what, found: array.shape().into(), expected: latents.shape().into() })
        }
    }
}

struct Limit {
    range: f32,
    divisor: f32,
}

impl Limit {
    fn apply(&self, x: f32) -> f32 {
        x.clamp(-self.range, self.range) / self.divisor
    }
}

/// `torch.quantile` with linear interpolation.
fn quantile(mut values: Vec<f32>, ratio: f32) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_by(f32::total_cmp);
    let rank = f64::from(ratio) * (values.len() - 1) as f64;
    let (low, high) = (values[rank.floor() as usize], values[rank.ceil() as usize]);
    low + (high - low) * rank.fract() as f32
}

fn alphas_cumprod(config: &SchedulerConfig) -> Vec<f32> {
    let n = config.num_train_timesteps;
    let (start, end) = (config.beta_start, config.beta_end);
    let mut alphas: Vec<f32> = match &config.beta_schedule {
        BetaSchedule::Trained(betas) => betas.iter().map(|beta| 1.0 - beta).collect(),
        BetaSchedule::Linear => linspace(start as f32, end as f32, n).map(|beta| 1.0 - beta).collect(),
        BetaSchedule::ScaledLinear => {
            linspace(start.sqrt() as f32, end.sqrt() as f32, n).map(|root| 1.0 - root * root).collect()
        }
        BetaSchedule::SquaredCosCapV2 => {
            let bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let beta = |i: usize| 1.0 - bar((i + 1) as f64 / n as f64) / bar(i as f64 / n as f64);
            (0..n).map(|i| 1.0 - beta(i).min(0.999) as f32).collect()
        }
    };
    if config.rescale_betas_zero_snr {
        alphas = rescale_zero_snr(&alphas);
    }
    cumulative_product(&alphas)
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

/// `torch.linspace`, which counts from the nearer end.
fn linspace(start: f32, end: f32, n: usize) -> impl Iterator<Item = f32> {
    let step = if n > 1 { (end - start) / (n - 1) as f32 } else { 0.0 };
    (0..n).map(move |i| match i < n / 2 || n == 1 {
        true => start + step * i as f32,
        false => end - step * (n - 1 - i) as f32,
    })
}
