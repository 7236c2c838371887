//! What Stable Diffusion's web UIs call schedulers, in the text that they write into pictures and in their API.

use super::class::by_name;
use super::dpm::{Algorithm, SolverType};
use super::sigmas::SigmaSpacing;
use super::{SchedulerClass, SchedulerConfig, SchedulerError, TimestepSpacing};

/// A sampler of the web UIs (AUTOMATIC1111's `sd_samplers*.py`) that runs here, or a scheduler of diffusers that no web UI
/// has, named in the same manner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebUiSampler {
    /// Its name, such as `DPM++ 2M`.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// The scheduler, as [`SchedulerConfig::with_scheduler`] reads it.
    pub scheduler: &'static str,
    /// The schedule type that `Automatic` stands for, as [`WebUiSchedule::name`].
    pub automatic: Option<&'static str>,
}

/// A schedule type of the web UIs (`sd_schedulers.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebUiSchedule {
    /// Its name for programs, such as `karras`.
    pub name: &'static str,
    /// Its name for people, such as `Karras`.
    pub label: &'static str,
    /// The choice of sigmas behind a scheduler's name; none for the model's own.
    suffix: Option<&'static str>,
}

const fn sampler(
    name: &'static str,
    scheduler: &'static str,
    automatic: Option<&'static str>,
    aliases: &'static [&'static str],
) -> WebUiSampler {
    WebUiSampler { name, aliases, scheduler, automatic }
}

/// The samplers; those for networks with EDM's preconditioning are not among them.
pub const WEB_UI_SAMPLERS: [WebUiSampler; 18] = [
    sampler("DPM++ 2M", "dpm++2m", Some("karras"), &["k_dpmpp_2m"]),
    sampler("DPM++ 2M SDE", "dpm++2m-sde", Some("exponential"), &["k_dpmpp_2m_sde"]),
    sampler("DPM++ 2S", "dpm++2s", None, &[]),
    sampler("Euler a", "euler-a", None, &["k_euler_a", "k_euler_ancestral"]),
    sampler("Euler", "euler", None, &["k_euler"]),
    sampler("LMS", "lms", None, &["k_lms"]),
    sampler("Heun", "heun", None, &["k_heun"]),
    sampler("DPM2", "kdpm2", Some("karras"), &["k_dpm_2"]),
    sampler("DPM2 a", "kdpm2-a", Some("karras"), &["k_dpm_2_a", "k_dpm_2_ancestral"]),
    sampler("DDIM", "ddim", None, &[]),
    sampler("PLMS", "plms", None, &[]),
    sampler("PNDM", "pndm", None, &[]),
    sampler("UniPC", "unipc", None, &[]),
    sampler("LCM", "lcm", None, &["k_lcm"]),
    sampler("DDPM", "ddpm", None, &[]),
    sampler("DEIS", "deis", None, &[]),
    sampler("SA-Solver", "sa-solver", None, &[]),
    sampler("TCD", "tcd", None, &[]),
];

/// The schedule types.
pub const WEB_UI_SCHEDULES: [WebUiSchedule; 5] = [
    WebUiSchedule { name: "automatic", label: "Automatic", suffix: None },
    WebUiSchedule { name: "uniform", label: "Uniform", suffix: None },
    WebUiSchedule { name: "karras", label: "Karras", suffix: Some("karras") },
    WebUiSchedule { name: "exponential", label: "Exponential", suffix: Some("exponential") },
    WebUiSchedule { name: "beta", label: "Beta", suffix: Some("beta") },
];

impl WebUiSampler {
    /// The sampler of a name, in any case: the web UIs' or the scheduler's own.
    pub fn named(name: &str) -> Option<WebUiSampler> {
        let is_name = |other: &str| other.eq_ignore_ascii_case(name.trim());
        WEB_UI_SAMPLERS.into_iter().find(|sampler| {
            is_name(sampler.name)
                || is_name(sampler.scheduler)
                || sampler.aliases.iter().any(|alias| is_name(alias))
        })
    }

