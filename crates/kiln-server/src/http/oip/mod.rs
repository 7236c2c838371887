//! The Open Inference Protocol v2, as KServe defines it and Triton extends it.

mod answer;
mod asked;
mod document;
mod models;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::health;
use super::openapi::shape::{flag, object, text};
use super::openapi::{Op, Routes, binary, op};
use super::upload::Turn;
use crate::ClientId;
use crate::inference::{EXTENSIONS, Inference, SERVER};

/// The header that says how many bytes before the tensors are JSON.
const HEADER_LENGTH: &str = "inference-header-content-length";

/// All paths.
pub(super) fn routes() -> Routes<Inference> {
    let is_ready =
        || op("Whether the server takes requests").ok(object([("ready", flag())])).refuses(503).open();
    let mut routes = Routes::new("Open Inference Protocol")
        .get("/v2", server, op("The server").ok(document::server()))
        .get(
            "/v2/health/live",
            health::live,
            op("Whether the server lives").ok(object([("live", flag())])).open(),
        )
        .get("/v2/health/ready", ready, is_ready())
        .get("/v2/models/stats", models::all_statistics, op("What was drawn").ok(document::statistics()))
        .post("/v2/repository/index", models::index, op("The models").ok(document::index()));
    for model in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        let path = |rest: &str| format!("{model}/{rest}");
        let is_ready = object([("name", text()), ("ready", flag())]);
        routes = routes
            .get(model, models::metadata, op("A model").ok(document::metadata()))
            .get(
                &path("ready"),
                models::ready,
                op("Whether a model can be drawn with").ok(is_ready).refuses(503),
            )
            .get(&path("config"), models::config, op("A model's configuration").ok(document::config()))
            .get(&path("stats"), models::statistics, op("What a model has drawn").ok(document::statistics()))
            .post(&path("infer"), infer, infers());
    }
    routes
}

fn infers() -> Op {
    const BINARY: &str = "application/octet-stream";
    op("Draws")
        .body("application/json", document::request())
        .body(BINARY, binary())
        .header(HEADER_LENGTH, "how many bytes before binary tensors are JSON", text())
        .ok(document::answer())
        .answers(200, BINARY, binary())
        .draws()
        .refuses(504)
}

/// The model of a path.
#[derive(Deserialize)]
struct Named {
    model: String,
    #[serde(default)]
    version: String,
}

async fn server() -> Json<Value> {
    Json(json!({ "name": SERVER, "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS }))
}

async fn ready(State(inference): State<Inference>) -> Result<Json<Value>, ApiError> {
    inference.check_ready()?;
    Ok(Json(json!({ "ready": true })))
}

async fn infer(
    State(inference): State<Inference>,
    Extension(client): Extension<ClientId>,
    Path(named): Path<Named>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let card = inference.model(&named.model, &named.version)?;
    let turn = Turn::of(body.len()).await?;
    let read = turn.read((card, headers, body), |(card, headers, body)| asked::read(card, &headers, body));
    let (id, asked) = read.await?;
    Ok(answer::answer(inference, client, id, asked).await)
}
