//! Lists of what there is.

use axum::extract::State;
use axum::{Extension, Json};
use kiln_runtime::process_memory;
use kiln_runtime::scheduler::{WEB_UI_SAMPLERS, WEB_UI_SCHEDULES, WebUiSampler, WebUiSchedule};
use serde_json::{Value, json};

use super::options::{hash, title};
use super::{Caller, Shared};
use crate::ModelCard;
use crate::http::App;
use crate::http::error::ApiError;

pub(super) async fn samplers() -> Json<Value> {
    let sampler = |sampler: &WebUiSampler| {
        let aliases = sampler.aliases.iter().chain([&sampler.scheduler]).collect::<Vec<_>>();
        let options = match sampler.automatic {
            Some(schedule) => json!({ "scheduler": schedule }),
            None => json!({}),
        };
        json!({ "name": sampler.name, "aliases": aliases, "options": options })
    };
    Json(WEB_UI_SAMPLERS.iter().map(sampler).collect())
}

pub(super) async fn schedulers() -> Json<Value> {
    let schedule = |schedule: &WebUiSchedule| {
        json!({
            "name": schedule.name, "label": schedule.label, "aliases": null, "default_rho": -1.0,
            "need_inner_model": false,
        })
    };
    Json(WEB_UI_SCHEDULES.iter().map(schedule).collect())
}

/// What enlarges pictures behind a second pass and in `extra-single-image`.
pub(super) async fn upscalers() -> Json<Value> {
    let upscaler = |name: &str, scale: u32| {
        let none = Value::Null;
        json!({ "name": name, "model_name": none, "model_path": none, "model_url": none, "scale": scale })
    };
    Json(json!([upscaler("None", 1), upscaler("Lanczos", 4)]))
}

pub(super) async fn latent_upscale_modes() -> Json<Value> {
    Json(json!([{ "name": "Latent" }]))
}

/// Names stand where web UIs have the paths of files.
pub(super) async fn models(State(app): State<App>) -> Json<Value> {
    let model = |card: ModelCard| {
        json!({
            "title": title(&card), "model_name": card.name, "hash": hash(&card), "sha256": card.digest,
            "filename": card.name, "config": null,
        })
    };
    Json(app.service.models().cards().into_iter().map(model).collect())
}

/// Those of the client's model.
pub(super) async fn loras(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
) -> Result<Json<Value>, ApiError> {
    let models = app.service.models().cards();
    let lora = |name: &String| json!({ "name": name, "alias": name, "path": name, "metadata": {} });
    Ok(Json(panel.settings(&client).model(&models)?.loras.iter().map(lora).collect()))
}

/// A list of what kiln has none of.
pub(super) async fn none() -> Json<Value> {
    Json(json!([]))
}

pub(super) async fn embeddings() -> Json<Value> {
    Json(json!({ "loaded": {}, "skipped": {} }))
}

pub(super) async fn scripts() -> Json<Value> {
    Json(json!({ "txt2img": [], "img2img": [] }))
}

pub(super) async fn flags() -> Json<Value> {
    Json(json!({ "api": true, "nowebui": true }))
}

/// Bytes of this process, and what it could have.
pub(super) async fn memory() -> Json<Value> {
    let ram = match (process_memory::resident(), process_memory::available()) {
        (Some(used), Some(total)) => {
            json!({ "used": used, "free": total.saturating_sub(used), "total": total.max(used) })
        }
        _ => json!({ "error": "unavailable" }),
    };
    Json(json!({ "ram": ram, "cuda": { "error": "unavailable" } }))
}

/// What kiln does by itself: models are loaded when they are asked for, and unloaded when they are not.
pub(super) async fn done() -> Json<Value> {
    Json(Value::Null)
}
