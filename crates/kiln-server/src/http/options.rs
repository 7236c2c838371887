//! What requests can choose from.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::settings::shortest;
use crate::ModelCard;

/// `GET /v1/options`: the models, the first of which is the default, with what a request that says nothing comes to.
pub(super) async fn show(State(app): State<App>) -> Json<Value> {
    let models: Vec<Value> = app.service.models().cards().iter().map(model).collect();
    Json(json!({ "models": models, "max_body_bytes": app.max_body }))
}

fn model(card: &ModelCard) -> Value {
    let limits = card.limits;
    json!({
        "name": card.name,
        "title": card.title,
        "class": card.class,
        "width": card.size.width,
        "height": card.size.height,
        "steps": card.usual_steps,
        "guidance_scale": shortest(card.guidance_scale),
        "scheduler": card.scheduler,
        "schedulers": card.schedulers,
        "loras": card.loras,
        "limits": {
            "side": limits.side,
            "pixels": limits.pixels,
            "steps": limits.steps,
            "pictures": limits.pictures,
            "prompt_bytes": limits.prompt_bytes,
        },
    })
}
