//! How a checkpoint is opened.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a UNet was trained to predict, which its weights do not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// Velocity (Salimans, Ho 2022).
    VPrediction,
}

impl PredictionType {
    /// As `scheduler_config.json` has it.
    pub fn name(self) -> &'static str {
        match self {
            PredictionType::Epsilon => "epsilon",
            PredictionType::VPrediction => "v_prediction",
        }
    }
}

/// How a checkpoint is opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckpointOptions {
    /// Preferred variant of weight files in folders, such as `fp16`.
    pub variant: Option<String>,
    /// What a single file's UNet predicts; by default what the file or its family says.
    pub prediction_type: Option<PredictionType>,
    /// Components that come from elsewhere.
    pub components: Components,
}

/// Components that replace those of a checkpoint, or that it lacks.
///
/// Each is a folder with `config.json`, a pipeline's folder, which has it under its name, or a `.safetensors` file: in
/// diffusers' layout with `config.json` beside it, or in the original one, by itself or in a whole checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Components {
    /// Denoiser.
    pub unet: Option<PathBuf>,
    /// Autoencoder.
    pub vae: Option<PathBuf>,
    /// First text encoder; the tokenizer stays that of the checkpoint.
    pub text_encoder: Option<PathBuf>,
    /// Second text encoder.
    pub text_encoder_2: Option<PathBuf>,
}

impl Components {
    /// The components that come from elsewhere, by the names of their folders.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let Components { unet, vae, text_encoder, text_encoder_2 } = self;
        let all =
            [("unet", unet), ("vae", vae), ("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2)];
        all.into_iter().filter_map(|(name, path)| Some((name, path.as_deref()?)))
    }

    /// Whether all come from the checkpoint.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// These, and where they name nothing, those of `other`.
    #[must_use]
    pub fn or(self, other: Components) -> Components {
        Components {
            unet: self.unet.or(other.unet),
            vae: self.vae.or(other.vae),
            text_encoder: self.text_encoder.or(other.text_encoder),
            text_encoder_2: self.text_encoder_2.or(other.text_encoder_2),
        }
    }

    /// The same, with paths that are relative to a folder.
    #[must_use]
    pub(crate) fn below(self, folder: &Path) -> Components {
        let below = |path: Option<PathBuf>| path.map(|path| folder.join(path));
        Components {
            unet: below(self.unet),
            vae: below(self.vae),
            text_encoder: below(self.text_encoder),
            text_encoder_2: below(self.text_encoder_2),
        }
    }
}
