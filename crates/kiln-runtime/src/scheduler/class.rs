use std::fmt;

use serde_json::{Map, Value};

use super::{SchedulerError, elsewhere};

/// The schedulers of diffusers that run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SchedulerClass {
    /// `DDIMScheduler` (Song et al. 2020).
    Ddim,
    /// `DDIMParallelScheduler`, which draws what [`Ddim`](SchedulerClass::Ddim) draws.
    DdimParallel,
    /// `DDIMInverseScheduler`: DDIM from latents to noise.
    DdimInverse,
    /// `DDPMScheduler` (Ho et al. 2020).
    Ddpm,
    /// `DDPMParallelScheduler`, which draws what [`Ddpm`](SchedulerClass::Ddpm) draws.
    DdpmParallel,
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
    /// `DPMSolverMultistepInverseScheduler`: DPM-Solver from latents to noise.
    DpmMultistepInverse,
    /// `DPMSolverSinglestepScheduler`.
    DpmSinglestep,
    /// `DEISMultistepScheduler` (Zhang, Chen 2022).
    Deis,
    /// `UniPCMultistepScheduler` (Zhao et al. 2023).
    UniPc,
    /// `SASolverScheduler` (Xue et al. 2023).
    SaSolver,
    /// `LCMScheduler` (Luo et al. 2023).
    Lcm,
    /// `TCDScheduler` (Zheng et al. 2024).
    Tcd,
    /// `EDMEulerScheduler`: Euler's method with the preconditioning of Karras et al. 2022.
    EdmEuler,
    /// `EDMDPMSolverMultistepScheduler`: DPM-Solver++ with the same.
    EdmDpmMultistep,
}

use SchedulerClass::*;

const NAMES: [(SchedulerClass, &str); 22] = [
    (Ddim, "DDIMScheduler"),
    (DdimParallel, "DDIMParallelScheduler"),
    (DdimInverse, "DDIMInverseScheduler"),
    (Ddpm, "DDPMScheduler"),
    (DdpmParallel, "DDPMParallelScheduler"),
    (Pndm, "PNDMScheduler"),
    (Euler, "EulerDiscreteScheduler"),
    (EulerAncestral, "EulerAncestralDiscreteScheduler"),
    (Heun, "HeunDiscreteScheduler"),
    (Lms, "LMSDiscreteScheduler"),
    (Kdpm2, "KDPM2DiscreteScheduler"),
    (Kdpm2Ancestral, "KDPM2AncestralDiscreteScheduler"),
    (DpmMultistep, "DPMSolverMultistepScheduler"),
    (DpmMultistepInverse, "DPMSolverMultistepInverseScheduler"),
    (DpmSinglestep, "DPMSolverSinglestepScheduler"),
    (Deis, "DEISMultistepScheduler"),
    (UniPc, "UniPCMultistepScheduler"),
    (SaSolver, "SASolverScheduler"),
    (Lcm, "LCMScheduler"),
    (Tcd, "TCDScheduler"),
    (EdmEuler, "EDMEulerScheduler"),
    (EdmDpmMultistep, "EDMDPMSolverMultistepScheduler"),
];

