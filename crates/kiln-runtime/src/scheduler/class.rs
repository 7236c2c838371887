use std::fmt;

use serde_json::{Map, Value};

use super::SchedulerError;

/// The schedulers of diffusers that run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SchedulerClass {
    /// `DDIMScheduler` (Song et al. 2020).
    Ddim,
    /// `DDPMScheduler` (Ho et al. 2020).
    Ddpm,
    /// `PNDMScheduler` (Liu et al. 2022).
    Pndm,
    /// `EulerDiscreteScheduler` (Karras et al. 2022, algorithm 2).
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `HeunDiscreteScheduler` (Karras et al. 2022).
    Heun,
    /// `LMSDiscreteScheduler`, linear multistep.
    Lms,
    /// `KDPM2DiscreteScheduler`, DPM-Solver-2 as in k-diffusion.
    Kdpm2,
    /// `KDPM2AncestralDiscreteScheduler`.
    Kdpm2Ancestral,
    /// `DPMSolverMultistepScheduler` (Lu et al. 2022).
    DpmMultistep,
    /// `DPMSolverSinglestepScheduler`.
    DpmSinglestep,
    /// `UniPCMultistepScheduler` (Zhao et al. 2023).
    UniPc,
    /// `LCMScheduler` (Luo et al. 2023).
    Lcm,
}

use SchedulerClass::*;

const NAMES: [(SchedulerClass, &str); 13] = [
    (Ddim, "DDIMScheduler"),
    (Ddpm, "DDPMScheduler"),
    (Pndm, "PNDMScheduler"),
    (Euler, "EulerDiscreteScheduler"),
    (EulerAncestral, "EulerAncestralDiscreteScheduler"),
    (Heun, "HeunDiscreteScheduler"),
    (Lms, "LMSDiscreteScheduler"),
    (Kdpm2, "KDPM2DiscreteScheduler"),
    (Kdpm2Ancestral, "KDPM2AncestralDiscreteScheduler"),
    (DpmMultistep, "DPMSolverMultistepScheduler"),
    (DpmSinglestep, "DPMSolverSinglestepScheduler"),
    (UniPc, "UniPCMultistepScheduler"),
    (Lcm, "LCMScheduler"),
];

/// Short names, and the `algorithm_type` that those of DPM-Solver stand for.
const SHORT_NAMES: [(&str, SchedulerClass, Option<&str>); 14] = [
    ("ddim", Ddim, None),
    ("ddpm", Ddpm, None),
    ("pndm", Pndm, None),
    ("euler", Euler, None),
    ("euler-a", EulerAncestral, None),
    ("heun", Heun, None),
    ("lms", Lms, None),
    ("kdpm2", Kdpm2, None),
    ("kdpm2-a", Kdpm2Ancestral, None),
    ("dpm++2m", DpmMultistep, Some("dpmsolver++")),
    ("dpm++2m-sde", DpmMultistep, Some("sde-dpmsolver++")),
    ("dpm++2s", DpmSinglestep, Some("dpmsolver++")),
    ("unipc", UniPc, None),
    ("lcm", Lcm, None),
];

const SIGMA_SPACINGS: [(&str, &str); 3] =
    [("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas"), ("beta", "use_beta_sigmas")];

impl SchedulerClass {
    /// The class of that name in diffusers.
    pub fn from_name(name: &str) -> Option<SchedulerClass> {
        NAMES.iter().find(|(_, found)| *found == name).map(|(class, _)| *class)
    }

