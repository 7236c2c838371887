//! `model_index.json`: which pipelines run, and of what they are made.

use kiln_bundle::ComponentName;
use kiln_bundle::stable_diffusion::{
    LATENT_CONSISTENCY, STABLE_DIFFUSION, STABLE_DIFFUSION_XL, TEXT_ENCODER, TEXT_ENCODER_2,
};
use kiln_nets::TextStates;
use serde_json::Value;

/// Pipelines that are made of the same components.
pub(super) struct Pipelines {
    /// What bundles call the architecture.
    pub(super) architecture: &'static str,
    /// What the classes' names start with; what follows is the task, which is the runtime's matter.
    classes: &'static [&'static str],
    /// Component, which names its folder, class, and tokenizer of each text encoder.
    pub(super) text_encoders: &'static [(ComponentName, &'static str, &'static str)],
    pub(super) states: TextStates,
}

const PIPELINES: [Pipelines; 3] = [
    Pipelines {
        architecture: STABLE_DIFFUSION_XL,
        classes: &["StableDiffusionXL"],
        text_encoders: &[
            (TEXT_ENCODER, "CLIPTextModel", "tokenizer"),
            (TEXT_ENCODER_2, "CLIPTextModelWithProjection", "tokenizer_2"),
        ],
        states: TextStates::Penultimate,
    },
    Pipelines {
        architecture: STABLE_DIFFUSION,
        classes: &["StableDiffusion"],
        text_encoders: &[(TEXT_ENCODER, "CLIPTextModel", "tokenizer")],
        states: TextStates::Last,
    },
    Pipelines {
        architecture: LATENT_CONSISTENCY,
        classes: &["LatentConsistencyModel"],
        text_encoders: &[(TEXT_ENCODER, "CLIPTextModel", "tokenizer")],
        states: TextStates::Last,
    },
];

/// What may stand between the beginning of a class's name and `Pipeline`.
const TASKS: [&str; 6] = ["", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint"];

/// How classes of exports begin, and what those are for.
const EXPORTS: [(&str, &str); 5] = [
    ("Onnx", "ONNX Runtime"),
    ("ORT", "ONNX Runtime"),
    ("OV", "OpenVINO"),
    ("Flax", "JAX"),
    ("Neuron", "AWS Neuron"),
];

/// Components that change the pictures and that kiln does not run.
pub(super) const UNSUPPORTED: [&str; 5] =
    ["image_encoder", "motion_adapter", "adapter", "depth_estimator", "low_res_scheduler"];

/// The pipelines that `class` is one of.
pub(super) fn pipelines(class: &str) -> Result<&'static Pipelines, String> {
    let runs = |prefix: &&&str| {
        let task = class.strip_prefix(**prefix).and_then(|rest| rest.strip_suffix("Pipeline"));
        task.is_some_and(|task| TASKS.contains(&task))
    };
    let found = PIPELINES.iter().find(|pipelines| pipelines.classes.iter().any(|prefix| runs(&prefix)));
    found.ok_or_else(|| {
        if class.is_empty() {
            return "has no _class_name, so it is no pipeline's index".into();
        }
        if let Some((_, what)) = EXPORTS.iter().find(|(start, _)| class.starts_with(start)) {
            return format!("_class_name: '{class}' is an export for {what}; kiln reads the checkpoint it was made from");
        }
        let supported: Vec<String> = PIPELINES
            .iter()
            .flat_map(|pipelines| pipelines.classes)
            .map(|prefix| format!("{prefix}Pipeline"))
            .collect();
        format!(
            "_class_name: '{class}' is not supported; supported: {} and their Img2Img, Inpaint and ControlNet kin",
            supported.join(", ")
        )
    })
}

pub(super) fn library_class<'a>(index: &'a Value, component: &str) -> Option<&'a str> {
    index.get(component)?.get(1)?.as_str()
}

/// The class of the scheduler (diffusers `pipelines/pipeline_loading_utils.py`, `get_class_obj_and_candidates`); that
/// of its configuration where the index has none.
///
/// A class of another library bears the library's name, too.
pub(super) fn scheduler_class(index: &Value) -> Result<Option<String>, String> {
    let entry = match index.get("scheduler") {
        None | Some(Value::Null) => return Ok(None),
        Some(entry) => entry,
    };
    let names = entry.as_array().filter(|names| names.len() == 2);
    match names.map(|names| (&names[0], &names[1])) {
        Some((Value::Null, Value::Null)) => Ok(None),
        Some((Value::String(library), Value::String(class))) => {
            let class = class.strip_prefix("FlashPack").unwrap_or(class);
            let is_own = library == "diffusers" || library.starts_with("diffusers.");
            Ok(Some(if is_own { class.into() } else { format!("{library}.{class}") }))
        }
        _ => Err(format!("scheduler: {entry} is not a library and a class")),
    }
}

/// The class of a component, which must be one of some.
pub(super) fn require<'a>(index: &'a Value, component: &str, classes: &[&str]) -> Result<&'a str, String> {
    match library_class(index, component) {
        Some(found) if classes.contains(&found) => Ok(found),
        found => {
            let (found, classes) = (found.unwrap_or("null"), classes.join(", "));
            Err(format!("{component}: '{found}' is not supported; supported: {classes}"))
        }
    }
}

pub(super) fn flag(index: &Value, key: &str) -> Result<bool, String> {
    match index.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| format!("{key}: {value} is neither true nor false")),
    }
}
