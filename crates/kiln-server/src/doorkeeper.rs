//! The paths of a server that reads and checks requests, and takes none: what the fuzz targets ask.

use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use axum::Router;
use kiln_runtime::Backend;
use kiln_runtime::bundle::Bundle;

use crate::config::ModelConfig;
use crate::http::{App, Files, Hosts, Rates, Shared, room, router};
use crate::keeper::local::LocalKeeper;
use crate::models::{Model, Runtime};
use crate::store::{Retention, Store};
use crate::{ServerError, Service};

/// Largest body, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The paths of a server of one model, which answers 429 where another would draw.
pub fn refusing(
    config: &ModelConfig,
    bundle: Bundle,
    backend: Arc<dyn Backend>,
    runtime: &Runtime,
    state: &Path,
) -> Result<Router, ServerError> {
    let service = Service::new(1, 1);
    let model = Model::over(config, bundle, backend, runtime)
        .map_err(|source| ServerError::Model { name: config.name.clone(), source: Box::new(source) })?;
    service.models().set(vec![Arc::new(model)]);
    service.close();
    let store = Arc::new(Store::open(state)?);
    Ok(router(App::new(Shared {
        keeper: Arc::new(LocalKeeper::new(
            service.clone(),
            store,
            Retention { age: Duration::MAX, bytes: u64::MAX },
        )),
        service,
        keys: RwLock::default(),
        files: Files::default(),
        scheme: "http",
        rates: Rates::default(),
        pool: runtime.pool.clone(),
        max_body: MAX_BODY,
        room: room(MAX_BODY),
        origins: Vec::new(),
        hosts: Hosts::all(),
    })))
}
