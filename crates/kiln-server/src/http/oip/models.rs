//! What models are called, take, give and have done.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::Named;
use crate::ModelCard;
use crate::http::error::ApiError;
use crate::inference::{INPUTS, Inference, OUTPUTS, SERVER, Span, VERSION, data_type};

/// `GET /v2/models/{model}[/versions/{version}]`
pub(super) async fn metadata(
    State(inference): State<Inference>,
    Path(named): Path<Named>,
) -> Result<Json<Value>, ApiError> {
    let card = inference.model(&named.model, &named.version)?;
    let inputs = INPUTS.iter().map(|input| tensor(input.name, input.datatype().name(), input.shape));
    let outputs = OUTPUTS.iter().map(|given| tensor(given.name, given.datatype, given.shape));
    Ok(Json(json!({
        "name": card.name,
        "versions": [VERSION],
        "platform": SERVER,
        "inputs": inputs.collect::<Vec<_>>(),
        "outputs": outputs.collect::<Vec<_>>(),
    })))
}

/// `GET …/ready`
pub(super) async fn ready(
    State(inference): State<Inference>,
    Path(named): Path<Named>,
) -> Result<Json<Value>, ApiError> {
    let card = inference.model(&named.model, &named.version)?;
    inference.check_ready()?;
    Ok(Json(json!({ "name": card.name, "ready": true })))
}

/// `GET …/config`, in the form of Triton's model configuration.
pub(super) async fn config(
    State(inference): State<Inference>,
    Path(named): Path<Named>,
) -> Result<Json<Value>, ApiError> {
    let card = inference.model(&named.model, &named.version)?;
    let inputs = INPUTS.iter().map(|input| {
        json!({
            "name": input.name,
            "data_type": data_type(input.datatype().name()),
            "dims": input.shape,
            "optional": input.is_optional,
        })
    });
    let outputs = OUTPUTS.iter().map(
        |given| json!({ "name": given.name, "data_type": data_type(given.datatype), "dims": given.shape }),
    );
    Ok(Json(json!({
        "name": card.name,
        "platform": "",
        "backend": SERVER,
        "version_policy": { "latest": { "num_versions": 1 } },
        "max_batch_size": 0,
        "input": inputs.collect::<Vec<_>>(),
        "output": outputs.collect::<Vec<_>>(),
        "parameters": parameters(&card),
    })))
}

/// `GET …/stats`
pub(super) async fn statistics(
    State(inference): State<Inference>,
    Path(named): Path<Named>,
) -> Result<Json<Value>, ApiError> {
    let card = inference.model(&named.model, &named.version)?;
    Ok(Json(json!({ "model_stats": [counted(&inference, &card)] })))
}

/// `GET /v2/models/stats`
pub(super) async fn all_statistics(State(inference): State<Inference>) -> Json<Value> {
    let cards = inference.app.service.models().cards();
    let counts: Vec<_> = cards.iter().map(|card| counted(&inference, card)).collect();
    Json(json!({ "model_stats": counts }))
}

/// `POST /v2/repository/index`; all models are ready, so that the body can leave none out.
pub(super) async fn index(State(inference): State<Inference>) -> Json<Value> {
    let cards = inference.app.service.models().cards().into_iter();
    let model =
        |card: ModelCard| json!({ "name": card.name, "version": VERSION, "state": "READY", "reason": "" });
    Json(cards.map(model).collect())
}

fn tensor(name: &str, datatype: &str, shape: &[i64]) -> Value {
    json!({ "name": name, "datatype": datatype, "shape": shape })
}

/// What the model is, and what a request may take.
fn parameters(card: &ModelCard) -> Value {
    let text = |text: String| json!({ "string_value": text });
    json!({
        "class": text(card.class.clone()),
        "width": text(card.size.width.to_string()),
        "height": text(card.size.height.to_string()),
        "max_side": text(card.limits.side.to_string()),
        "max_pixels": text(card.limits.pixels.to_string()),
        "max_steps": text(card.limits.steps.to_string()),
        "max_pictures": text(card.limits.pictures.to_string()),
    })
}

fn counted(inference: &Inference, card: &ModelCard) -> Value {
    let count = inference.count(&card.name);
    let span = |span: Span| json!({ "count": span.count, "ns": span.time.as_nanos() as u64 });
    json!({
        "name": card.name,
        "version": VERSION,
        "last_inference": count.last,
        "inference_count": count.pictures,
        "execution_count": count.success.count,
        "inference_stats": {
            "success": span(count.success),
            "fail": span(count.failure),
            "queue": span(count.queue),
            "compute_input": span(count.start),
            "compute_infer": span(count.steps),
            "compute_output": span(count.decode),
            "cache_hit": span(Span::default()),
            "cache_miss": span(Span::default()),
        },
        "batch_stats": [],
        "memory_usage": [],
    })
}
