//! Tensors in, pictures out: what the Open Inference Protocol's two transports, HTTP and gRPC, have in common.
//!
//! Source: <https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol> and Triton's extensions.

mod asked;
mod backend;
mod describe;
mod flat;
mod picture;
mod raw;
mod results;
mod statistics;
mod tensor;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use crate::http::App;
use crate::http::error::ApiError;
use crate::{ClientId, Finished, ModelCard, Refusal, Spec, Ticket};
pub(crate) use asked::{Asked, Parameter, Reader};
pub use backend::{Backend, Call, CallError, CallErrorKind, OutputTensor};
pub(crate) use describe::{EXTENSIONS, INPUTS, OUTPUTS, SERVER, data_type};
pub use describe::{VERSION, configuration};
pub(crate) use results::{Elements, OUTPUT_NAMES, Output, OutputKind, Results};
use statistics::Statistics;
pub(crate) use statistics::{Count, Span};
pub(crate) use tensor::{Source, unknown};

/// Draws for the protocol's handlers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inference {
    pub(crate) app: App,
    statistics: Arc<Statistics>,
}

impl Inference {
    pub(crate) fn new(app: App) -> Inference {
        Inference { app, statistics: Arc::default() }
    }

    /// A served model; `version` is empty where any will do.
    pub(crate) fn model(&self, name: &str, version: &str) -> Result<ModelCard, ApiError> {
        let Some(card) = self.app.service.models().card(name) else {
            return Err(Refusal::NoModel(name.chars().take(64).collect()).into());
        };
        match version {
            "" | VERSION => Ok(card),
            _ => {
                let message =
                    format!("model: '{}' has no version '{}'", card.name, crate::fault::shown(version));
                Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message))
            }
        }
    }

    /// Refuses while the server ends, and while the worker is stuck.
    pub(crate) fn check_ready(&self) -> Result<(), ApiError> {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        if self.app.service.is_closed() {
            return Err(ApiError { status: unavailable, ..Refusal::Ending.into() });
        }
        match self.app.service.stuck() {
            Some(_) => Err(ApiError::new(unavailable, "stuck", "the engine is stuck")),
            None => Ok(()),
        }
    }

    /// What was drawn with a model so far.
    pub(crate) fn count(&self, model: &str) -> Count {
        self.statistics.count(model)
    }

    /// Draws within a time, and stops the drawing when nobody waits for it any more.
    pub(crate) async fn draw(
        &self,
        spec: Spec,
        client: ClientId,
        time: Option<Duration>,
    ) -> Result<Results, ApiError> {
        let start = Instant::now();
        let (model, seeds) = (spec.model.clone(), spec.request.seeds.clone());
        let ticket = self.app.keeper.draw(spec, client).await?;
        let drawn = pictures(&ticket, time).await;
        self.statistics.add(&model, start.elapsed(), drawn.as_deref().ok());
        Ok(Results::new(drawn?, seeds))
    }
}

/// Waits so long for a job's pictures.
async fn pictures(ticket: &Ticket, time: Option<Duration>) -> Result<Arc<Finished>, ApiError> {
    match tokio::time::timeout(time.unwrap_or(Duration::MAX), ticket.pictures()).await {
        Ok(drawn) => drawn.map_err(ApiError::from),
        Err(_) => {
            let message = "timeout: the time was over before the pictures were done";
            Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message))
        }
    }
}
