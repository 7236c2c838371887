//! HTTP: the router, and what all of its paths have in common.

pub mod auth;
mod body;
mod cors;
mod drawing;
mod encode;
pub(crate) mod error;
mod fields;
mod files;
mod form;
mod health;
mod hf;
mod hosts;
mod intake;
mod jobs;
mod listen;
mod log;
mod oip;
mod openai;
pub(crate) mod openapi;
mod options;
mod page;
mod peers;
mod schema;
mod sdapi;
mod settings;
mod upload;
mod wait;

use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::HeaderName;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::decompression::RequestDecompressionLayer;

use kiln_runtime::Pool;
use tokio::sync::Semaphore;

use crate::inference::Inference;
use crate::keeper::Keeper;
use crate::{Service, grpc};
pub use auth::{Keys, Rates};
pub(crate) use body::check_rate;
pub(crate) use drawing::{bound, new_seed};
pub use encode::png;
pub(crate) use error::internal;
pub use files::Files;
pub(crate) use form::size;
pub use health::{Vitals, vitals_router};
pub use hosts::Hosts;
pub(crate) use intake::{Intake, Unread, room};
pub use listen::{Listening, Tls, bind, listen};
use openapi::Routes;
pub(crate) use upload::{Turn, check_place};

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// What handlers share.
pub struct Shared {
    /// Jobs.
    pub service: Service,
    /// Takes jobs.
    pub keeper: Arc<dyn Keeper>,
    /// Who may come in.
    pub keys: RwLock<Arc<Keys>>,
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
    /// Bytes that all bodies together may still take.
    pub room: Arc<Semaphore>,
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
    /// Who may come in.
    pub(crate) fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whom to let in from now on.
    pub(crate) fn exchange_keys(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// Bytes of the bodies that are being read, or wait to be.
    pub(crate) fn bytes_of_bodies(&self) -> u64 {
        let all = intake::most(self.max_body);
        all.saturating_sub(self.room.available_permits()) as u64
    }

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
        .allow_headers(cors::TAKEN.map(HeaderName::from_static))
        .expose_headers(cors::GIVEN.map(HeaderName::from_static));
    let inference = Inference::new(app.clone());
    let inference = of_inference().with_state(inference);
    of_app()
        .merge(inference)
        .into_router(!app.keys().is_empty())
        .with_state(app.clone())
        // Bodies are read, within their own bound, before handlers take them.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(app.clone(), body::admit))
        .layer(RequestDecompressionLayer::new())
        .layer(from_fn(error::in_dialect))
        .layer(from_fn_with_state(app, log::tell))
        .layer(cors)
}
