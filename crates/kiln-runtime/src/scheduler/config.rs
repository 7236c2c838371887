use serde_json::{Map, Value};

use super::alphas::BetaSchedule;
use super::class::SchedulerClass;
use super::dpm::{Algorithm, SolverType};
use super::keys::{Keys, refuse};
use super::settings::{self, Correction, SchedulerSettings};
use super::sigmas::SigmaSpacing;
use super::{PredictionType, SchedulerError, Thresholding, TimestepSpacing};

/// Most timesteps that a schedule may have.
const MAX_TIMESTEPS: i64 = 100_000;

/// Highest order of UniPC; its linear systems lose their meaning in single precision long before.
const MAX_UNIPC_ORDER: i64 = 9;

/// Highest order of SA-Solver's predictor and corrector in diffusers.
const MAX_ADAMS_ORDER: i64 = 4;

/// `scheduler_config.json`: what it says, with the defaults of the class that it names.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    class: SchedulerClass,
    /// Keys of the file, also those that this class does not use: another one may.
    given: Map<String, Value>,
    pub(super) num_train_timesteps: usize,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    pub(super) rescale_betas_zero_snr: bool,
    pub(super) prediction_type: PredictionType,
    pub(super) thresholding: Thresholding,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: i64,
    pub(super) set_alpha_to_one: bool,
    pub(super) variance_type: VarianceType,
    pub(super) skip_prk_steps: bool,
    pub(super) sigma_spacing: SigmaSpacing,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    /// Whether a run ends at the least sigma of the table instead of at zero.
    pub(super) ends_at_sigma_min: bool,
    pub(super) log_linear_sigmas: bool,
    pub(super) continuous_timesteps: bool,
    pub(super) solver_order: usize,
    pub(super) algorithm: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    pub(super) lambda_min_clipped: f64,
    pub(super) predict_x0: bool,
    pub(super) disable_corrector: Vec<usize>,
    pub(super) original_inference_steps: usize,
    pub(super) timestep_scaling: f64,
    pub(super) predictor_order: usize,
    pub(super) corrector_order: usize,
    /// EDM's standard deviation of the data.
    pub(super) sigma_data: f64,
    /// EDM's exponent of the sigmas.
    pub(super) rho: f64,
    /// Whether EDM's sigmas are spaced evenly in the logarithm.
    pub(super) exponential_sigmas: bool,
}

/// Where DDPM's variance comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VarianceType {
    FixedSmall,
    FixedSmallLog,
    FixedLarge,
    FixedLargeLog,
    /// Half of the model's channels.
    Learned,
    /// Half of the model's channels, between the two fixed ones.
    LearnedRange,
}

impl VarianceType {
    pub(super) fn is_learned(self) -> bool {
        matches!(self, VarianceType::Learned | VarianceType::LearnedRange)
    }
}

impl SchedulerConfig {
    /// Reads and checks the text of a `scheduler_config.json`. A file without a class is DDIM's.
    ///
    /// Keys that have no influence on the class are not checked further, nor those that no scheduler knows.
    pub fn from_json(text: &str) -> Result<SchedulerConfig, SchedulerError> {
        SchedulerSettings::from_json(text)?.config()
    }

