use serde_json::{Map, Value};

use super::SchedulerError;

/// Most timesteps that a schedule may have.
const MAX_TIMESTEPS: u64 = 100_000;

/// Keys of other diffusers schedulers that have no influence on DDIM, which the pipeline runs whatever class the file names.
const WITHOUT_INFLUENCE: [&str; 35] = [
    "algorithm_type",
    "dynamic_thresholding_type",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "original_inference_steps",
    "predict_x0",
    "rho",
    "s_churn",
    "s_noise",
    "s_tmax",
    "s_tmin",
    "shift_terminal",
    "sigma_data",
    "sigma_max",
    "sigma_min",
    "sigma_schedule",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "disable_corrector",
    "time_shift_type",
    "timestep_scaling",
    "timestep_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

/// How the noise grows over the timesteps.
#[derive(Clone, Debug, PartialEq)]
pub enum BetaSchedule {
    /// Evenly from `beta_start` to `beta_end`.
    Linear,
    /// Evenly in the square root.
    ScaledLinear,
    /// Glide's cosine schedule.
    SquaredCosCapV2,
    /// One beta per timestep.
    Trained(Vec<f32>),
}

/// What the UNet predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The clean latents.
    Sample,
    /// Velocity (Salimans, Ho 2022).
    VPrediction,
}

/// Which timesteps are visited (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Evenly, both ends included.
    Linspace,
    /// Multiples of a step, from the first.
    Leading,
    /// Multiples of a step, from the last.
    Trailing,
}

/// How predicted clean latents are kept in range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Thresholding {
    /// They are not.
    None,
    /// Clamped to `[-range, range]`.
    Clip {
        /// `clip_sample_range`.
        range: f32,
    },
    /// By a quantile of each sample (Saharia et al. 2022).
    Dynamic {
        /// `dynamic_thresholding_ratio`.
        ratio: f32,
        /// `sample_max_value`.
        max: f32,
    },
}

/// `scheduler_config.json`, with the defaults of diffusers' `DDIMScheduler`.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Class that the file names.
    pub class: String,
    /// Number of timesteps that the model was trained with.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// How beta goes from one to the other.
    pub beta_schedule: BetaSchedule,
    /// How predicted clean latents are kept in range.
    pub thresholding: Thresholding,
    /// Whether the step after the last ends at no noise at all instead of the first timestep's.
    pub set_alpha_to_one: bool,
    /// Added to every timestep under leading spacing.
    pub steps_offset: i64,
    /// What the UNet predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps are visited.
    pub timestep_spacing: TimestepSpacing,
    /// Whether the last timestep is rescaled to pure noise (Lin et al. 2023).
    pub rescale_betas_zero_snr: bool,
}

impl SchedulerConfig {
    /// Reads and checks the text of a `scheduler_config.json`.
    pub fn from_json(text: &str) -> Result<SchedulerConfig, SchedulerError> {
        let value: Value =
            serde_json::from_str(&quote_non_finite(text)).map_err(|e| refuse("(root)", e.to_string()))?;
        let Value::Object(map) = value else { return Err(refuse("(root)", "is not a JSON object")) };
        let keys = Keys(&map);
        let class = keys.name("_class_name", "DDIMScheduler")?;
        if class.starts_with("FlowMatch") {
            return Err(refuse(
                "_class_name",
                format!("'{class}' has no noise schedule that DDIM could follow"),
            ));
        }
        let num_train_timesteps = keys.int("num_train_timesteps", 1000, 1, MAX_TIMESTEPS as i64)? as usize;
        let config = SchedulerConfig {
            class: class.into(),
            num_train_timesteps,
            beta_start: keys.beta("beta_start", 1e-4)?,
            beta_end: keys.beta("beta_end", 0.02)?,
            beta_schedule: keys.beta_schedule(num_train_timesteps)?,
            thresholding: keys.thresholding()?,
            set_alpha_to_one: keys.bool("set_alpha_to_one", true)?,
            steps_offset: keys.int("steps_offset", 0, 0, num_train_timesteps as i64)?,
            prediction_type: keys.choice(
                "prediction_type",
                "epsilon",
                &[
                    ("epsilon", PredictionType::Epsilon),
                    ("sample", PredictionType::Sample),
                    ("v_prediction", PredictionType::VPrediction),
                ],
            )?,
            timestep_spacing: keys.choice(
                "timestep_spacing",
                "leading",
                &[
                    ("linspace", TimestepSpacing::Linspace),
                    ("leading", TimestepSpacing::Leading),
                    ("trailing", TimestepSpacing::Trailing),
                ],
            )?,
            rescale_betas_zero_snr: keys.bool("rescale_betas_zero_snr", false)?,
        };
        keys.refuse_unknown()?;
        if config.rescale_betas_zero_snr && num_train_timesteps == 1 {
            return Err(refuse("rescale_betas_zero_snr", "true has nothing to rescale in a single timestep"));
        }
        Ok(config)
    }
}

/// Puts the numbers that Python's `json` writes and JSON does not know, such as `-Infinity`, in quotes.
fn quote_non_finite(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        let number = ["-Infinity", "Infinity", "NaN"].into_iter().find(|number| rest.starts_with(number));
        let (taken, left) = match number.filter(|_| !in_string) {
            Some(number) => rest.split_at(number.len()),
            None if in_string && c == '\\' => rest.split_at(rest.chars().take(2).map(char::len_utf8).sum()),
            None => rest.split_at(c.len_utf8()),
        };
        match number.filter(|_| !in_string) {
            Some(number) => quoted.extend(["\"", number, "\""]),
            None => quoted.push_str(taken),
        }
        in_string ^= c == '"';
        rest = left;
    }
    quoted
}

