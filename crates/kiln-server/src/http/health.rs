//! Whether a process lives, and which models it can draw with.

use std::sync::Arc;

use axum::extract::{FromRef, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::App;
use super::error::{ApiError, AsItIs};
use super::openapi::shape::{flag, list, object, one_of, partly, text, whole};
use super::openapi::{Routes, op};
use crate::models::Model;
use crate::pulse::Stuck;
use crate::{FleetMoment, Load, Memory, Refusal, Service};

/// What is told of a process at a moment.
pub struct Vitals {
    /// Models and jobs.
    pub service: Service,
    /// Whether jobs can be written down.
    pub is_sound: bool,
    /// What is in memory.
    pub memory: Memory,
    /// The fleet that draws, where it is not this process.
    pub fleet: Option<FleetMoment>,
    /// Whether it is ready without models, which come when jobs need them.
    pub is_ready_bare: bool,
}

impl FromRef<App> for Vitals {
    fn from_ref(app: &App) -> Vitals {
        let bodies = app.bytes_of_bodies();
        let memory = Memory { bodies, links: app.files.bytes() as u64, ..Memory::of(&app.pool) };
        Vitals {
            service: app.service.clone(),
            is_sound: app.keeper.is_sound(),
            memory,
            fleet: app.keeper.fleet(),
            is_ready_bare: false,
        }
    }
}

/// Looks at a process that draws and serves no requests.
#[derive(Clone)]
struct Look(Arc<dyn Fn() -> Vitals + Send + Sync>);

impl FromRef<Look> for Vitals {
    fn from_ref(look: &Look) -> Vitals {
        look.0()
    }
}

/// The state of a process that draws and serves no requests, for whoever watches over it.
pub fn vitals_router(look: impl Fn() -> Vitals + Send + Sync + 'static) -> Router {
    Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/readyz/{model}", get(model_ready))
        .route("/metrics", get(metrics_text))
        .with_state(Look(Arc::new(look)))
}

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
pub(super) async fn ready(State(vitals): State<Vitals>) -> Response {
    let Vitals { service, is_sound, is_ready_bare, .. } = vitals;
    let (waiting, drawn) = service.depth();
    let models = service.models().list();
    let mut preloaded = models.iter().filter(|model| model.card.preload);
    let can_draw = (is_ready_bare || !models.is_empty()) && preloaded.all(|model| is_ready(model));
    let stuck = service.stuck();
    let is_ready = !service.is_closed() && is_sound && can_draw && stuck.is_none();
    let models: Vec<Value> = models.iter().map(|model| describe(model, stuck.as_ref())).collect();
    let body = json!({ "ready": is_ready, "storage": is_sound, "models": models, "queued": waiting, "drawing": drawn });
    answer(is_ready, body)
}

/// One model; 503 until it is loaded, where it is loaded with the server, where it cannot be, and while the worker is stuck,
/// with whichever model.
pub(super) async fn model_ready(
    State(vitals): State<Vitals>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let refuse = || Refusal::NoModel(name.chars().take(64).collect());
    let service = vitals.service;
    let model = service.models().get(&name).ok_or_else(refuse)?;
    let stuck = service.stuck();
    let is_ready = !service.is_closed() && is_ready(&model) && stuck.is_none();
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
async fn metrics_text(State(vitals): State<Vitals>) -> impl IntoResponse {
    let text = vitals.service.metrics_text(vitals.memory, vitals.fleet);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}
