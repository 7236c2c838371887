//! Schedulers of diffusers that do not run here, and why.

use super::{SchedulerClass, SchedulerError};

/// Most characters of a name that are shown; no class's name is longer.
const MOST_CHARS: usize = 80;

/// Classes and what the pipelines are for that run them.
const ELSEWHERE: [(&str, &str); 27] = [
    ("AmusedScheduler", "aMUSEd"),
    ("BlockRefinementScheduler", "language models"),
    ("CMStochasticIterativeScheduler", "consistency models, which read no text"),
    ("CogVideoXDDIMScheduler", "CogVideoX"),
    ("CogVideoXDPMScheduler", "CogVideoX"),
    ("ConsistencyDecoderScheduler", "the consistency decoder"),
    ("CosineDPMSolverMultistepScheduler", "Stable Audio"),
    ("DDPMWuerstchenScheduler", "Würstchen"),
    ("DiscreteDDIMScheduler", "language models"),
    ("EntropyBoundScheduler", "language models"),
    ("FlowMapEulerDiscreteScheduler", "flow maps"),
    ("FlowMatchEulerDiscreteScheduler", "flow matching"),
    ("FlowMatchHeunDiscreteScheduler", "flow matching"),
    ("FlowMatchLCMScheduler", "flow matching"),
    ("HeliosDMDScheduler", "Helios"),
    ("HeliosScheduler", "Helios"),
    ("IPNDMScheduler", "Dance Diffusion"),
    ("KarrasVeScheduler", "UNets that read no text"),
    ("LTXEulerAncestralRFScheduler", "LTX-Video"),
    ("MiniMaxH3Scheduler", "MiniMax H3"),
    ("PiflowScheduler", "pi-Flow"),
    ("RePaintScheduler", "RePaint"),
    ("SCMScheduler", "Sana Sprint"),
    ("ScoreSdeVeScheduler", "UNets that read no text"),
    ("ScoreSdeVpScheduler", "UNets that read no text"),
    ("UnCLIPScheduler", "unCLIP"),
    ("VQDiffusionScheduler", "VQ Diffusion"),
];

/// The refusal of a name that a user gives.
pub(super) fn unknown(name: &str) -> SchedulerError {
    let names: Vec<&str> = SchedulerClass::short_names().chain(SchedulerClass::names()).collect();
    SchedulerError::config("scheduler", format!("'{name}' {}; supported: {}", why(name), names.join(", ")))
}

/// The refusal of a class that does not run here; `key` is where it is named.
pub(super) fn unsupported(key: &'static str, name: &str) -> SchedulerError {
    let names: Vec<&str> = SchedulerClass::names().collect();
    let shown = name.chars().take(MOST_CHARS).flat_map(char::escape_debug).collect();
    SchedulerError::Class { key, name: shown, why: why(name), supported: names.join(", ") }
}

fn why(name: &str) -> String {
    match ELSEWHERE.iter().find(|(class, _)| *class == name) {
        Some((_, models)) => format!("is for {models}"),
        None if name == "DPMSolverSDEScheduler" => "draws noise that a picture's seed does not decide".into(),
        None => "is not supported".into(),
    }
}
