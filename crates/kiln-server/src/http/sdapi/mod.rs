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
mod routes;
mod tables;

use std::sync::Arc;

use axum::Extension;

use super::App;
use super::openapi::Routes;
use crate::ClientId;
use panel::Panel;

/// The state of this API.
type Shared = Extension<Arc<Panel>>;

/// Who calls.
type Caller = Extension<ClientId>;

/// The paths.
pub(super) fn routes() -> Routes<App> {
    let routes = Routes::new("AUTOMATIC1111's web UI");
    routes
        .nest("/sdapi/v1", routes::web_ui())
        .nest("/controlnet", routes::controlnet())
        .extension(Arc::<Panel>::default())
}
