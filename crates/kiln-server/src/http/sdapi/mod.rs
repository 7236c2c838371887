//! The API of AUTOMATIC1111's web UI, below `/sdapi/v1` and `/controlnet`.

mod answer;
mod blur;
mod controlnet;
mod draw;
mod echo;
mod extras;
mod fields;
mod lists;
mod options;
mod paint;
mod panel;
mod plan;
mod progress;
mod prompt;
mod tables;

use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Extension, Router};

use super::App;
use crate::ClientId;
use panel::Panel;

/// The state of this API.
type Shared = Extension<Arc<Panel>>;

/// Who calls.
type Caller = Extension<ClientId>;

/// The paths.
pub(super) fn routes() -> Router<App> {
    let web_ui = Router::new()
        .route("/txt2img", post(draw::txt2img))
        .route("/img2img", post(draw::img2img))
        .route("/progress", get(progress::show))
        .route("/interrupt", post(progress::interrupt))
        .route("/skip", post(progress::skip))
        .route("/options", get(options::show).post(options::change))
        .route("/samplers", get(lists::samplers))
        .route("/schedulers", get(lists::schedulers))
        .route("/upscalers", get(lists::upscalers))
        .route("/latent-upscale-modes", get(lists::latent_upscale_modes))
        .route("/sd-models", get(lists::models))
        .route("/sd-vae", get(lists::none))
        .route("/sd-modules", get(lists::none))
        .route("/loras", get(lists::loras))
        .route("/embeddings", get(lists::embeddings))
        .route("/hypernetworks", get(lists::none))
        .route("/face-restorers", get(lists::none))
        .route("/realesrgan-models", get(lists::none))
        .route("/prompt-styles", get(lists::none))
        .route("/scripts", get(lists::scripts))
        .route("/script-info", get(lists::none))
        .route("/cmd-flags", get(lists::flags))
        .route("/memory", get(lists::memory))
        .route("/refresh-checkpoints", post(lists::done))
        .route("/refresh-loras", post(lists::done))
        .route("/refresh-vae", post(lists::done))
        .route("/refresh-embeddings", post(lists::done))
        .route("/unload-checkpoint", post(lists::done))
        .route("/reload-checkpoint", post(lists::done))
        .route("/png-info", post(extras::read))
        .route("/extra-single-image", post(extras::resize))
        .route("/extra-batch-images", post(extras::resize_all))
        .route("/interrogate", post(extras::interrogate));
    let controlnet = Router::new()
        .route("/version", get(controlnet::version))
        .route("/model_list", get(controlnet::models))
        .route("/module_list", get(controlnet::modules))
        .route("/control_types", get(controlnet::types))
        .route("/settings", get(controlnet::settings))
        .route("/detect", post(controlnet::detect));
    Router::new()
        .nest("/sdapi/v1", web_ui)
        .nest("/controlnet", controlnet)
        .layer(Extension(Arc::new(Panel::default())))
}
