use serde_json::{Map, Value};

use super::alphas::BetaSchedule;
use super::class::{self, SchedulerClass};
use super::dpm::{Algorithm, SolverType};
use super::keys::{self, Keys, refuse};
use super::sigmas::SigmaSpacing;
use super::{PredictionType, SchedulerError, Thresholding, TimestepSpacing};

/// Most timesteps that a schedule may have.
const MAX_TIMESTEPS: i64 = 100_000;

/// Highest order of UniPC; its linear systems lose their meaning in single precision long before.
const MAX_UNIPC_ORDER: i64 = 9;

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
    /// Keys that have no influence on the class are not checked further; keys that no scheduler knows are refused.
    pub fn from_json(text: &str) -> Result<SchedulerConfig, SchedulerError> {
        let mut given = keys::object(text)?;
        let class = match given.get("_class_name") {
            None | Some(Value::Null) => SchedulerClass::Ddim,
            Some(Value::String(name)) => SchedulerClass::from_name(name).ok_or_else(|| {
                let names: Vec<&str> = SchedulerClass::names().collect();
                refuse("_class_name", format!("'{name}' is not supported; supported: {}", names.join(", ")))
            })?,
            Some(other) => return Err(refuse("_class_name", format!("{other} is not a name"))),
        };
        if let Some(Value::Array(defaults)) = given.remove("_use_default_values") {
            given.retain(|key, _| !defaults.iter().any(|default| default == key));
        }
        SchedulerConfig::read(class, given)
    }

    fn read(class: SchedulerClass, mut given: Map<String, Value>) -> Result<SchedulerConfig, SchedulerError> {
        use SchedulerClass::{Ddim, Ddpm, DpmSinglestep, Heun, Kdpm2, Kdpm2Ancestral, Lcm, Pndm, UniPc};

        replace_names(class, &mut given);
        let keys = Keys { class, map: &given };
        keys.refuse_unknown()?;
        let num_train_timesteps = keys.int("num_train_timesteps", 1000, 1, MAX_TIMESTEPS)? as usize;
        let (beta_start, beta_end) = match class {
            Heun | Kdpm2 | Kdpm2Ancestral | Lcm => (0.00085, 0.012),
            _ => (0.0001, 0.02),
        };
        let spacing = if matches!(class, Ddim | Ddpm | Pndm | Lcm) { "leading" } else { "linspace" };
        let max_order = if class == UniPc { MAX_UNIPC_ORDER } else { 3 };
        for key in ["use_flow_sigmas", "use_dynamic_shifting"] {
            keys.refuse_true(key)?;
        }
        for key in ["solver_p", "shift_terminal"] {
            keys.refuse_value(key)?;
        }
        let config = SchedulerConfig {
            class,
            num_train_timesteps,
            beta_start: keys.beta("beta_start", beta_start)?,
            beta_end: keys.beta("beta_end", beta_end)?,
            beta_schedule: keys.beta_schedule(num_train_timesteps)?,
            rescale_betas_zero_snr: keys.bool("rescale_betas_zero_snr", false)?,
            prediction_type: prediction_type(&keys)?,
            thresholding: keys.thresholding()?,
            timestep_spacing: keys.choice(
                "timestep_spacing",
                spacing,
                &[
                    ("linspace", TimestepSpacing::Linspace),
                    ("leading", TimestepSpacing::Leading),
                    ("trailing", TimestepSpacing::Trailing),
                ],
            )?,
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
            ends_at_sigma_min: keys.choice(
                "final_sigmas_type",
                "zero",
                &[("zero", false), ("sigma_min", true)],
            )?,
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
            given,
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that need more than one key.
    fn check(&self) -> Result<(), SchedulerError> {
        let given = |key: &str| self.given.get(key).map_or("the default".into(), Value::to_string);
        if self.rescale_betas_zero_snr && self.num_train_timesteps == 1 {
            return Err(refuse("rescale_betas_zero_snr", "true has nothing to rescale in a single timestep"));
        }
        if self.algorithm.predicts_noise() && !self.ends_at_sigma_min {
            let reason = format!(
                "{} with algorithm_type {}; supported: sigma_min",
                given("final_sigmas_type"),
                given("algorithm_type")
            );
            return Err(refuse("final_sigmas_type", reason));
        }
        if self.algorithm == Algorithm::SdeDpmSolver && self.solver_order == 3 {
            return Err(refuse("solver_order", "3 with algorithm_type \"sde-dpmsolver\"; supported: 1, 2"));
        }
        if self.class == SchedulerClass::DpmSinglestep
            && self.algorithm.predicts_noise()
            && self.thresholding != Thresholding::None
        {
            return Err(refuse("thresholding", "true with algorithm_type \"dpmsolver\" is not supported"));
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

    /// The configuration as diffusers' `StableDiffusionPipeline` corrects it: `clip_sample` off and `steps_offset` 1.
    ///
    /// As there, a correction of a value that the file does not give is not carried over to another class.
    #[must_use]
    pub fn for_stable_diffusion(&self) -> SchedulerConfig {
        let mut config = self.with_steps_offset(1);
        if let Thresholding::Clip { .. } = config.thresholding {
            config.thresholding = Thresholding::None;
        }
        if let Some(clips) = config.given.get_mut("clip_sample").filter(|clips| **clips == Value::Bool(true)) {
            *clips = false.into();
        }
        config
    }

    /// The configuration as diffusers' `StableDiffusionInpaintPipeline` corrects it: `steps_offset` 1 and `skip_prk_steps`
    /// on.
    #[must_use]
    pub fn for_inpainting(&self) -> SchedulerConfig {
        let mut config = self.with_steps_offset(1);
        config.skip_prk_steps = true;
        if let Some(skips) = config.given.get_mut("skip_prk_steps") {
            *skips = true.into();
        }
        config
    }

    fn with_steps_offset(&self, offset: i64) -> SchedulerConfig {
        let mut config = self.clone();
        config.steps_offset = offset;
        if let Some(given) = config.given.get_mut("steps_offset") {
            *given = offset.into();
        }
        config
    }

    /// The configuration of another scheduler, as diffusers' `Other.from_config(scheduler.config)` makes it: keys that the
    /// file gives carry over, all others have the defaults of the other class.
    ///
    /// `name` is a [class](SchedulerClass::names) or a [short name](SchedulerClass::short_names), where those of DPM-Solver
    /// also set `algorithm_type` and second order; `:karras`, `:exponential` or `:beta` behind it sets the sigmas.
    pub fn with_scheduler(&self, name: &str) -> Result<SchedulerConfig, SchedulerError> {
        let (class, set) = class::by_name(name)?;
        let mut given = self.given.clone();
        given.extend(set);
        SchedulerConfig::read(class, given)
    }
}

fn prediction_type(keys: &Keys<'_>) -> Result<PredictionType, SchedulerError> {
    use SchedulerClass::{Euler, EulerAncestral, Kdpm2, Kdpm2Ancestral, Pndm};

    let mut choices = vec![("epsilon", PredictionType::Epsilon), ("v_prediction", PredictionType::VPrediction)];
    if !matches!(keys.class, EulerAncestral | Kdpm2 | Kdpm2Ancestral | Pndm) {
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
    match class {
        SchedulerClass::DpmMultistep | SchedulerClass::DpmSinglestep => {
            replace("algorithm_type", &["deis"], "dpmsolver++");
            replace("solver_type", &["logrho", "bh1", "bh2"], "midpoint");
        }
        SchedulerClass::UniPc => replace("solver_type", &["midpoint", "heun", "logrho"], "bh2"),
        _ => {}
    }
}

fn algorithm(keys: &Keys<'_>) -> Result<Algorithm, SchedulerError> {
    let mut choices = vec![
        ("dpmsolver++", Algorithm::DpmSolverPp),
        ("sde-dpmsolver++", Algorithm::SdeDpmSolverPp),
        ("dpmsolver", Algorithm::DpmSolver),
    ];
    if keys.class == SchedulerClass::DpmMultistep {
        choices.push(("sde-dpmsolver", Algorithm::SdeDpmSolver));
    }
    keys.choice("algorithm_type", "dpmsolver++", &choices)
}

fn solver_type(keys: &Keys<'_>) -> Result<SolverType, SchedulerError> {
    match keys.class {
        SchedulerClass::UniPc => {
            keys.choice("solver_type", "bh2", &[("bh1", SolverType::Bh1), ("bh2", SolverType::Bh2)])
        }
        _ => keys.choice(
            "solver_type",
            "midpoint",
            &[("midpoint", SolverType::Midpoint), ("heun", SolverType::Heun)],
        ),
    }
}
