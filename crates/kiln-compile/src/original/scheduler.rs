//! What the file or its family says of sampling.

use kiln_bundle::TensorFile;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::keys::Keys;
use crate::{CompileError, Family, PredictionType};

/// Training step that Stable Diffusion 2 base, which predicts noise, was published at.
const SD2_BASE_STEP: i64 = 875_000;

/// The prediction type: the user's word, the file's own, or, as in diffusers, what its family's best known model has.
pub(super) fn prediction_type(
    keys: &Keys<'_>,
    file: &TensorFile,
    family: Family,
    is_inpainting: bool,
    asked: Option<PredictionType>,
) -> Result<PredictionType, CompileError> {
    if let Some(asked) = asked {
        return Ok(asked);
    }
    if let Some(said) = file.metadata().get("modelspec.prediction_type").filter(|said| !said.is_empty()) {
        return match said.as_str() {
            "epsilon" | "eps" => Ok(PredictionType::Epsilon),
            "v" | "v_prediction" | "v-prediction" => Ok(PredictionType::VPrediction),
            other => Err(keys
                .error(format!("modelspec.prediction_type: '{other}' is not supported; supported: epsilon, v"))
                .with_hint("--prediction-type says what the model predicts")),
        };
    }
    match file.metadata().get("modelspec.architecture").map(String::as_str) {
        Some("stable-diffusion-v2-512") => return Ok(PredictionType::Epsilon),
        Some("stable-diffusion-v2-768-v") => return Ok(PredictionType::VPrediction),
        _ => {}
    }
    if keys.get("v_pred").is_some() {
        return Ok(PredictionType::VPrediction);
    }
    let is_velocity = family == Family::Sd2 && !is_inpainting && global_step(file)? != Some(SD2_BASE_STEP);
    Ok(if is_velocity { PredictionType::VPrediction } else { PredictionType::Epsilon })
}

/// The training step, which diffusers tells Stable Diffusion 2 base by.
fn global_step(file: &TensorFile) -> Result<Option<i64>, CompileError> {
    match file.tensors().get("global_step") {
        Some(tensor) if tensor.dtype == Dtype::I64 && tensor.length == 8 => {
            Ok(Some(file.read_number("global_step")? as i64))
        }
        _ => Ok(None),
    }
}

/// `scheduler_config.json` of the pipeline that diffusers takes for the family's.
pub(super) fn config(
    family: Family,
    is_inpainting: bool,
    is_distilled: bool,
    prediction: PredictionType,
    zero_snr: bool,
) -> Value {
    let mut config = json!({
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction.name(),
        "set_alpha_to_one": false,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    });
    config["_class_name"] = match family {
        _ if is_distilled => "LCMScheduler",
        Family::SdxlBase | Family::SdxlRefiner => "EulerDiscreteScheduler",
        Family::Sd2 if !is_inpainting => "DDIMScheduler",
        _ => "PNDMScheduler",
    }
    .into();
    match config["_class_name"].as_str() {
        Some("LCMScheduler") => {
            config["original_inference_steps"] = 50.into();
            config["set_alpha_to_one"] = true.into();
            config["steps_offset"] = 0.into();
        }
        Some("PNDMScheduler") => config["skip_prk_steps"] = true.into(),
        Some("EulerDiscreteScheduler") => {
            config["interpolation_type"] = "linear".into();
            config["use_karras_sigmas"] = false.into();
        }
        _ => {}
    }
    if zero_snr {
        config["rescale_betas_zero_snr"] = true.into();
    }
    config
}