    /// The sampler and the schedule type of a name in which both stand, such as `DPM++ 2M Karras`.
    pub fn with_schedule(name: &str) -> Option<(WebUiSampler, Option<WebUiSchedule>)> {
        if let Some(sampler) = WebUiSampler::named(name) {
            return Some((sampler, None));
        }
        let (sampler, schedule) = name.trim().rsplit_once(' ')?;
        Some((WebUiSampler::named(sampler)?, Some(WebUiSchedule::named(schedule)?)))
    }

    /// The scheduler's name with a schedule type, such as `dpm++2m:karras`. DDIM and PLMS take no notice of the type, as
    /// in the web UIs, and PNDM does not either.
    ///
    /// # Errors
    ///
    /// Where the sampler has no choice of sigmas.
    pub fn scheduler(self, schedule: Option<WebUiSchedule>) -> Result<String, SchedulerError> {
        let schedule = schedule.filter(|_| !matches!(self.scheduler, "ddim" | "plms" | "pndm"));
        let schedule = schedule.filter(|schedule| schedule.name != "automatic");
        let schedule = schedule.or_else(|| self.automatic.and_then(WebUiSchedule::named));
        let name = match schedule.and_then(|schedule| schedule.suffix) {
            Some(suffix) => format!("{}:{suffix}", self.scheduler),
            None => self.scheduler.to_owned(),
        };
        by_name(&name).map(|_| name)
    }
}

impl WebUiSchedule {
    /// The schedule type of a name, for programs or for people, in any case.
    pub fn named(name: &str) -> Option<WebUiSchedule> {
        let is_name = |other: &str| other.eq_ignore_ascii_case(name.trim());
        WEB_UI_SCHEDULES.into_iter().find(|schedule| is_name(schedule.name) || is_name(schedule.label))
    }
}

impl SchedulerConfig {
    /// The sampler, such as `DPM++ 2M SDE`. Solvers that no web UI has are named in the same manner.
    pub(super) fn web_ui_sampler(&self) -> String {
        match self.class() {
            SchedulerClass::DdimInverse => "DDIM Inverse".into(),
            SchedulerClass::Pndm if !self.skip_prk_steps => "PNDM".into(),
            SchedulerClass::DpmMultistep => self.dpm('M'),
            SchedulerClass::DpmMultistepInverse => format!("{} Inverse", self.dpm('M')),
            SchedulerClass::EdmDpmMultistep => format!("{} EDM", self.dpm('M')),
            SchedulerClass::EdmEuler => "Euler EDM".into(),
            SchedulerClass::DpmSinglestep => self.dpm('S'),
            class => of_class(class.base()).unwrap_or(class.name()).into(),
        }
    }

    fn dpm(&self, steps: char) -> String {
        let (family, noise) = match self.algorithm {
            Algorithm::DpmSolver => ("DPM", ""),
            Algorithm::DpmSolverPp => ("DPM++", ""),
            Algorithm::SdeDpmSolver => ("DPM", " SDE"),
            Algorithm::SdeDpmSolverPp => ("DPM++", " SDE"),
        };
        let solver = if self.solver_type == SolverType::Heun && self.solver_order == 2 { " Heun" } else { "" };
        format!("{family} {}{steps}{noise}{solver}", self.solver_order)
    }

    /// The schedule type, such as `Karras`, where the sampler has a choice.
    pub(super) fn web_ui_schedule(&self) -> Option<&'static str> {
        use SchedulerClass::{DpmMultistep, DpmSinglestep, Euler, Heun, Kdpm2, Kdpm2Ancestral, Lms, UniPc};
        let is_of_k_diffusion =
            matches!(self.class(), Euler | Heun | Lms | Kdpm2 | Kdpm2Ancestral | DpmMultistep | DpmSinglestep);
        if !is_of_k_diffusion && self.class() != UniPc {
            return None;
        }
        match self.sigma_spacing {
            SigmaSpacing::Karras => Some("Karras"),
            SigmaSpacing::Exponential => Some("Exponential"),
            SigmaSpacing::Beta => Some("Beta"),
            SigmaSpacing::Lu => Some("Lu"),
            SigmaSpacing::Timesteps if !is_of_k_diffusion => None,
            SigmaSpacing::Timesteps if self.timestep_spacing == TimestepSpacing::Trailing => {
                Some("SGM Uniform")
            }
            SigmaSpacing::Timesteps => Some("Uniform"),
        }
    }
}