/// What a short name sets beside the class.
#[derive(Clone, Copy)]
enum Variant {
    /// Nothing.
    Own,
    /// A solver of the second order with this `algorithm_type`.
    Algorithm(&'static str),
    /// No Runge-Kutta start.
    SkipPrkSteps,
}

use Variant::{Algorithm, Own, SkipPrkSteps};

const SHORT_NAMES: [(&str, SchedulerClass, Variant); 20] = [
    ("ddim", Ddim, Own),
    ("ddpm", Ddpm, Own),
    ("pndm", Pndm, Own),
    ("plms", Pndm, SkipPrkSteps),
    ("euler", Euler, Own),
    ("euler-a", EulerAncestral, Own),
    ("heun", Heun, Own),
    ("lms", Lms, Own),
    ("kdpm2", Kdpm2, Own),
    ("kdpm2-a", Kdpm2Ancestral, Own),
    ("dpm++2m", DpmMultistep, Algorithm("dpmsolver++")),
    ("dpm++2m-sde", DpmMultistep, Algorithm("sde-dpmsolver++")),
    ("dpm++2s", DpmSinglestep, Algorithm("dpmsolver++")),
    ("deis", Deis, Algorithm("deis")),
    ("unipc", UniPc, Own),
    ("sa-solver", SaSolver, Algorithm("data_prediction")),
    ("lcm", Lcm, Own),
    ("tcd", Tcd, Own),
    ("edm-euler", EdmEuler, Own),
    ("edm-dpm++2m", EdmDpmMultistep, Algorithm("dpmsolver++")),
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

    /// All short names, by themselves and with each choice of sigmas that the class has, such as `dpm++2m:karras`.
    pub fn spellings() -> impl Iterator<Item = String> {
        SHORT_NAMES.iter().flat_map(|(name, class, _)| {
            let spacings = SIGMA_SPACINGS.iter().filter(|(_, key)| class.uses(key));
            let spaced = spacings.map(move |(spacing, _)| format!("{name}:{spacing}"));
            std::iter::once((*name).to_owned()).chain(spaced)
        })
    }

    /// The class that a name stands for, as [`SchedulerConfig::with_scheduler`](super::SchedulerConfig::with_scheduler) reads
    /// it.
    pub fn named(name: &str) -> Result<SchedulerClass, SchedulerError> {
        by_name(name).map(|(class, _)| class)
    }

    /// The class that draws the same.
    pub(super) fn base(self) -> SchedulerClass {
        match self {
            DdimParallel => Ddim,
            DdpmParallel => Ddpm,
            class => class,
        }
    }

    /// Whether it is made for networks with EDM's preconditioning, and has no betas.
    pub(super) fn is_edm(self) -> bool {
        matches!(self, EdmEuler | EdmDpmMultistep)
    }

    /// Whether a key of the configuration has an influence on this class.
    pub(super) fn uses(self, key: &str) -> bool {
        let class = self.base();
        let k_diffusion = matches!(class, Euler | Heun | Lms | Kdpm2 | Kdpm2Ancestral);
        let dpm = matches!(class, DpmMultistep | DpmMultistepInverse | DpmSinglestep);
        let solver = dpm || matches!(class, UniPc | Deis | SaSolver);
        match key {
            "prediction_type" => true,
            "num_train_timesteps" | "beta_start" | "beta_end" | "beta_schedule" | "trained_betas" => {
                !class.is_edm()
            }
            "timestep_spacing" | "steps_offset" => {
                !matches!(class, DpmSinglestep | Lcm | Tcd) && !class.is_edm()
            }
            // diffusers looks the range up in the whole configuration, whichever class it is for.
            "sigma_min" | "sigma_max" => k_diffusion || solver || class.is_edm(),
            "use_karras_sigmas" | "use_exponential_sigmas" | "use_beta_sigmas" => k_diffusion || solver,
            "thresholding" | "dynamic_thresholding_ratio" | "sample_max_value" => {
                solver || matches!(class, Ddim | Ddpm | Lcm | EdmDpmMultistep)
            }
            "clip_sample" | "clip_sample_range" => matches!(class, Ddim | DdimInverse | Ddpm | Heun | Lcm),
            "rescale_betas_zero_snr" => {
                matches!(class, Ddim | DdimInverse | Ddpm | Euler | EulerAncestral | DpmMultistep)
                    || matches!(class, UniPc | Lcm | Tcd)
            }
            "set_alpha_to_one" => matches!(class, Ddim | DdimInverse | Pndm | Lcm),
            "final_sigmas_type" => {
                matches!(class, DpmMultistep | DpmSinglestep | UniPc | Euler) || class.is_edm()
            }
            "variance_type" => dpm || matches!(class, Ddpm | SaSolver),
            "skip_prk_steps" => class == Pndm,
            "interpolation_type" | "timestep_type" => class == Euler,
            "solver_order" | "solver_type" => dpm || matches!(class, UniPc | Deis | EdmDpmMultistep),
            "lower_order_final" => solver || class == EdmDpmMultistep,
            "use_flow_sigmas" => solver,
            "algorithm_type" => dpm || matches!(class, Deis | SaSolver | EdmDpmMultistep),
            "lambda_min_clipped" => dpm || class == SaSolver,
            "euler_at_final" => matches!(class, DpmMultistep | DpmMultistepInverse | EdmDpmMultistep),
            "use_lu_lambdas" => class == DpmMultistep,
            "predict_x0" | "disable_corrector" | "solver_p" | "use_dynamic_shifting" | "shift_terminal" => {
                class == UniPc
            }
            "predictor_order" | "corrector_order" | "tau_func" => class == SaSolver,
            "original_inference_steps" => matches!(class, Lcm | Tcd),
            "timestep_scaling" => class == Lcm,
            "sigma_data" | "sigma_schedule" | "rho" => class.is_edm(),
            _ => false,
        }
    }
}

impl fmt::Display for SchedulerClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Variant {
    /// The keys of a configuration that it sets.
    fn keys(self) -> Map<String, Value> {
        let mut keys = Map::new();
        match self {
            Own => {}
            Algorithm(name) => {
                keys.insert("algorithm_type".into(), name.into());
                keys.insert("solver_order".into(), 2.into());
            }
            SkipPrkSteps => drop(keys.insert("skip_prk_steps".into(), true.into())),
        }
        keys
    }
}

/// The class that a name such as `dpm++2m:karras` stands for, and the keys that it sets.
pub(super) fn by_name(name: &str) -> Result<(SchedulerClass, Map<String, Value>), SchedulerError> {
    let (base, suffix) = name.split_once(':').map_or((name, None), |(base, suffix)| (base, Some(suffix)));
    let short = SHORT_NAMES.iter().find(|(short, ..)| *short == base);
    let found = short
        .map(|&(_, class, variant)| (class, variant))
        .or_else(|| SchedulerClass::from_name(base).map(|class| (class, Own)));
    let (class, variant) = found.ok_or_else(|| elsewhere::unknown(base))?;
    let mut keys = variant.keys();
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
