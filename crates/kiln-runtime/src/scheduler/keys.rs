//! Typed reading of a configuration's keys.

use serde_json::{Map, Value};

use super::alphas::{BetaSchedule, is_beta};
use super::{SchedulerClass, SchedulerError, Thresholding};

/// Keys that schedulers of diffusers read which pictures are drawn with (their `__init__`), also those that do not run
/// here.
const KNOWN: [&str; 50] = [
    "algorithm_type",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "corrector_order",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "noise_sampler_seed",
    "num_train_timesteps",
    "original_inference_steps",
    "predict_x0",
    "prediction_type",
    "predictor_order",
    "rescale_betas_zero_snr",
    "rho",
    "sample_max_value",
    "set_alpha_to_one",
    "set_alpha_to_zero",
    "shift_terminal",
    "sigma_data",
    "sigma_max",
    "sigma_min",
    "sigma_schedule",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "tau_func",
    "thresholding",
    "time_shift_type",
    "timestep_scaling",
    "timestep_spacing",
    "timestep_type",
    "trained_betas",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

/// Whether some scheduler reads a key, or whether it is private.
pub(super) fn is_known(key: &str) -> bool {
    key.starts_with('_') || KNOWN.contains(&key)
}

pub(super) fn refuse(key: &str, reason: impl Into<String>) -> SchedulerError {
    SchedulerError::config(key, reason)
}

/// The JSON object in `text`, which may hold the numbers that Python's `json` writes and JSON does not know.
pub(super) fn object(text: &str) -> Result<Map<String, Value>, SchedulerError> {
    let value: Value =
        serde_json::from_str(&quote_non_finite(text)).map_err(|e| refuse("(root)", e.to_string()))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(refuse("(root)", "is not a JSON object")),
    }
}

/// Puts numbers such as `-Infinity` in quotes.
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

/// Keys as one class sees them: those that it does not use are not there.
pub(super) struct Keys<'a> {
    pub(super) class: SchedulerClass,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null() && self.class.uses(key))
    }

    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64, SchedulerError> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|&n| (n as f32).is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(refuse(key, format!("{value} is not a finite number"))),
        }
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, SchedulerError> {
        match self.optional_number(key)? {
            Some(value) if value as f32 <= 0.0 => Err(refuse(key, format!("{value} is not a positive number"))),
            value => Ok(value),
        }
    }

    pub(super) fn beta(&self, key: &str, default: f64) -> Result<f64, SchedulerError> {
        let beta = self.number(key, default)?;
        match is_beta(beta) {
            true => Ok(beta),
            false => Err(refuse(key, format!("{beta} is not a number above 0 and up to 1"))),
        }
    }

    pub(super) fn int(&self, key: &str, default: i64, min: i64, max: i64) -> Result<i64, SchedulerError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value.as_i64().filter(|n| (min..=max).contains(n));
            number.ok_or_else(|| refuse(key, format!("{value} is not a whole number from {min} to {max}")))
        })
    }

    pub(super) fn bool(&self, key: &str, default: bool) -> Result<bool, SchedulerError> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| refuse(key, format!("{value} is neither true nor false")))
        })
    }

    fn name(&self, key: &str, default: &'a str) -> Result<&'a str, SchedulerError> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_str().ok_or_else(|| refuse(key, format!("{value} is not a name")))
        })
    }

    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        default: &'a str,
        choices: &[(&str, T)],
    ) -> Result<T, SchedulerError> {
        let found = self.name(key, default)?;
        choices.iter().find(|(name, _)| *name == found).map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            refuse(key, format!("'{found}' is not supported; supported: {}", names.join(", ")))
        })
    }

    pub(super) fn beta_schedule(&self, n: usize) -> Result<BetaSchedule, SchedulerError> {
        let Some(betas) = self.get("trained_betas") else {
            let is_scaled = matches!(self.class, SchedulerClass::Lcm | SchedulerClass::Tcd);
            let default = if is_scaled { "scaled_linear" } else { "linear" };
            let mut choices = vec![("linear", 0), ("scaled_linear", 1), ("squaredcos_cap_v2", 2)];
            match self.class {
                SchedulerClass::Ddpm => choices.extend([("laplace", 3), ("sigmoid", 4)]),
                SchedulerClass::Heun => choices.push(("exp", 5)),
                _ => {}
            }
            return Ok(match self.choice("beta_schedule", default, &choices)? {
                0 => BetaSchedule::Linear,
                1 => BetaSchedule::ScaledLinear,
                2 => BetaSchedule::SquaredCosCapV2,
                3 => BetaSchedule::Laplace,
                4 => BetaSchedule::Sigmoid,
                _ => BetaSchedule::Exp,
            });
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

    pub(super) fn thresholding(&self) -> Result<Thresholding, SchedulerError> {
        use SchedulerClass::{Ddim, DdimInverse, Ddpm};

        let range = self.positive("clip_sample_range")?.unwrap_or(1.0) as f32;
        let ratio = self.number("dynamic_thresholding_ratio", 0.995)? as f32;
        let max = self.positive("sample_max_value")?.unwrap_or(1.0) as f32;
        if !(0.0..=1.0).contains(&ratio) {
            return Err(refuse("dynamic_thresholding_ratio", format!("{ratio} is not a number from 0 to 1")));
        }
        let clips = matches!(self.class, Ddim | DdimInverse | Ddpm);
        let clips = self.bool("clip_sample", clips)?;
        Ok(match (self.bool("thresholding", false)?, clips) {
            (true, _) => Thresholding::Dynamic { ratio, max },
            (false, true) => Thresholding::Clip { range },
            (false, false) => Thresholding::None,
        })
    }

    /// `disable_corrector`: indices of steps, of which those past the end have no influence.
    pub(super) fn indices(&self, key: &str) -> Result<Vec<usize>, SchedulerError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list: Option<Vec<usize>> = value
            .as_array()
            .and_then(|list| list.iter().map(|i| i.as_u64().and_then(|i| usize::try_from(i).ok())).collect());
        list.ok_or_else(|| refuse(key, format!("{value} is not a list of indices")))
    }

    /// A number or minus infinity.
    pub(super) fn lower_limit(&self, key: &str) -> Result<f64, SchedulerError> {
        match self.get(key) {
            Some(Value::String(text)) if text == "-Infinity" => Ok(f64::NEG_INFINITY),
            _ => self.number(key, f64::NEG_INFINITY),
        }
    }

    /// Refuses a switch that is on.
    pub(super) fn refuse_true(&self, key: &str) -> Result<(), SchedulerError> {
        match self.bool(key, false)? {
            true => Err(refuse(key, format!("true is not supported for {}", self.class))),
            false => Ok(()),
        }
    }

    /// Refuses any value.
    pub(super) fn refuse_value(&self, key: &str) -> Result<(), SchedulerError> {
        match self.get(key) {
            Some(value) => Err(refuse(key, format!("{value} is not supported for {}", self.class))),
            None => Ok(()),
        }
    }
}