impl SchedulerConfig {
    /// The configuration as diffusers' `StableDiffusionPipeline` corrects it: `clip_sample` off and `steps_offset` 1.
    #[must_use]
    pub fn for_stable_diffusion(&self) -> SchedulerConfig {
        let thresholding = match self.thresholding {
            Thresholding::Clip { .. } => Thresholding::None,
            other => other,
        };
        SchedulerConfig { thresholding, steps_offset: 1, ..self.clone() }
    }
}

fn refuse(key: &str, reason: impl Into<String>) -> SchedulerError {
    SchedulerError::Config { key: key.into(), reason: reason.into() }
}

/// Whether a beta leaves a variance to divide by and no negative signal.
fn is_beta(beta: f64) -> bool {
    // Below half of f32's epsilon 1 - beta is 1 in single precision.
    beta > f64::from(f32::EPSILON) / 2.0 && beta <= 1.0
}

struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, SchedulerError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value.as_f64().filter(|&n| (n as f32).is_finite());
            number.ok_or_else(|| refuse(key, format!("{value} is not a finite number")))
        })
    }

    fn beta(&self, key: &str, default: f64) -> Result<f64, SchedulerError> {
        let beta = self.number(key, default)?;
        match is_beta(beta) {
            true => Ok(beta),
            false => Err(refuse(key, format!("{beta} is not a number above 0 and up to 1"))),
        }
    }

    fn int(&self, key: &str, default: i64, min: i64, max: i64) -> Result<i64, SchedulerError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value.as_i64().filter(|n| (min..=max).contains(n));
            number.ok_or_else(|| refuse(key, format!("{value} is not a whole number from {min} to {max}")))
        })
    }

    fn bool(&self, key: &str, default: bool) -> Result<bool, SchedulerError> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| refuse(key, format!("{value} is neither true nor false")))
        })
    }

    fn name(&self, key: &str, default: &'a str) -> Result<&'a str, SchedulerError> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_str().ok_or_else(|| refuse(key, format!("{value} is not a name")))
        })
    }

    fn choice<T: Copy>(&self, key: &str, default: &'a str, choices: &[(&str, T)]) -> Result<T, SchedulerError> {
        let found = self.name(key, default)?;
        choices.iter().find(|(name, _)| *name == found).map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            refuse(key, format!("'{found}' is not supported; supported: {}", names.join(", ")))
        })
    }

    fn beta_schedule(&self, n: usize) -> Result<BetaSchedule, SchedulerError> {
        let Some(betas) = self.get("trained_betas") else {
            return match self.name("beta_schedule", "linear")? {
                "linear" => Ok(BetaSchedule::Linear),
                "scaled_linear" => Ok(BetaSchedule::ScaledLinear),
                "squaredcos_cap_v2" => Ok(BetaSchedule::SquaredCosCapV2),
                other => Err(refuse(
                    "beta_schedule",
                    format!("'{other}' is not supported; supported: linear, scaled_linear, squaredcos_cap_v2"),
                )),
            };
        };
        let Some(betas) = betas.as_array().filter(|list| list.len() == n) else {
            return Err(refuse("trained_betas", format!("is not a list of {n} numbers")));
        };
        let read = |beta: &Value| {
            let number = beta.as_f64().filter(|&b| is_beta(b)).map(|b| b as f32);
            number.ok_or_else(|| refuse("trained_betas", format!("{beta} is not a number above 0 and up to 1")))
        };
        Ok(BetaSchedule::Trained(betas.iter().map(read).collect::<Result<_, _>>()?))
    }

    fn thresholding(&self) -> Result<Thresholding, SchedulerError> {
        let range = self.number("clip_sample_range", 1.0)? as f32;
        let ratio = self.number("dynamic_thresholding_ratio", 0.995)? as f32;
        let max = self.number("sample_max_value", 1.0)? as f32;
        for (key, value) in [("clip_sample_range", range), ("sample_max_value", max)] {
            if value <= 0.0 {
                return Err(refuse(key, format!("{value} is not a positive number")));
            }
        }
        if !(0.0..=1.0).contains(&ratio) {
            return Err(refuse("dynamic_thresholding_ratio", format!("{ratio} is not a number from 0 to 1")));
        }
        let clips = self.bool("clip_sample", true)?;
        Ok(match (self.bool("thresholding", false)?, clips) {
            (true, _) => Thresholding::Dynamic { ratio, max },
            (false, true) => Thresholding::Clip { range },
            (false, false) => Thresholding::None,
        })
    }

    fn refuse_unknown(&self) -> Result<(), SchedulerError> {
        const READ: [&str; 14] = [
            "beta_end",
            "beta_schedule",
            "beta_start",
            "clip_sample",
            "clip_sample_range",
            "dynamic_thresholding_ratio",
            "num_train_timesteps",
            "prediction_type",
            "rescale_betas_zero_snr",
            "sample_max_value",
            "set_alpha_to_one",
            "steps_offset",
            "thresholding",
            "timestep_spacing",
        ];
        let known = |key: &str| {
            key.starts_with('_')
                || key == "trained_betas"
                || READ.contains(&key)
                || WITHOUT_INFLUENCE.contains(&key)
        };
        match self.0.iter().find(|(key, value)| !known(key) && !value.is_null()) {
            None => Ok(()),
            Some((key, value)) => Err(refuse(key, format!("unknown key with value {value}"))),
        }
    }
}
