//! Whether the server lives, and which models it can draw with.

use axum::Extension;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::error::{ApiError, AsItIs};
use super::openapi::shape::{flag, list, object, one_of, partly, text, whole};
use super::openapi::{Routes, op};
use crate::models::Model;
use crate::pulse::Stuck;
use crate::{Load, Memory, Refusal};

/// The state of the server.
pub(super) fn routes() -> Routes<App> {
    let own = || [("name", text()), ("status", one_of(&STATES)), ("preload", flag())];
    let models = list(partly(own(), [("error", text())]));
    let (queued, drawing) = (("queued", whole()), ("drawing", whole()));
    let state = object([("ready", flag()), ("storage", flag()), ("models", models), queued, drawing]);
    let [name, status, preload] = own();
    let model = partly([name, status, preload, ("ready", flag())], [("error", text())]);
    let metrics = op("What Prometheus reads").answers(200, METRICS, text());
    let ready =
        op("The models, and how much waits for them").ok(state.clone()).answers(503, JSON, state).open();
    let model = op("Whether a model can draw").ok(model.clone()).answers(503, JSON, model).refuses(404).open();
    Routes::new("server")
        .get("/healthz", live, op("Whether the server lives").ok(object([("live", flag())])).open())
        .get("/readyz", self::ready, ready)
        .get("/readyz/{model}", model_ready, model)
        .get("/metrics", metrics_text, metrics)
}

/// What a model may be: how far it is loaded, or at a piece of work that takes far too long.
const STATES: [&str; 5] = ["unloaded", "loading", "loaded", "failed", STUCK];

const STUCK: &str = "stuck";

const JSON: &str = "application/json";

/// The type of what Prometheus reads.
const METRICS: &str = "application/openmetrics-text";

/// The process answers.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// The models, and how much waits for them; 503 until those that are loaded with the server are, and while one of them cannot
/// be, while jobs cannot be written down, and while the worker is stuck.
pub(super) async fn ready(State(app): State<App>) -> Response {
    let (waiting, drawn) = app.service.depth();
    let models = app.service.models().list();
    let mut preloaded = models.iter().filter(|model| model.card.preload);
    let is_sound = app.keeper.store().is_sound();
    let can_draw = !models.is_empty() && preloaded.all(|model| is_ready(model));
    let stuck = app.service.stuck();
    let is_ready = !app.service.is_closed() && is_sound && can_draw && stuck.is_none();
    let models: Vec<Value> = models.iter().map(|model| describe(model, stuck.as_ref())).collect();
    let body = json!({ "ready": is_ready, "storage": is_sound, "models": models, "queued": waiting, "drawing": drawn });
    answer(is_ready, body)
}

/// One model; 503 until it is loaded, where it is loaded with the server, where it cannot be, and while the worker is stuck,
/// with whichever model.
pub(super) async fn model_ready(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let refuse = || Refusal::NoModel(name.chars().take(64).collect());
    let model = app.service.models().get(&name).ok_or_else(refuse)?;
    let stuck = app.service.stuck();
    let is_ready = !app.service.is_closed() && is_ready(&model) && stuck.is_none();
    let mut body = describe(&model, stuck.as_ref());
    body["ready"] = is_ready.into();
    Ok(answer(is_ready, body))
}

fn is_ready(model: &Model) -> bool {
    model.readiness.is_ready(model.card.preload)
}

fn answer(is_ready: bool, body: Value) -> Response {
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Extension(AsItIs), Json(body)).into_response()
}

fn describe(model: &Model, stuck: Option<&Stuck>) -> Value {
    let load = model.readiness.load();
    let mut body = json!({ "name": model.card.name, "status": load.name(), "preload": model.card.preload });
    if let Load::Failed(fault) = load {
        body["error"] = fault.message.into();
    }
    if let Some(stuck) = stuck.filter(|stuck| stuck.model == model.card.name) {
        body["status"] = STUCK.into();
        body["error"] = format!("nothing has happened for {} s", stuck.time.as_secs()).into();
    }
    body
}

/// What Prometheus reads.
async fn metrics_text(State(app): State<App>) -> impl IntoResponse {
    let memory = Memory {
        weights: app.pool.loaded_bytes(),
        bodies: app.bytes_of_bodies(),
        links: app.files.bytes() as u64,
        n_loads: app.pool.n_loads(),
        n_evictions: app.pool.n_evictions(),
    };
    let text = app.service.metrics_text(memory);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}
