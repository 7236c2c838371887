//! Whether the server lives, and which models it can draw with.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::App;

/// The process answers.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// The models, and how much waits for them.
pub(super) async fn ready(State(app): State<App>) -> Json<Value> {
    let (waiting, drawn) = app.service.depth();
    let models: Vec<String> = app.service.models().cards().into_iter().map(|card| card.name).collect();
    Json(json!({ "ready": !models.is_empty(), "models": models, "queued": waiting, "drawing": drawn }))
}

/// What Prometheus reads.
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let text = app.service.metrics_text(app.pool.loaded_bytes());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}
