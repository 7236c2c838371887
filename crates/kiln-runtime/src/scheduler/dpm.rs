//! What DPM-Solver, DPM-Solver++, DEIS, SA-Solver and UniPC share: the schedule, the noise levels and the updates of
//! Lu et al. 2022.

use ndarray::{ArrayD, Axis, Slice, Zip};

use super::edm::Preconditioning;
use super::prediction::combine;
use super::sigmas::{SigmaSpacing, SigmaTable};
use super::timesteps::{before, upward};
use super::{BetaSchedule, PredictionType, SchedulerClass, SchedulerConfig, SchedulerError, Thresholding};

/// `algorithm_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    DpmSolver,
    DpmSolverPp,
    SdeDpmSolver,
    SdeDpmSolverPp,
}

impl Algorithm {
    /// Whether the integral is over predicted noise instead of predicted clean latents.
    pub(super) fn predicts_noise(self) -> bool {
        matches!(self, Algorithm::DpmSolver | Algorithm::SdeDpmSolver)
    }

    pub(super) fn is_stochastic(self) -> bool {
        matches!(self, Algorithm::SdeDpmSolver | Algorithm::SdeDpmSolverPp)
    }
}

/// `solver_type`: two of DPM-Solver, two of UniPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SolverType {
    Midpoint,
    Heun,
    Bh1,
    Bh2,
}

/// Sigmas, one more than calls of the model, and timesteps.
pub(super) fn schedule(
    config: &SchedulerConfig,
    n_steps: usize,
) -> Result<(Vec<f32>, Vec<f64>), SchedulerError> {
    let table = SigmaTable::new(config);
    let end = match config.class() {
        SchedulerClass::UniPc => config.num_train_timesteps,
        _ => config.num_train_timesteps - table.clipped(config),
    };
    let mut timesteps = before(config, n_steps, end)?;
    let mut last = table.first();
    let sigmas: Vec<f64> = match config.sigma_spacing {
        SigmaSpacing::Timesteps => timesteps.iter().map(|&t| table.at(t)).collect(),
        spacing => {
            let ends = (f64::from(table.first()), f64::from(table.sigmas[table.sigmas.len() - 1]));
            let sigmas = table.curve(config, ends.0, ends.1, n_steps);
            let rounds = match spacing {
                SigmaSpacing::Karras | SigmaSpacing::Lu => {
                    config.class() != SchedulerClass::DpmMultistep
                        || config.beta_schedule != BetaSchedule::SquaredCosCapV2
                }
                _ => false,
            };
            let timestep = |&sigma: &f64| match rounds {
                true => table.timestep(sigma).round_ties_even(),
                false => table.timestep(sigma).trunc(),
            };
            timesteps = sigmas.iter().map(timestep).collect();
            if matches!(config.class(), SchedulerClass::UniPc | SchedulerClass::Deis | SchedulerClass::SaSolver)
            {
                last = sigmas[n_steps - 1] as f32;
            }
            sigmas
        }
    };
    let last = if config.ends_at_sigma_min { last } else { 0.0 };
    Ok((sigmas.into_iter().map(|sigma| sigma as f32).chain([last]).collect(), timesteps))
}