    /// The name of the class in diffusers.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(class, _)| *class == self).map_or("", |(_, name)| name)
    }

    /// All names of classes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(_, name)| *name)
    }

    /// All short names that [`SchedulerConfig::with_scheduler`](super::SchedulerConfig::with_scheduler) knows.
    pub fn short_names() -> impl Iterator<Item = &'static str> {
        SHORT_NAMES.iter().map(|(name, ..)| *name)
    }

    /// The class that a name stands for, as [`SchedulerConfig::with_scheduler`](super::SchedulerConfig::with_scheduler) reads
    /// it.
    pub fn named(name: &str) -> Result<SchedulerClass, SchedulerError> {
        by_name(name).map(|(class, _)| class)
    }

    /// Whether a key of the configuration has an influence on this class.
    pub(super) fn uses(self, key: &str) -> bool {
        let k_diffusion = matches!(self, Euler | Heun | Lms | Kdpm2 | Kdpm2Ancestral);
        let solver = matches!(self, DpmMultistep | DpmSinglestep | UniPc);
        match key {
            "num_train_timesteps"
            | "beta_start"
            | "beta_end"
            | "beta_schedule"
            | "trained_betas"
            | "prediction_type" => true,
            "timestep_spacing" | "steps_offset" => !matches!(self, DpmSinglestep | Lcm),
            // diffusers looks the range up in the whole configuration, whichever class it is for.
            "use_karras_sigmas" | "use_exponential_sigmas" | "use_beta_sigmas" | "sigma_min" | "sigma_max" => {
                k_diffusion || solver
            }
            "thresholding" | "dynamic_thresholding_ratio" | "sample_max_value" => {
                solver || matches!(self, Ddim | Ddpm | Lcm)
            }
            "clip_sample" | "clip_sample_range" => matches!(self, Ddim | Ddpm | Heun | Lcm),
            "rescale_betas_zero_snr" => {
                matches!(self, Ddim | Ddpm | Euler | EulerAncestral | DpmMultistep | UniPc | Lcm)
            }
            "set_alpha_to_one" => matches!(self, Ddim | Pndm | Lcm),
            "final_sigmas_type" => solver || self == Euler,
            "variance_type" => matches!(self, Ddpm | DpmMultistep | DpmSinglestep),
            "skip_prk_steps" => self == Pndm,
            "interpolation_type" | "timestep_type" => self == Euler,
            "solver_order" | "solver_type" | "lower_order_final" | "use_flow_sigmas" => solver,
            "algorithm_type" | "lambda_min_clipped" => matches!(self, DpmMultistep | DpmSinglestep),
            "euler_at_final" | "use_lu_lambdas" => self == DpmMultistep,
            "predict_x0" | "disable_corrector" | "solver_p" | "use_dynamic_shifting" | "shift_terminal" => {
                self == UniPc
            }
            "original_inference_steps" | "timestep_scaling" => self == Lcm,
            _ => false,
        }
    }
}

impl fmt::Display for SchedulerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The class that a name such as `dpm++2m:karras` stands for, and the keys that it sets.
pub(super) fn by_name(name: &str) -> Result<(SchedulerClass, Map<String, Value>), SchedulerError> {
    let (base, suffix) = name.split_once(':').map_or((name, None), |(base, suffix)| (base, Some(suffix)));
    let short = SHORT_NAMES.iter().find(|(short, ..)| *short == base);
    let found = short
        .map(|&(_, class, algorithm)| (class, algorithm))
        .or_else(|| SchedulerClass::from_name(base).map(|class| (class, None)));
    let Some((class, algorithm)) = found else {
        let names: Vec<&str> = SchedulerClass::short_names().chain(SchedulerClass::names()).collect();
        return Err(SchedulerError::config(
            "scheduler",
            format!("'{base}' is not supported; supported: {}", names.join(", ")),
        ));
    };
    let mut keys = Map::new();
    if let Some(algorithm) = algorithm {
        keys.insert("algorithm_type".into(), algorithm.into());
        keys.insert("solver_order".into(), 2.into());
    }
    if let Some(suffix) = suffix {
        let known = SIGMA_SPACINGS.iter().any(|(spacing, _)| *spacing == suffix);
        if !known || !class.uses("use_karras_sigmas") {
            let reason = match known {
                true => format!("'{name}': {class} has no choice of sigmas"),
                false => format!("'{name}': sigmas are karras, exponential or beta"),
            };
            return Err(SchedulerError::config("scheduler", reason));
        }
        for (spacing, key) in SIGMA_SPACINGS {
            keys.insert(key.into(), (spacing == suffix).into());
        }
    }
    Ok((class, keys))
}
