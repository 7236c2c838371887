//! A model behind the protocol's tensors, for an inference server that loads kiln as one of its backends.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use kiln_runtime::bundle::Bundle;
use tokio::task::JoinSet;

use super::asked::{Asked, Parameter, Reader};
use super::results::Results;
use super::{Source, pictures};
use crate::config::ModelConfig;
use crate::http::error::{ApiError, internal};
use crate::{ClientId, Runtime, ServerError, Service, Ticket, Worker, WorkerOptions};

/// How often it is looked whether a client has left.
const LOOK: Duration = Duration::from_millis(100);

/// How long a drawing may take that runs when the model is taken away.
const LAST_STEP: Duration = Duration::from_secs(30);

/// A served model without a listener: requests are tensors, and those that come together are drawn together.
pub struct Backend {
    service: Service,
    worker: Mutex<Option<Worker>>,
    model: String,
    tokio: tokio::runtime::Runtime,
}

/// What one request says.
pub struct Call {
    reader: Reader,
}

/// A tensor of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputTensor {
    /// As the request calls it.
    pub name: &'static str,
    /// The protocol's name of what its elements are.
    pub datatype: &'static str,
    /// Its sides.
    pub shape: Vec<i64>,
    /// Its elements in the protocol's binary form.
    pub data: Vec<u8>,
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq)]
pub struct CallError {
    /// What kind of reason it is.
    pub kind: CallErrorKind,
    /// One line for whoever sent the request.
    pub message: String,
}

/// What kind of reason a request without an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallErrorKind {
    /// The request is wrong.
    Invalid,
    /// Too many requests wait, the model is about to be taken away, or it does not fit into memory.
    Unavailable,
    /// The client has left, or its time is over.
    Cancelled,
    /// Anything else.
    Internal,
}

impl Backend {
    /// Serves a model; `queue` requests may wait.
    pub fn start(
        config: ModelConfig,
        bundle: Bundle,
        runtime: &Runtime,
        queue: usize,
        options: WorkerOptions,
    ) -> Result<Backend, ServerError> {
        let service = Service::new(queue, queue);
        let model = config.name.clone();
        service.serve(&[(config, bundle)], runtime)?;
        let mut tokio = tokio::runtime::Builder::new_multi_thread();
        let tokio = tokio.worker_threads(1).thread_name("kiln-backend").enable_all().build();
        let tokio = tokio.map_err(ServerError::System)?;
        let worker = Mutex::new(Some(Worker::start(&service, runtime.pool.clone(), options)));
        Ok(Backend { service, worker, model, tokio })
    }

    /// A request that says nothing yet.
    pub fn call(&self) -> Result<Call, CallError> {
        let card = self.service.models().card(&self.model).ok_or_else(internal)?;
        Ok(Call { reader: Reader::new(card) })
    }

    /// Draws, and answers on a thread of its own. It is stopped once `is_left` says that nobody waits.
    pub fn draw(
        &self,
        call: Call,
        is_left: impl Fn() -> bool + Send + 'static,
        answer: impl FnOnce(Result<Vec<OutputTensor>, CallError>) + Send + 'static,
    ) {
        let service = self.service.clone();
        self.tokio.spawn(async move {
            // A task of its own, whose panic is an answer too; it ends with the set.
            let mut drawing = JoinSet::new();
            drawing.spawn(async move { tensors(&service, call).await });
            let drawn = tokio::select! {
                drawn = drawing.join_next() => match drawn {
                    Some(Ok(drawn)) => drawn,
                    _ => Err(internal().into()),
                },
                () = left(is_left) => Err(CallError { kind: CallErrorKind::Cancelled, message: "the request was cancelled".into() }),
            };
            tokio::task::spawn_blocking(move || answer(drawn));
        });
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let worker = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(worker) = worker {
            worker.join(&self.service, LAST_STEP);
            self.service.let_go();
        }
    }
}

impl Call {
    /// Takes an input; `data` is in the protocol's binary form.
    pub fn input(&mut self, name: &str, datatype: &str, shape: &[i64], data: Vec<u8>) -> Result<(), CallError> {
        Ok(self.reader.input(name, datatype, shape, Source::Raw(data.into()))?)
    }

    /// Takes a whole number as an input of one element, or as the time that the client waits, `timeout`.
    pub fn integer(&mut self, name: &str, value: i64) -> Result<(), CallError> {
        Ok(self.reader.parameter(name, Parameter::Integer(value.into()))?)
    }

    /// Takes a number as an input of one element.
    pub fn float(&mut self, name: &str, value: f64) -> Result<(), CallError> {
        Ok(self.reader.parameter(name, Parameter::Float(value))?)
    }

    /// Takes a text as an input of one element.
    pub fn text(&mut self, name: &str, value: &str) -> Result<(), CallError> {
        Ok(self.reader.parameter(name, Parameter::Text(value.into()))?)
    }

    /// Takes the name of an output that is asked for; without any, all but files are given.
    pub fn output(&mut self, name: &str) -> Result<(), CallError> {
        Ok(self.reader.output(name, true)?)
    }
}

impl From<ApiError> for CallError {
    fn from(error: ApiError) -> CallError {
        let kind = match error.status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::INSUFFICIENT_STORAGE => CallErrorKind::Unavailable,
            StatusCode::GATEWAY_TIMEOUT | StatusCode::CONFLICT => CallErrorKind::Cancelled,
            status if status.is_client_error() => CallErrorKind::Invalid,
            _ => CallErrorKind::Internal,
        };
        CallError { kind, message: error.message }
    }
}

async fn tensors(service: &Service, call: Call) -> Result<Vec<OutputTensor>, CallError> {
    let Asked { spec, outputs, time } = call.reader.finish(true)?;
    let seeds = spec.request.seeds.clone();
    let job = service.submit(spec, ClientId(String::new())).map_err(ApiError::from)?;
    let ticket = Ticket::new(service, job);
    let mut results = Results::new(pictures(&ticket, time).await?, seeds);
    let written = tokio::task::spawn_blocking(move || {
        results.encode(&outputs)?;
        let tensor = |output: &super::Output| OutputTensor {
            name: output.name,
            datatype: output.kind.datatype(),
            shape: results.shape(output.kind),
            data: results.raw(output.kind).into(),
        };
        Ok::<_, std::io::Error>(outputs.iter().map(tensor).collect())
    });
    Ok(written.await.ok().and_then(Result::ok).ok_or_else(internal)?)
}

async fn left(is_left: impl Fn() -> bool) {
    while !is_left() {
        tokio::time::sleep(LOOK).await;
    }
}