    /// What `class` reads in the keys of a file.
    pub(super) fn read(
        class: SchedulerClass,
        mut given: Map<String, Value>,
    ) -> Result<SchedulerConfig, SchedulerError> {
        use SchedulerClass::{Ddim, DdimInverse, Ddpm, DpmSinglestep, Heun, Kdpm2, Kdpm2Ancestral};
        use SchedulerClass::{Lcm, Pndm, Tcd, UniPc};

        let (named, class) = (class, class.base());
        replace_names(class, &mut given);
        let keys = Keys { class, map: &given };
        let num_train_timesteps = keys.int("num_train_timesteps", 1000, 1, MAX_TIMESTEPS)? as usize;
        let (beta_start, beta_end) = match class {
            Heun | Kdpm2 | Kdpm2Ancestral | Lcm | Tcd => (0.00085, 0.012),
            _ => (0.0001, 0.02),
        };
        let is_leading = matches!(class, Ddim | DdimInverse | Ddpm | Pndm | Lcm);
        let spacing = if is_leading { "leading" } else { "linspace" };
        let max_order = if class == UniPc { MAX_UNIPC_ORDER } else { 3 };
        for key in ["use_flow_sigmas", "use_dynamic_shifting"] {
            keys.refuse_true(key)?;
        }
        for key in ["solver_p", "shift_terminal", "tau_func"] {
            keys.refuse_value(key)?;
        }
        let config = SchedulerConfig {
            class: named,
            num_train_timesteps,
            beta_start: keys.beta("beta_start", beta_start)?,
            beta_end: keys.beta("beta_end", beta_end)?,
            beta_schedule: keys.beta_schedule(num_train_timesteps)?,
            rescale_betas_zero_snr: keys.bool("rescale_betas_zero_snr", false)?,
            prediction_type: prediction_type(&keys)?,
            thresholding: keys.thresholding()?,
            timestep_spacing: timestep_spacing(&keys, spacing)?,
            steps_offset: keys.int("steps_offset", 0, 0, num_train_timesteps as i64)?,
            set_alpha_to_one: keys.bool("set_alpha_to_one", class != Pndm)?,
            variance_type: keys.choice(
                "variance_type",
                "fixed_small",
                &[
                    ("fixed_small", VarianceType::FixedSmall),
                    ("fixed_small_log", VarianceType::FixedSmallLog),
                    ("fixed_large", VarianceType::FixedLarge),
                    ("fixed_large_log", VarianceType::FixedLargeLog),
                    ("learned", VarianceType::Learned),
                    ("learned_range", VarianceType::LearnedRange),
                ],
            )?,
            skip_prk_steps: keys.bool("skip_prk_steps", false)?,
            sigma_spacing: sigma_spacing(&keys)?,
            sigma_min: keys.positive("sigma_min")?,
            sigma_max: keys.positive("sigma_max")?,
            ends_at_sigma_min: ends_at_sigma_min(&keys)?,
            log_linear_sigmas: keys.choice(
                "interpolation_type",
                "linear",
                &[("linear", false), ("log_linear", true)],
            )?,
            continuous_timesteps: keys.choice(
                "timestep_type",
                "discrete",
                &[("discrete", false), ("continuous", true)],
            )?,
            solver_order: keys.int("solver_order", 2, 1, max_order)? as usize,
            algorithm: algorithm(&keys)?,
            solver_type: solver_type(&keys)?,
            lower_order_final: keys.bool("lower_order_final", class != DpmSinglestep)?,
            euler_at_final: keys.bool("euler_at_final", false)?,
            lambda_min_clipped: keys.lower_limit("lambda_min_clipped")?,
            predict_x0: keys.bool("predict_x0", true)?,
            disable_corrector: keys.indices("disable_corrector")?,
            original_inference_steps: keys.int("original_inference_steps", 50, 1, num_train_timesteps as i64)?
                as usize,
            timestep_scaling: keys.number("timestep_scaling", 10.0)?,
            predictor_order: keys.int("predictor_order", 2, 1, MAX_ADAMS_ORDER)? as usize,
            corrector_order: keys.int("corrector_order", 2, 1, MAX_ADAMS_ORDER)? as usize,
            sigma_data: keys.positive("sigma_data")?.unwrap_or(0.5),
            rho: keys.positive("rho")?.unwrap_or(7.0),
            exponential_sigmas: keys.choice(
                "sigma_schedule",
                "karras",
                &[("karras", false), ("exponential", true)],
            )?,
            given,
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that need more than one key.
    fn check(&self) -> Result<(), SchedulerError> {
        use SchedulerClass::{DpmMultistepInverse, DpmSinglestep, EdmDpmMultistep, SaSolver};

        let given = |key: &str| self.given.get(key).map_or("the default".into(), Value::to_string);
        let algorithm = given("algorithm_type");
        if self.rescale_betas_zero_snr && self.num_train_timesteps == 1 {
            return Err(refuse("rescale_betas_zero_snr", "true has nothing to rescale in a single timestep"));
        }
        if self.algorithm.predicts_noise() && !self.ends_at_sigma_min {
            let reason =
                format!("{} with algorithm_type {algorithm}; supported: sigma_min", given("final_sigmas_type"));
            return Err(refuse("final_sigmas_type", reason));
        }
        let has_no_third = match self.class {
            DpmMultistepInverse | EdmDpmMultistep => self.algorithm.is_stochastic(),
            _ => self.algorithm == Algorithm::SdeDpmSolver,
        };
        if has_no_third && self.solver_order == 3 {
            return Err(refuse("solver_order", format!("3 with algorithm_type {algorithm}; supported: 1, 2")));
        }
        let has_no_threshold = matches!(self.class, DpmSinglestep | SaSolver);
        if has_no_threshold && self.algorithm.predicts_noise() && self.thresholding != Thresholding::None {
            let reason = format!("true with algorithm_type {algorithm} is not supported");
            return Err(refuse("thresholding", reason));
        }
        if self.class == SaSolver && self.variance_type.is_learned() {
            return Err(refuse("variance_type", format!("{} is not supported", given("variance_type"))));
        }
        Ok(())
    }

    /// The class that runs.
    pub fn class(&self) -> SchedulerClass {
        self.class
    }

    /// Timesteps that the model was trained with.
    pub fn num_train_timesteps(&self) -> usize {
        self.num_train_timesteps
    }

    /// The configuration as a pipeline of diffusers corrects it.
    #[must_use]
    pub fn corrected(&self, correction: Correction) -> SchedulerConfig {
        let mut config = self.clone();
        if correction == Correction::None {
            return config;
        }
        config.steps_offset = 1;
        match (correction, config.thresholding) {
            (Correction::Inpainting, _) => config.skip_prk_steps = true,
            (_, Thresholding::Clip { .. }) => config.thresholding = Thresholding::None,
            _ => {}
        }
        correction.apply(&mut config.given);
        config
    }

    /// The configuration of another scheduler, as diffusers' `Other.from_config(scheduler.config)` makes it: keys that the
    /// file gives carry over, all others have the defaults of the other class.
    ///
    /// `name` is a [class](SchedulerClass::names) or a [short name](SchedulerClass::short_names), where those of DPM-Solver
    /// also set `algorithm_type` and second order; `:karras`, `:exponential` or `:beta` behind it sets the sigmas.
    pub fn with_scheduler(&self, name: &str) -> Result<SchedulerConfig, SchedulerError> {
        settings::read_named(name, self.given.clone())
    }
}

fn timestep_spacing(keys: &Keys<'_>, default: &str) -> Result<TimestepSpacing, SchedulerError> {
    let choices = [
        ("leading", TimestepSpacing::Leading),
        ("trailing", TimestepSpacing::Trailing),
        ("linspace", TimestepSpacing::Linspace),
    ];
    let n = if keys.class == SchedulerClass::DdimInverse { 2 } else { 3 };
    keys.choice("timestep_spacing", default, &choices[..n])
}

/// Whether the run's last sigma is the table's least: always for solvers that divide by it.
fn ends_at_sigma_min(keys: &Keys<'_>) -> Result<bool, SchedulerError> {
    use SchedulerClass::{Deis, DpmMultistepInverse, SaSolver};

    let always = matches!(keys.class, Deis | DpmMultistepInverse | SaSolver);
    let default = if always { "sigma_min" } else { "zero" };
    keys.choice("final_sigmas_type", default, &[("zero", false), ("sigma_min", true)])
}

fn prediction_type(keys: &Keys<'_>) -> Result<PredictionType, SchedulerError> {
    use SchedulerClass::{Euler, EulerAncestral, Kdpm2, Kdpm2Ancestral, Pndm};

    let mut choices = vec![("epsilon", PredictionType::Epsilon), ("v_prediction", PredictionType::VPrediction)];
    if !matches!(keys.class, EulerAncestral | Kdpm2 | Kdpm2Ancestral | Pndm) && !keys.class.is_edm() {
        choices.push(("sample", PredictionType::Sample));
    }
    if keys.class == Euler {
        choices.push(("original_sample", PredictionType::Sample));
    }
    keys.choice("prediction_type", "epsilon", &choices)
}

fn sigma_spacing(keys: &Keys<'_>) -> Result<SigmaSpacing, SchedulerError> {
    let karras = keys.bool("use_karras_sigmas", false)?;
    let exponential = keys.bool("use_exponential_sigmas", false)?;
    let beta = keys.bool("use_beta_sigmas", false)?;
    let lu = keys.bool("use_lu_lambdas", false)?;
    if u8::from(karras) + u8::from(exponential) + u8::from(beta) > 1 {
        let key = if karras { "use_karras_sigmas" } else { "use_exponential_sigmas" };
        return Err(refuse(key, "true, and so is another choice of sigmas"));
    }
    Ok(match (karras, lu, exponential, beta) {
        (true, ..) => SigmaSpacing::Karras,
        (_, true, ..) => SigmaSpacing::Lu,
        (_, _, true, _) => SigmaSpacing::Exponential,
        (.., true) => SigmaSpacing::Beta,
        _ => SigmaSpacing::Timesteps,
    })
}

/// Replaces names of other solvers by what they stand for, which carries over to further classes, as in diffusers.
fn replace_names(class: SchedulerClass, given: &mut Map<String, Value>) {
    let mut replace = |key: &str, names: &[&str], by: &str| {
        let found = given.get_mut(key).filter(|value| value.as_str().is_some_and(|name| names.contains(&name)));
        if let Some(value) = found {
            *value = by.into();
        }
    };
    use SchedulerClass::{
        DdimInverse, Deis, DpmMultistep, DpmMultistepInverse, DpmSinglestep, EdmDpmMultistep, UniPc,
    };
    match class {
        DpmMultistep | DpmMultistepInverse | DpmSinglestep | EdmDpmMultistep => {
            replace("algorithm_type", &["deis"], "dpmsolver++");
            replace("solver_type", &["logrho", "bh1", "bh2"], "midpoint");
        }
        Deis => {
            replace("algorithm_type", &["dpmsolver", "dpmsolver++"], "deis");
            replace("solver_type", &["midpoint", "heun", "bh1", "bh2"], "logrho");
        }
        UniPc => replace("solver_type", &["midpoint", "heun", "logrho"], "bh2"),
        // An older name.
        DdimInverse => {
            if let Some(value) = given.get("set_alpha_to_zero").filter(|value| !value.is_null()).cloned() {
                given.insert("set_alpha_to_one".into(), value);
            }
        }
        _ => {}
    }
}

fn algorithm(keys: &Keys<'_>) -> Result<Algorithm, SchedulerError> {
    use SchedulerClass::{Deis, DpmMultistep, DpmMultistepInverse, DpmSinglestep, EdmDpmMultistep, SaSolver};

    match keys.class {
        Deis => return keys.choice("algorithm_type", "deis", &[("deis", Algorithm::DpmSolver)]),
        SaSolver => {
            let choices =
                [("data_prediction", Algorithm::DpmSolverPp), ("noise_prediction", Algorithm::DpmSolver)];
            return keys.choice("algorithm_type", "data_prediction", &choices);
        }
        _ => {}
    }
    let choices = [
        ("dpmsolver++", Algorithm::DpmSolverPp),
        ("sde-dpmsolver++", Algorithm::SdeDpmSolverPp),
        ("dpmsolver", Algorithm::DpmSolver),
        ("sde-dpmsolver", Algorithm::SdeDpmSolver),
    ];
    let n = match keys.class {
        DpmMultistep | DpmMultistepInverse => 4,
        DpmSinglestep => 3,
        EdmDpmMultistep => 2,
        _ => 1,
    };
    keys.choice("algorithm_type", "dpmsolver++", &choices[..n])
}

fn solver_type(keys: &Keys<'_>) -> Result<SolverType, SchedulerError> {
    let (default, choices) = match keys.class {
        SchedulerClass::UniPc => ("bh2", vec![("bh1", SolverType::Bh1), ("bh2", SolverType::Bh2)]),
        SchedulerClass::Deis => ("logrho", vec![("logrho", SolverType::Midpoint)]),
        _ => ("midpoint", vec![("midpoint", SolverType::Midpoint), ("heun", SolverType::Heun)]),
    };
    keys.choice("solver_type", default, &choices)
}
