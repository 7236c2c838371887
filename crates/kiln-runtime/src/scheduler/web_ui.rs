//! What Stable Diffusion's web UIs call schedulers, in the text that they write into pictures.

use super::dpm::{Algorithm, SolverType};
use super::sigmas::SigmaSpacing;
use super::{SchedulerClass, SchedulerConfig, TimestepSpacing};

impl SchedulerConfig {
    /// The sampler, such as `DPM++ 2M SDE`. Solvers that no web UI has are named in the same manner.
    pub(super) fn web_ui_sampler(&self) -> String {
        match self.class() {
            SchedulerClass::Ddim | SchedulerClass::DdimParallel => "DDIM".into(),
            SchedulerClass::DdimInverse => "DDIM Inverse".into(),
            SchedulerClass::Ddpm | SchedulerClass::DdpmParallel => "DDPM".into(),
            SchedulerClass::Pndm if self.skip_prk_steps => "PLMS".into(),
            SchedulerClass::Pndm => "PNDM".into(),
            SchedulerClass::Euler => "Euler".into(),
            SchedulerClass::EulerAncestral => "Euler a".into(),
            SchedulerClass::Heun => "Heun".into(),
            SchedulerClass::Lms => "LMS".into(),
            SchedulerClass::Kdpm2 => "DPM2".into(),
            SchedulerClass::Kdpm2Ancestral => "DPM2 a".into(),
            SchedulerClass::DpmMultistep => self.dpm('M'),
            SchedulerClass::DpmMultistepInverse => format!("{} Inverse", self.dpm('M')),
            SchedulerClass::EdmDpmMultistep => format!("{} EDM", self.dpm('M')),
            SchedulerClass::EdmEuler => "Euler EDM".into(),
            SchedulerClass::Deis => "DEIS".into(),
            SchedulerClass::SaSolver => "SA-Solver".into(),
            SchedulerClass::Tcd => "TCD".into(),
            SchedulerClass::DpmSinglestep => self.dpm('S'),
            SchedulerClass::UniPc => "UniPC".into(),
            SchedulerClass::Lcm => "LCM".into(),
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
}
