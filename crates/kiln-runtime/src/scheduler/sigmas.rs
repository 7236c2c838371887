//! Noise as a multiple of the signal, and ways to space it.

use statrs::function::beta::inv_beta_reg;

use super::alphas::{alphas_cumprod, linspace as torch_linspace};
use super::timesteps::{fractional, has_one_more, linspace};
use super::{PredictionType, SchedulerClass, SchedulerConfig, SchedulerError, TimestepSpacing};

/// How the sigmas of a run are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SigmaSpacing {
    /// Those of the timesteps.
    Timesteps,
    /// Karras et al. 2022, equation 5.
    Karras,
    /// Evenly in the logarithm.
    Exponential,
    /// Quantiles of a beta distribution (Lee et al. 2024).
    Beta,
    /// Evenly in the logarithm of the whole table (Lu et al. 2022).
    Lu,
}

/// `rho` of Karras et al. 2022.
const RHO: f64 = 7.0;

/// Both parameters of the beta distribution.
const BETA: f64 = 0.6;

/// Sigmas of all timesteps that the model was trained with, and their logarithms.
pub(super) struct SigmaTable {
    pub(super) sigmas: Vec<f32>,
    log_sigmas: Vec<f32>,
}

impl SigmaTable {
    pub(super) fn new(config: &SchedulerConfig) -> SigmaTable {
        let mut alphas = alphas_cumprod(config);
        if config.rescale_betas_zero_snr {
            // So that the first sigma is not infinite: the least number of half precision.
            let last = alphas.len() - 1;
            alphas[last] = 2f32.powi(-24);
        }
        let sigmas: Vec<f32> = alphas.into_iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect();
        let log_sigmas = sigmas.iter().map(|&sigma| numpy_log(sigma)).collect();
        SigmaTable { sigmas, log_sigmas }
    }

    /// The table's least sigma.
    pub(super) fn first(&self) -> f32 {
        self.sigmas[0]
    }

    /// `numpy.interp` between whole timesteps.
    pub(super) fn at(&self, timestep: f64) -> f64 {
        let low = (timestep.max(0.0) as usize).min(self.sigmas.len() - 1);
        let left = f64::from(self.sigmas[low]);
        let right = self.sigmas.get(low + 1).map_or(left, |&sigma| f64::from(sigma));
        (right - left) * (timestep - low as f64) + left
    }

    /// The timestep of a sigma (`_sigma_to_t`), between whole ones.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let Some((low, below, above)) = self.around(|entry| log >= f64::from(entry)) else { return 0.0 };
        let weight = ((f64::from(below) - log) / f64::from(below - above)).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }

    /// [`SigmaTable::timestep`] in single precision throughout.
    pub(super) fn timestep_f32(&self, sigma: f32) -> f32 {
        let log = numpy_log(sigma.max(1e-10));
        let Some((low, below, above)) = self.around(|entry| log >= entry) else { return 0.0 };
        let weight = ((below - log) / (below - above)).clamp(0.0, 1.0);
        (1.0 - weight) * low as f32 + weight * (low + 1) as f32
    }

    /// The last entry for which `reached` holds, or the first, and the next one.
    fn around(&self, reached: impl Fn(f32) -> bool) -> Option<(usize, f32, f32)> {
        let logs = &self.log_sigmas;
        let last = logs.len().checked_sub(2)?;
        let low = logs.iter().rposition(|&entry| reached(entry)).unwrap_or(0).min(last);
        Some((low, logs[low], logs[low + 1]))
    }

    /// Timesteps that lie below a bound on the logarithm of the signal-to-noise ratio (`lambda_min_clipped`).
    pub(super) fn clipped(&self, config: &SchedulerConfig) -> usize {
        let min = config.lambda_min_clipped as f32;
        if min == f32::NEG_INFINITY {
            return 0;
        }
        let lambda = |sigma: f32| {
            let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
            alpha.ln() - (sigma * alpha).ln()
        };
        self.sigmas.iter().rev().take_while(|&&sigma| lambda(sigma) < min).count()
    }

    /// `n` sigmas from `max` to `min`, or to the ends that the configuration sets.
    pub(super) fn curve(&self, config: &SchedulerConfig, min: f64, max: f64, n: usize) -> Vec<f64> {
        let (min, max) = match (config.class(), config.sigma_spacing) {
            // The one place where diffusers does not look them up.
            (SchedulerClass::Lms, SigmaSpacing::Karras) => (min, max),
            _ => (config.sigma_min.unwrap_or(min), config.sigma_max.unwrap_or(max)),
        };
        match config.sigma_spacing {
            SigmaSpacing::Exponential => linspace(max.ln(), min.ln(), n).into_iter().map(f64::exp).collect(),
            SigmaSpacing::Beta => {
                let quantile = |x: f64| inv_beta_reg(BETA, BETA, 1.0 - x);
                linspace(0.0, 1.0, n).into_iter().map(|x| min + quantile(x) * (max - min)).collect()
            }
            SigmaSpacing::Lu => {
                let (min, max) = (self.log_sigmas[0], self.log_sigmas[self.log_sigmas.len() - 1]);
                let (min, max) = (f64::from(min), f64::from(max));
                linspace(0.0, 1.0, n).into_iter().map(|x| (max + x * (min - max)).exp()).collect()
            }
            SigmaSpacing::Karras | SigmaSpacing::Timesteps => {
                let (min, max) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
                linspace(0.0, 1.0, n).into_iter().map(|x| (max + x * (min - max)).powf(RHO)).collect()
            }
        }
    }
}

