//! Whether the server lives, and which models it can draw with.

use axum::Json;
use axum::extract::State;
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
