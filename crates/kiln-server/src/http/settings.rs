//! A job's request in the words in which it was sent, so that it can be sent again.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kiln_runtime::Hires;
use serde::Serialize;
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::jobs::owned;
use crate::store::Source;
use crate::{ClientId, JobId, Spec};

/// What `POST /v1/jobs` takes; what is missing is the model's default. Pictures are paths to ask for.
#[derive(Serialize)]
pub(super) struct Settings {
    model: String,
    prompt: String,
    negative_prompt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    n: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_scale: Option<f64>,
    guidance_rescale: f64,
    guidance_start: f64,
    guidance_end: f64,
    deep_every: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler: Option<String>,
    eta: f64,
    clip_skip: usize,
    loras: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    init_image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hires: Option<Value>,
}

impl Settings {
    pub(super) fn of(id: &JobId, spec: &Spec) -> Settings {
        let request = &spec.request;
        let first = |texts: &[String]| texts.first().cloned().unwrap_or_default();
        let init = request.init.as_ref();
        Settings {
            model: spec.model.clone(),
            prompt: first(&request.prompts),
            negative_prompt: first(&request.negative_prompts),
            seed: request.seeds.first().copied(),
            n: request.prompts.len(),
            width: request.width,
            height: request.height,
            steps: request.steps,
            guidance_scale: request.guidance_scale.map(shortest),
            guidance_rescale: shortest(request.guidance_rescale),
            guidance_start: request.approximations.guidance_start,
            guidance_end: request.approximations.guidance_end,
            deep_every: request.approximations.deep_every,
            scheduler: request.scheduler.clone(),
            eta: shortest(request.eta),
            clip_skip: request.clip_skip,
            loras: spec.loras.iter().map(|lora| (lora.name.clone(), shortest(lora.weight))).collect(),
            init_image: init.map(|_| format!("/v1/jobs/{id}/init_image")),
            mask: init.and_then(|init| init.mask.as_ref()).map(|_| format!("/v1/jobs/{id}/mask")),
            strength: init.and_then(|init| init.strength),
            hires: request.hires.map(hires),
        }
    }
}

/// The number that is written the same: 0.6, where the next double is 0.6000000238418579.
pub(super) fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}

fn hires(Hires { scale, strength, steps, upscaler, .. }: Hires) -> Value {
    json!({ "scale": shortest(scale), "strength": strength, "steps": steps, "upscaler": upscaler })
}

/// `GET /v1/jobs/{id}/init_image`: the picture that a job started from, as PNG.
pub(super) async fn init_image(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    source(&app, &client, &id, "init_image", Source::Init).await
}

/// `GET /v1/jobs/{id}/mask`: where a job painted, as PNG.
pub(super) async fn mask(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    source(&app, &client, &id, "mask", Source::Mask).await
}

async fn source(
    app: &App,
    client: &ClientId,
    id: &str,
    what: &str,
    source: Source,
) -> Result<Response, ApiError> {
    let id = owned(app, client, id).await?;
    let file = app.keeper.source(&id, source).await?.ok_or_else(|| ApiError::not_found(what))?;
    let headers = [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=3600")];
    Ok((headers, file).into_response())
}
