//! How far what a bundle computes is from the same networks in f32.

use std::collections::BTreeMap;

use kiln_types::{ComponentName, Size};
use serde::{Deserialize, Serialize};

use crate::unique;

/// How far what a bundle computes is from the same networks in f32, as it was measured where it was compiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// What computed both, as in `onnxruntime 1.32.0+kiln-avx512-bf16`.
    pub backend: String,
    /// Each component's root mean square of the difference of outputs over that of the outputs in f32, for random inputs.
    #[serde(deserialize_with = "unique::map")]
    pub components: BTreeMap<ComponentName, f64>,
    /// A picture that both drew; none where that in f32 is of one colour, or not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<PictureAccuracy>,
}

/// How far a picture is from that in f32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PictureAccuracy {
    /// Peak signal to noise ratio in decibels; none where all pixels are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
    /// Size in pixels.
    pub size: Size,
    /// Denoising steps.
    pub steps: u32,
}

impl Accuracy {
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut drifts = self.components.iter();
        if let Some((name, drift)) = drifts.find(|(_, drift)| !(drift.is_finite() && **drift >= 0.0)) {
            return Err(format!("accuracy: components: {name}: {drift} is not a number from 0 on"));
        }
        match self.picture.and_then(|picture| picture.psnr) {
            Some(psnr) if !psnr.is_finite() => Err(format!("accuracy: picture: psnr: {psnr} is not a number")),
            _ => Ok(()),
        }
    }
}