/// Sigmas and timesteps in k-diffusion's form: latents are signal plus sigma times noise.
pub(super) struct KSchedule {
    /// One per step, without the one that the run ends at.
    pub(super) sigmas: Vec<f32>,
    /// One per step.
    pub(super) timesteps: Vec<f64>,
    /// Those of all timesteps.
    pub(super) table: SigmaTable,
}

impl KSchedule {
    /// The schedule of `n_steps` steps.
    pub(super) fn new(config: &SchedulerConfig, n_steps: usize) -> Result<KSchedule, SchedulerError> {
        let table = SigmaTable::new(config);
        let mut timesteps = fractional(config, n_steps)?;
        let mut sigmas: Vec<f64> = match config.log_linear_sigmas {
            false => timesteps.iter().map(|&t| table.at(t)).collect(),
            true => {
                let logs = &table.log_sigmas;
                let curve = torch_linspace(logs[logs.len() - 1], logs[0], n_steps + 1);
                curve.map(|log| f64::from(log.exp())).collect()
            }
        };
        if config.sigma_spacing != SigmaSpacing::Timesteps {
            let min = if has_one_more(config, n_steps) { table.at(0.0) } else { sigmas[sigmas.len() - 1] };
            sigmas = table.curve(config, min, sigmas[0], n_steps);
            timesteps = sigmas.iter().map(|&sigma| table.timestep(sigma)).collect();
        }
        let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        Ok(KSchedule { sigmas, timesteps, table })
    }

    /// Standard deviation of the latents that sampling starts from.
    pub(super) fn init_noise_sigma(&self, config: &SchedulerConfig) -> f32 {
        let max = self.sigmas.iter().copied().fold(0.0, f32::max);
        match config.timestep_spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
            TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
        }
    }
}

/// The clean latents that a model's output of noise level `sigma` stands for.
pub(super) fn denoised(prediction: PredictionType, sigma: f32, output: f32, latent: f32) -> f32 {
    let variance = sigma * sigma + 1.0;
    match prediction {
        PredictionType::Epsilon => latent - sigma * output,
        PredictionType::Sample => output,
        PredictionType::VPrediction => output * (-sigma / variance.sqrt()) + latent / variance,
    }
}

/// What the model's input is divided by at noise level `sigma`.
pub(super) fn input_divisor(sigma: f32) -> f32 {
    (sigma * sigma + 1.0).sqrt()
}

/// numpy's logarithm of single-precision numbers, whose last bit decides which timestep the first sigma belongs to
/// (`numpy/_core/src/umath/loops_exponent_log.dispatch.c.src`).
fn numpy_log(x: f32) -> f32 {
    const P: [f32; 6] = [0.025_899_792, 0.380_883_77, 1.480_000_6, 2.112_677_6, 1.0, 0.0];
    const Q: [f32; 6] = [0.005_875_095_3, 0.154_647_64, 0.986_494_3, 2.453_006, 2.612_677_6, 1.0];
    if !(x.is_normal() && x > 0.0) {
        return x.ln();
    }
    let mut mantissa = f32::from_bits(x.to_bits() & 0x007f_ffff | 0.5f32.to_bits());
    let mut exponent = (x.to_bits() >> 23) as i32 - 126;
    if mantissa <= std::f32::consts::FRAC_1_SQRT_2 {
        mantissa += mantissa;
        exponent -= 1;
    }
    let x = mantissa - 1.0;
    let polynomial = |c: [f32; 6]| c.into_iter().reduce(|sum, c| sum.mul_add(x, c)).unwrap_or(0.0);
    (exponent as f32).mul_add(std::f32::consts::LN_2, polynomial(P) / polynomial(Q))
}