/// The name of the only sampler of a class.
fn of_class(class: SchedulerClass) -> Option<&'static str> {
    let is_of = |sampler: &&WebUiSampler| SchedulerClass::named(sampler.scheduler) == Ok(class);
    WEB_UI_SAMPLERS.iter().find(is_of).map(|sampler| sampler.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_name_has_a_sampler_and_a_schedule() {
        let own = SchedulerConfig::from_json("{}").expect("a configuration");
        for (name, sampler, schedule) in [
            ("ddim", "DDIM", None),
            ("ddpm", "DDPM", None),
            ("pndm", "PNDM", None),
            ("plms", "PLMS", None),
            ("euler", "Euler", Some("Uniform")),
            ("euler:karras", "Euler", Some("Karras")),
            ("euler-a", "Euler a", None),
            ("heun:exponential", "Heun", Some("Exponential")),
            ("lms", "LMS", Some("Uniform")),
            ("kdpm2:beta", "DPM2", Some("Beta")),
            ("kdpm2-a", "DPM2 a", Some("Uniform")),
            ("dpm++2m:karras", "DPM++ 2M", Some("Karras")),
            ("dpm++2m-sde", "DPM++ 2M SDE", Some("Uniform")),
            ("dpm++2s", "DPM++ 2S", Some("Uniform")),
            ("unipc", "UniPC", None),
            ("unipc:karras", "UniPC", Some("Karras")),
            ("lcm", "LCM", None),
        ] {
            let config = own.with_scheduler(name).expect("a scheduler");
            assert_eq!((&*config.web_ui_sampler(), config.web_ui_schedule()), (sampler, schedule), "{name}");
        }
        let text = r#"{ "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++",
                        "solver_type": "heun", "timestep_spacing": "trailing" }"#;
        let config = SchedulerConfig::from_json(text).expect("a configuration");
        assert_eq!(config.web_ui_sampler(), "DPM++ 2M SDE Heun");
        assert_eq!(config.web_ui_schedule(), Some("SGM Uniform"));
    }

    #[test]
    fn every_sampler_is_read_as_it_is_written() {
        let own = SchedulerConfig::from_json("{}").expect("a configuration");
        for sampler in WEB_UI_SAMPLERS {
            let config = own.with_scheduler(sampler.scheduler).expect("a scheduler");
            assert_eq!(config.web_ui_sampler(), sampler.name);
            assert_eq!(WebUiSampler::named(&sampler.name.to_uppercase()), Some(sampler));
            let automatic = sampler.scheduler(WebUiSchedule::named("automatic")).expect("a scheduler");
            assert_eq!(automatic, sampler.scheduler(None).expect("a scheduler"));
        }
    }

    #[test]
    fn names_of_samplers_may_hold_the_schedule() {
        let scheduler = |name: &str, schedule: &str| {
            let (sampler, own) = WebUiSampler::with_schedule(name).expect("a sampler");
            sampler.scheduler(own.or(WebUiSchedule::named(schedule)))
        };
        let is = |name: &str, schedule: &str, expected: &str| {
            assert_eq!(scheduler(name, schedule).expect("a scheduler"), expected, "{name}, {schedule}");
        };
        is("DPM++ 2M", "Automatic", "dpm++2m:karras");
        is("DPM++ 2M", "Uniform", "dpm++2m");
        is("dpm++ 2m sde", "Karras", "dpm++2m-sde:karras");
        is("DPM++ 2M Karras", "automatic", "dpm++2m:karras");
        is("Euler", "automatic", "euler");
        is("k_euler_a", "", "euler-a");
        is("DDIM", "Karras", "ddim");
        is("PLMS", "Karras", "plms");
        is("PNDM", "Karras", "pndm");
        assert!(scheduler("Euler a", "Karras").is_err());
        assert_eq!(WebUiSampler::with_schedule("DPM++ SDE"), None);
        assert_eq!(WebUiSchedule::named("Align Your Steps"), None);
    }
}
