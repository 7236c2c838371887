//! Whether the server lives, and which models it can draw with.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::App;
use super::openapi::shape::{flag, list, object, text, whole};
use super::openapi::{Routes, op};

/// The state of the server.
pub(super) fn routes() -> Routes<App> {
    let state =
        object([("ready", flag()), ("models", list(text())), ("queued", whole()), ("drawing", whole())]);
    let metrics = op("What Prometheus reads").answers(200, METRICS, text());
    Routes::new("server")
        .get("/healthz", live, op("Whether the server lives").ok(object([("live", flag())])).open())
        .get("/readyz", ready, op("The models, and how much waits for them").ok(state).open())
        .get("/metrics", metrics_text, metrics)
}

/// The type of what Prometheus reads.
const METRICS: &str = "application/openmetrics-text";

/// The process answers.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// The models, and how much waits for them.
async fn ready(State(app): State<App>) -> Json<Value> {
    let (waiting, drawn) = app.service.depth();
    let models: Vec<String> = app.service.models().cards().into_iter().map(|card| card.name).collect();
    Json(json!({ "ready": !models.is_empty(), "models": models, "queued": waiting, "drawing": drawn }))
}

/// What Prometheus reads.
async fn metrics_text(State(app): State<App>) -> impl IntoResponse {
    let text = app.service.metrics_text(app.pool.loaded_bytes());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}