/// Like [`schedule`], from the least noise to the most (`DPMSolverMultistepInverseScheduler.set_timesteps`). As there,
/// fewer calls are made where timesteps are equal, of the first sigmas.
pub(super) fn inverse_schedule(
    config: &SchedulerConfig,
    n_steps: usize,
) -> Result<(Vec<f32>, Vec<f64>), SchedulerError> {
    let table = SigmaTable::new(config);
    let end = config.num_train_timesteps - table.clipped(config);
    let mut timesteps = upward(config, n_steps, end)?;
    if config.sigma_spacing == SigmaSpacing::Timesteps {
        let sigmas = timesteps.iter().map(|&t| table.at(t) as f32);
        let sigmas = sigmas.chain([table.sigmas[end.max(1) - 1]]).collect();
        timesteps.dedup();
        return Ok((sigmas, timesteps));
    }
    let ends = (f64::from(table.sigmas[table.sigmas.len() - 1]), f64::from(table.first()));
    let sigmas = table.curve(config, ends.0, ends.1, n_steps);
    timesteps = match config.sigma_spacing {
        SigmaSpacing::Karras => sigmas.iter().map(|&sigma| table.timestep(sigma).round_ties_even()).collect(),
        _ => sigmas.iter().map(|&sigma| table.timestep(sigma).trunc()).collect(),
    };
    if config.sigma_spacing == SigmaSpacing::Karras {
        timesteps.dedup();
    }
    let last = sigmas[n_steps - 1];
    Ok((sigmas.into_iter().chain([last]).map(|sigma| sigma as f32).collect(), timesteps))
}

/// A noise level: factors of signal and noise, and half the logarithm of the signal-to-noise ratio.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) alpha: f32,
    pub(super) sigma: f32,
    pub(super) lambda: f32,
}

impl Level {
    pub(super) fn new(sigma: f32) -> Level {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        let sigma = sigma * alpha;
        Level { alpha, sigma, lambda: alpha.ln() - sigma.ln() }
    }

    /// Of latents that are signal plus sigma times noise.
    fn unscaled(sigma: f32) -> Level {
        Level { alpha: 1.0, sigma, lambda: -sigma.ln() }
    }
}

/// The noise levels of a run and how its model's outputs are read.
pub(super) struct Solver {
    sigmas: Vec<f32>,
    pub(super) algorithm: Algorithm,
    pub(super) solver_type: SolverType,
    prediction: PredictionType,
    thresholding: Thresholding,
    /// Whether the model's output has channels of variance, which are left out.
    pub(super) has_variance: bool,
    /// EDM's, whose latents are signal plus noise.
    edm: Option<Preconditioning>,
}

impl Solver {
    pub(super) fn new(config: &SchedulerConfig, sigmas: Vec<f32>) -> Solver {
        let has_variance =
            config.variance_type.is_learned() && config.prediction_type == PredictionType::Epsilon;
        let algorithm = match (config.class(), config.predict_x0) {
            (SchedulerClass::UniPc, false) => Algorithm::DpmSolver,
            _ => config.algorithm,
        };
        let thresholding = match config.class() == SchedulerClass::UniPc && algorithm.predicts_noise() {
            true => Thresholding::None,
            false => config.thresholding,
        };
        Solver {
            sigmas,
            algorithm,
            solver_type: config.solver_type,
            prediction: config.prediction_type,
            thresholding,
            has_variance,
            edm: config.class().is_edm().then(|| Preconditioning::new(config)),
        }
    }

    pub(super) fn level(&self, call: usize) -> Level {
        match self.edm {
            None => Level::new(self.sigmas[call]),
            Some(_) => Level::unscaled(self.sigmas[call]),
        }
    }

    /// What the model's input is divided by.
    pub(super) fn input_divisor(&self, call: usize) -> Option<f32> {
        self.edm.as_ref().map(|edm| edm.input_divisor(self.sigmas[call]))
    }

