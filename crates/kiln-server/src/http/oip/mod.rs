//! The Open Inference Protocol v2, as KServe defines it and Triton extends it.

mod answer;
mod asked;
mod models;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::{Extension, Json, Router, routing};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::error::ApiError;
use super::error::internal;
use super::{App, health};
use crate::ClientId;
use crate::inference::{EXTENSIONS, Inference, SERVER};

/// The header that says how many bytes before the tensors are JSON.
const HEADER_LENGTH: &str = "inference-header-content-length";

/// All paths.
pub(super) fn routes(inference: Inference) -> Router<App> {
    let mut router = Router::new()
        .route("/v2", routing::get(server))
        .route("/v2/health/live", routing::get(health::live))
        .route("/v2/health/ready", routing::get(ready))
        .route("/v2/models/stats", routing::get(models::all_statistics))
        .route("/v2/repository/index", routing::post(models::index));
    for model in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        router = router
            .route(model, routing::get(models::metadata))
            .route(&format!("{model}/ready"), routing::get(models::ready))
            .route(&format!("{model}/config"), routing::get(models::config))
            .route(&format!("{model}/stats"), routing::get(models::statistics))
            .route(&format!("{model}/infer"), routing::post(infer));
    }
    router.with_state(inference)
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
    let read = spawn_blocking(move || asked::read(card, &headers, body));
    let (id, asked) = read.await.map_err(|_| internal())??;
    Ok(answer::answer(inference, client, id, asked).await)
}
