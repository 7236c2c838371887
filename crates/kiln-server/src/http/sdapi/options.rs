//! `options`, and `override_settings` of a request.

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use kiln_runtime::generator::GeneratorKind;
use serde_json::{Value, json};

use super::fields::{Fields, invalid};
use super::tables::OPTIONS;
use super::{Caller, Shared};
use crate::fault::shown;
use crate::http::App;
use crate::http::encode::Format;
use crate::http::error::ApiError;
use crate::http::schema::{Field, Kind, field};
use crate::{ModelCard, Refusal};

/// What a client has chosen for all of its pictures.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Settings {
    /// The model's name; the first one's by default.
    pub(super) model: Option<String>,
    /// Layers of the text encoder to skip.
    pub(super) clip_skip: usize,
    pub(super) format: Format,
    pub(super) generator: GeneratorKind,
    /// DDIM's noise.
    pub(super) eta_ddim: f32,
}

/// Most layers of a text encoder that are counted from its end.
pub(super) const MAX_CLIP_LAYERS: i128 = 64;

/// Options that change pictures, with the only value that kiln draws with.
pub(super) const FIXED: [Field; 7] = [
    only("eta_noise_seed_delta", 0.0),
    only("eta_ancestral", 1.0),
    only("initial_noise_multiplier", 1.0),
    only("s_churn", 0.0),
    only("s_noise", 1.0),
    only("s_min_uncond", 0.0),
    only("token_merging_ratio", 0.0),
];

/// Options that change pictures, and are off.
pub(super) const OFF: [Field; 4] =
    [off("face_restoration"), off("tiling"), off("img2img_color_correction"), off("img2img_fix_steps")];

const fn only(name: &'static str, value: f64) -> Field {
    field(name, Kind::Number(value, value), "changes pictures; kiln draws with this value alone")
}

const fn off(name: &'static str) -> Field {
    field(name, Kind::Off, "off")
}

impl Settings {
    /// Changes what the fields name; other options change no picture and are passed over. `comments` gets what is left
    /// undone.
    pub(super) fn apply(
        &mut self,
        fields: &Fields,
        models: &[ModelCard],
        comments: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        if let Some(name) = fields.choice("sd_model_checkpoint") {
            self.model = Some(find(models, name)?.name.clone());
        }
        if let Some(last) = fields.whole("CLIP_stop_at_last_layers") {
            self.clip_skip = usize::try_from(last.max(1) - 1).unwrap_or_default();
        }
        if let Some(format) = fields.choice("samples_format") {
            let refuse = || invalid("samples_format", format!("'{}' is not png, jpg or webp", shown(format)));
            self.format = Format::named(format).ok_or_else(refuse)?;
        }
        match fields.choice("randn_source").map(str::to_ascii_uppercase).as_deref() {
            None => {}
            Some("CPU") => self.generator = GeneratorKind::Cpu,
            Some("GPU" | "NV") => self.generator = GeneratorKind::Cuda,
            Some(other) => {
                return Err(invalid("randn_source", format!("'{}' is not CPU, GPU or NV", shown(other))));
            }
        }
        if let Some(eta) = fields.number("eta_ddim") {
            self.eta_ddim = eta as f32;
        }
        if let Some(vae) = fields.choice("sd_vae").filter(|vae| !vae.eq_ignore_ascii_case("automatic")) {
            comments.push(format!("sd_vae: '{}' is not there; the model's own is used", shown(vae)));
        }
        Ok(())
    }

    /// The model to draw with.
    pub(super) fn model<'a>(&self, models: &'a [ModelCard]) -> Result<&'a ModelCard, ApiError> {
        let chosen = models.iter().find(|card| Some(&card.name) == self.model.as_ref());
        chosen.or(models.first()).ok_or_else(|| ApiError::not_found("model"))
    }

    fn shown(&self, models: &[ModelCard]) -> Result<Value, ApiError> {
        let card = self.model(models)?;
        let mut options = json!({
            "samples_save": false,
            "samples_format": self.format.name(),
            "return_grid": false,
            "sd_model_checkpoint": title(card),
            "sd_checkpoint_hash": card.digest,
            "sd_vae": "Automatic",
            "sd_hypernetwork": "None",
            "CLIP_stop_at_last_layers": self.clip_skip + 1,
            "randn_source": match self.generator { GeneratorKind::Cpu => "CPU", GeneratorKind::Cuda => "NV" },
            "eta_ddim": self.eta_ddim,
            "show_progress_every_n_steps": 1,
            "live_previews_enable": true,
        });
        for field in FIXED.iter().chain(&OFF) {
            options[field.name] = match field.kind {
                Kind::Number(only, _) => json!(only),
                _ => false.into(),
            };
        }
        Ok(options)
    }
}

/// What web UIs call a model: its name and ten digits of its digest.
pub(super) fn title(card: &ModelCard) -> String {
    format!("{} [{}]", card.name, hash(card))
}

/// The first ten digits of a model's digest.
pub(super) fn hash(card: &ModelCard) -> &str {
    card.digest.get(..10).unwrap_or(&card.digest)
}

/// The model of a name, title, digest, or name with the ending of a checkpoint's file, in any case.
pub(super) fn find<'a>(models: &'a [ModelCard], text: &str) -> Result<&'a ModelCard, ApiError> {
    let text = text.trim().to_ascii_lowercase();
    let bare = text.strip_suffix(".safetensors").or(text.strip_suffix(".ckpt")).unwrap_or(&text);
    let is_named = |card: &&ModelCard| {
        let is_digest = bare.len() >= 8 && card.digest.starts_with(bare);
        is_digest || [&card.name, &card.title, &title(card)].iter().any(|name| name.eq_ignore_ascii_case(bare))
    };
    models.iter().find(is_named).ok_or_else(|| Refusal::NoModel(text.chars().take(64).collect()).into())
}

/// `GET options`
pub(super) async fn show(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(panel.settings(&client).shown(&app.service.models().cards())?))
}

/// `POST options`: for all later pictures of this client.
pub(super) async fn change(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let mut settings = panel.settings(&client);
    settings.apply(&Fields::of(&body, &OPTIONS)?, &app.service.models().cards(), &mut Vec::new())?;
    panel.choose(&client, settings);
    Ok(Json(Value::Null))
}
