use kiln_bundle::ComponentName;
use kiln_bundle::stable_diffusion::{Settings, UNET, UNET_CONTROLLED};
use kiln_types::Size;
use ndarray::ArrayD;
use serde_json::{Value, json};

use super::conditioner::{POOLED, STATES};
use crate::architecture::{Conditioning, Denoiser, PassInfo, Task};
use crate::error::refuse;
use crate::{Error, MicroConditioning, Request};

/// Time ids of SDXL's refiner, of which the fifth is the aesthetic score.
const REFINER: u32 = 5;

/// The UNet (diffusers `UNet2DConditionModel.forward`).
#[derive(Debug)]
pub(super) struct UNet {
    settings: Settings,
}

impl UNet {
    pub(super) fn new(settings: Settings) -> UNet {
        UNet { settings }
    }
}

impl Denoiser for UNet {
    fn component(&self, task: Task) -> ComponentName {
        if task.controlled { UNET_CONTROLLED } else { UNET }
    }

    fn has_skip_connections(&self) -> bool {
        true
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let is_told = self.settings.time_ids.is_some();
        match is_told || request.micro_conditioning == MicroConditioning::default() {
            true => Ok(()),
            false => refuse(
                "original size",
                "sizes, crop and aesthetic scores are for models that read them (SDXL)".into(),
            ),
        }
    }

    fn embeds_guidance(&self) -> bool {
        self.settings.guidance_embedding.is_some()
    }

    fn reads_masked_picture(&self) -> bool {
        self.settings.inpainting
    }

    fn conditions(&self, pass: &PassInfo<'_>, conditioning: &Conditioning) -> Vec<(String, ArrayD<f32>)> {
        let states = conditioning.get(STATES).map(|states| (STATES.to_owned(), states.clone()));
        let mut conditions: Vec<_> = states.into_iter().collect();
        if let Some(width) = self.settings.guidance_embedding {
            conditions.push(("timestep_cond".into(), embedded(pass.guidance.scale, width as usize, pass.rows)));
        }
        if let (Some(n), Some(pooled)) = (self.settings.time_ids, conditioning.get(POOLED)) {
            conditions.push((POOLED.into(), pooled.clone()));
            conditions.push(("time_ids".into(), time_ids(pass, n, pass.rows)));
        }
        conditions
    }

    fn settings(&self, request: &Request, size: Size) -> Vec<(&'static str, Value)> {
        let Some(n_time_ids) = self.settings.time_ids else { return Vec::new() };
        let micro = &request.micro_conditioning;
        let mut settings = vec![
            ("original_size", json!(micro.original_size.unwrap_or(size).to_string())),
            ("crop", json!(format!("{},{}", micro.crop_left, micro.crop_top))),
        ];
        match n_time_ids {
            REFINER => settings.extend([
                ("aesthetic_score", json!(micro.aesthetic_score)),
                ("negative_aesthetic_score", json!(micro.negative_aesthetic_score)),
            ]),
            _ => settings.push(("target_size", json!(micro.target_size.unwrap_or(size).to_string()))),
        }
        settings
    }
}

/// The scale as LCM's UNet reads it, `[rows, width]` (diffusers `get_guidance_scale_embedding`).
fn embedded(scale: f32, width: usize, rows: usize) -> ArrayD<f32> {
    let half = width / 2;
    let step = 10000f32.ln() / (half.max(2) - 1) as f32;
    let scaled = (scale - 1.0) * 1000.0;
    let angle = |i: usize| scaled * (i as f32 * -step).exp();
    ArrayD::from_shape_fn(vec![rows, width], |index| match index[1] {
        i if i < half => angle(i).sin(),
        i if i < 2 * half => angle(i - half).cos(),
        _ => 0.0,
    })
}

/// SDXL's `add_time_ids` `[rows, n]`: original size and crop, then target size or, where there are five, aesthetic score.
fn time_ids(pass: &PassInfo<'_>, n: u32, rows: usize) -> ArrayD<f32> {
    let micro = &pass.request.micro_conditioning;
    let original = micro.original_size.unwrap_or(pass.size);
    let target = micro.target_size.unwrap_or(pass.size);
    let n_negative = if pass.guidance.is_guided() { rows / 2 } else { 0 };
    // The refiner's pipelines crop the picture alone, all others the negative prompt's too.
    let n_uncropped = if n == REFINER && pass.request.controls.is_empty() { n_negative } else { 0 };
    ArrayD::from_shape_fn(vec![rows, n as usize], |index| {
        let (row, i) = (index[0], index[1]);
        match i {
            0 => original.height as f32,
            1 => original.width as f32,
            2 | 3 if row < n_uncropped => 0.0,
            2 => micro.crop_top as f32,
            3 => micro.crop_left as f32,
            4 if n == REFINER && row < n_negative => micro.negative_aesthetic_score,
            4 if n == REFINER => micro.aesthetic_score,
            4 => target.height as f32,
            _ => target.width as f32,
        }
    })
}
