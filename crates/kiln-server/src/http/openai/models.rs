//! The list of models.

use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::http::App;
use crate::http::error::ApiError;
use crate::http::openapi::shape::{Shape, object, one_of, text, whole};
use crate::{ModelCard, Refusal};

/// `GET /v1/models`
pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    let models: Vec<Value> = app.service.models().cards().iter().map(shown).collect();
    Json(json!({ "object": "list", "data": models }))
}

/// `GET /v1/models/{id}`
pub(super) async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    match app.service.models().card(&id) {
        Some(card) => Ok(Json(shown(&card))),
        None => Err(Refusal::NoModel(id.chars().take(64).collect()).into()),
    }
}

/// What clients see of a model.
pub(super) fn shape() -> Shape {
    object([("id", text()), ("object", one_of(&["model"])), ("created", whole()), ("owned_by", text())])
}

fn shown(card: &ModelCard) -> Value {
    let since = card.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({ "id": card.name, "object": "model", "created": since, "owned_by": "kiln" })
}