    /// Clean latents, or noise, that the model predicts (`convert_model_output`).
    pub(super) fn convert(
        &self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &ArrayD<f32>,
    ) -> Result<ArrayD<f32>, SchedulerError> {
        let mean;
        let output = match self.has_variance {
            false => output,
            true => {
                // diffusers keeps three channels, whatever the latents have.
                let channels = output.shape()[1].min(3);
                mean = output.slice_axis(Axis(1), Slice::from(..channels)).to_owned();
                if mean.shape() != latents.shape() {
                    let (found, expected) = (mean.shape().into(), latents.shape().into());
                    return Err(SchedulerError::Shape {
                        what: "model output without its variance",
                        found,
                        expected,
                    });
                }
                &mean
            }
        };
        let Level { alpha, sigma, .. } = self.level(call);
        let level = (alpha, sigma);
        if !self.algorithm.predicts_noise() {
            let mut original = match &self.edm {
                None => combine(output, latents, |o, l| self.prediction.original(level, o, l)),
                Some(edm) => combine(output, latents, |o, l| edm.denoised(self.prediction, sigma, o, l)),
            };
            self.thresholding.apply(&mut original);
            return Ok(original);
        }
        let mut epsilon = combine(output, latents, |o, l| self.prediction.epsilon(level, o, l));
        if self.thresholding != Thresholding::None {
            let mut original = combine(&epsilon, latents, |e, l| (l - sigma * e) / alpha);
            self.thresholding.apply(&mut original);
            epsilon = combine(&original, latents, |o, l| (l - alpha * o) / sigma);
        }
        Ok(epsilon)
    }

    /// The update from noise level `from` to `to` with a prediction and its first and second derivatives, each with its
    /// factor.
    pub(super) fn update(
        &self,
        latents: &ArrayD<f32>,
        factors: &Factors,
        derivatives: &[(f32, &ArrayD<f32>)],
        noise: Option<&ArrayD<f32>>,
    ) -> ArrayD<f32> {
        let mut next = latents * factors.latents;
        for (factor, derivative) in derivatives.iter().copied().chain(noise.map(|noise| (factors.noise, noise)))
        {
            Zip::from(&mut next).and(derivative).for_each(|next, derivative| *next += factor * derivative);
        }
        next
    }
}

/// What a step multiplies latents, predictions and noise with.
pub(super) struct Factors {
    pub(super) latents: f32,
    /// Of the prediction.
    pub(super) zeroth: f32,
    /// Of its first derivative, in the simple form of the midpoint method.
    pub(super) midpoint: f32,
    /// Of its first derivative.
    pub(super) first: f32,
    /// Of its second derivative.
    pub(super) second: f32,
    pub(super) noise: f32,
}

impl Factors {
    pub(super) fn new(algorithm: Algorithm, from: Level, to: Level) -> Factors {
        let h = to.lambda - from.lambda;
        let (latents, zeroth, first, second, noise) = match algorithm {
            Algorithm::DpmSolverPp => {
                let e = (-h).exp() - 1.0;
                (
                    to.sigma / from.sigma,
                    -(to.alpha * e),
                    to.alpha * (e / h + 1.0),
                    -(to.alpha * ((e + h) / (h * h) - 0.5)),
                    0.0,
                )
            }
            Algorithm::DpmSolver => {
                let e = h.exp() - 1.0;
                (
                    to.alpha / from.alpha,
                    -(to.sigma * e),
                    -(to.sigma * (e / h - 1.0)),
                    -(to.sigma * ((e - h) / (h * h) - 0.5)),
                    0.0,
                )
            }
            Algorithm::SdeDpmSolverPp => {
                let e = 1.0 - (-2.0 * h).exp();
                let twice = -2.0 * h;
                (
                    to.sigma / from.sigma * (-h).exp(),
                    to.alpha * e,
                    to.alpha * (e / twice + 1.0),
                    to.alpha * ((e + twice) / (twice * twice) - 0.5),
                    to.sigma * e.sqrt(),
                )
            }
            Algorithm::SdeDpmSolver => {
                let e = h.exp() - 1.0;
                (
                    to.alpha / from.alpha,
                    -2.0 * (to.sigma * e),
                    -2.0 * (to.sigma * (e / h - 1.0)),
                    f32::NAN,
                    to.sigma * ((2.0 * h).exp() - 1.0).sqrt(),
                )
            }
        };
        Factors { latents, zeroth, midpoint: 0.5 * zeroth, first, second, noise }
    }
}

/// `factor * (a - b)`, a divided difference.
pub(super) fn difference(factor: f32, a: &ArrayD<f32>, b: &ArrayD<f32>) -> ArrayD<f32> {
    combine(a, b, |a, b| factor * (a - b))
}
