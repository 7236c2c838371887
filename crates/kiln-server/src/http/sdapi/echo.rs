//! A call's `parameters`, as it was understood: defaults, and over them what was sent.
//!
//! Keys of other programs, among which are passwords, and pictures are no part of it.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::http::error::ApiError;
use crate::http::error::internal;

const BOTH: &str = r#"{
    "prompt": "", "negative_prompt": "", "styles": null, "seed": -1, "subseed": -1, "subseed_strength": 0,
    "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": null, "scheduler": null, "batch_size": 1,
    "n_iter": 1, "steps": null, "cfg_scale": 7.0, "width": null, "height": null, "restore_faces": null, "tiling": null,
    "do_not_save_samples": false, "do_not_save_grid": false, "eta": null, "denoising_strength": null,
    "s_min_uncond": null, "s_churn": null, "s_tmax": null, "s_tmin": null, "s_noise": null, "override_settings": null,
    "override_settings_restore_afterwards": true, "refiner_checkpoint": null, "refiner_switch_at": null,
    "disable_extra_networks": false, "comments": null, "sampler_index": null, "script_name": null, "script_args": [],
    "send_images": true, "save_images": false, "force_task_id": null, "infotext": null }"#;

const TXT2IMG: &str = r#"{
    "enable_hr": false, "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2.0, "hr_upscaler": null,
    "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": null,
    "hr_sampler_name": null, "hr_scheduler": null, "hr_prompt": "", "hr_negative_prompt": "" }"#;

const IMG2IMG: &str = r#"{
    "resize_mode": 0, "image_cfg_scale": null, "mask_blur_x": 4, "mask_blur_y": 4, "mask_blur": null,
    "mask_round": true, "inpainting_fill": 0, "inpaint_full_res": true, "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0, "initial_noise_multiplier": null, "include_init_images": false }"#;

/// The parameters of a call; its initial pictures where it asks for them.
pub(super) fn parameters(task: &str, fields: &Fields) -> Result<Value, ApiError> {
    let own = if task == "txt2img" { TXT2IMG } else { IMG2IMG };
    let mut all = Map::new();
    for part in [BOTH, own] {
        all.extend(serde_json::from_str::<Map<String, Value>>(part).map_err(|_| internal())?);
    }
    let is_asked = task != "txt2img" && fields.flag("include_init_images") == Some(true);
    for (key, value) in fields.iter() {
        if all.contains_key(key) || (is_asked && ["init_images", "mask"].contains(&&**key)) {
            all.insert(key.clone(), value.clone());
        }
    }
    Ok(all.into())
}
