//! HTTP: the router, and what all of its paths have in common.

pub mod auth;
mod body;
mod drawing;
mod encode;
pub(crate) mod error;
mod fields;
mod files;
mod form;
mod health;
mod hf;
mod hosts;
mod jobs;
mod listen;
mod log;
mod oip;
mod openai;
pub(crate) mod openapi;
mod options;
mod page;
mod schema;
mod sdapi;
mod settings;
mod upload;
mod wait;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::decompression::RequestDecompressionLayer;

use kiln_runtime::Pool;

use crate::inference::Inference;
use crate::keeper::Keeper;
use crate::{Service, grpc};
pub use auth::{Keys, Rates};
pub(crate) use body::check_rate;
pub(crate) use drawing::new_seed;
pub(crate) use encode::png;
pub(crate) use error::internal;
pub use files::Files;
pub use hosts::Hosts;
pub use listen::{Listening, listen};
use openapi::Routes;

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// What handlers share.
pub struct Shared {
    /// Jobs.
    pub service: Service,
    /// Jobs that outlive the process.
    pub keeper: Arc<Keeper>,
    /// Who may come in.
    pub keys: Keys,
    /// Pictures behind links.
    pub files: Files,
    /// `http`, or `https` where connections are encrypted.
    pub scheme: &'static str,
    /// How often each key's requests came lately.
    pub rates: Rates,
    /// Holds the weights that are loaded.
    pub pool: Pool,
    /// Largest body, in bytes.
    pub max_body: usize,
    /// By which names the server may be called.
    pub hosts: Hosts,
    /// Origins whose pages may call.
    pub origins: Vec<axum::http::HeaderValue>,
}

impl App {
    /// Handlers over these.
    pub fn new(shared: Shared) -> App {
        App(Arc::new(shared))
    }
}

impl App {
    /// The model that is drawn with where a request names none.
    pub(crate) fn first_model(&self) -> Result<String, error::ApiError> {
        let first = self.service.models().cards().into_iter().next();
        first.map(|card| card.name).ok_or_else(|| error::ApiError::not_found("model"))
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The paths that know the app.
fn of_app() -> Routes<App> {
    health::routes()
        .merge(jobs::routes())
        .merge(files::routes())
        .merge(openai::routes())
        .merge(hf::routes())
        .merge(sdapi::routes())
        .merge(page::routes())
        .merge(openapi::routes())
}

/// The paths of the Open Inference Protocol.
fn of_inference() -> Routes<Inference> {
    oip::routes().merge(grpc::routes())
}

/// All paths.
pub fn router(app: App) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::list(app.origins.clone()))
        .allow_methods(tower_http::cors::Any)
        .allow_headers(tower_http::cors::Any);
    let inference = Inference::new(app.clone());
    let inference = of_inference().with_state(inference);
    of_app()
        .merge(inference)
        .into_router(!app.keys.is_empty())
        .with_state(app.clone())
        // Bodies are read, within their own bound, before handlers take them.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(app.clone(), body::admit))
        .layer(RequestDecompressionLayer::new())
        .layer(from_fn(error::in_dialect))
        .layer(from_fn_with_state(app, log::tell))
        .layer(cors)
}
