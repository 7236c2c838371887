//! gRPC: `inference.GRPCInferenceService` of the Open Inference Protocol, on the port of HTTP.

mod fields;
mod frame;
mod infer;
pub(crate) mod messages;
mod status;

use std::future::{Future, ready};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use prost::Message;
use tracing::{Instrument, Span};

use crate::ClientId;
use crate::http::error::{ApiError, internal};
use crate::http::openapi::{Routes, binary, op};
use crate::http::{Turn, size};
use crate::inference::{EXTENSIONS, INPUTS, Inference, OUTPUTS, SERVER, VERSION};
use frame::Messages;
use messages::{
    Empty, ModelInferRequest, ModelMetadataResponse, ModelReadyResponse, ModelRequest, ServerLiveResponse,
    ServerMetadataResponse, ServerReadyResponse, TensorMetadata,
};
pub(crate) use status::{Code, Status};

/// The service's path.
const SERVICE: &str = "/inference.GRPCInferenceService";

/// The type of bodies.
const MEDIA_TYPE: &str = "application/grpc";

/// Requests of one stream that are drawn at once.
const AT_ONCE: usize = 8;

/// The service's methods.
pub(crate) fn routes() -> Routes<Inference> {
    let about =
        op("A method of the gRPC service").body(MEDIA_TYPE, binary()).answers(200, MEDIA_TYPE, binary());
    Routes::new("Open Inference Protocol").post(&format!("{SERVICE}/{{method}}"), call, about.by_link())
}

/// Whether a path's bodies are streams, which end when their clients like.
pub(crate) fn is_stream(path: &str) -> bool {
    path.strip_prefix(SERVICE) == Some("/ModelStreamInfer")
}

/// Whether a path tells the state of the server, for which no key is needed.
pub(crate) fn is_health(path: &str) -> bool {
    matches!(path.strip_prefix(SERVICE), Some("/ServerLive" | "/ServerReady"))
}

async fn call(
    State(inference): State<Inference>,
    Extension(client): Extension<ClientId>,
    Path(method): Path<String>,
    request: Request,
) -> Response {
    let limit = inference.app.max_body;
    match method.as_str() {
        "ServerLive" => unary(request, limit, |_: Empty| ready(Ok(ServerLiveResponse { live: true }))).await,
        "ServerReady" => unary(request, limit, |_: Empty| ready(Ok(server_ready(&inference)))).await,
        "ServerMetadata" => unary(request, limit, |_: Empty| ready(Ok(server_metadata()))).await,
        "ModelReady" => unary(request, limit, |asked| ready(Ok(model_ready(&inference, &asked)))).await,
        "ModelMetadata" => unary(request, limit, |asked| ready(model_metadata(&inference, &asked))).await,
        "ModelInfer" => infer(inference, client, request).await,
        "ModelStreamInfer" => infer_stream(inference, client, request).await,
        _ => Status::new(Code::Unimplemented, "the service has no such method here").into_response(),
    }
}

fn server_ready(inference: &Inference) -> ServerReadyResponse {
    ServerReadyResponse { ready: inference.check_ready().is_ok() }
}

fn server_metadata() -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: SERVER.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        extensions: EXTENSIONS.map(String::from).into(),
    }
}

fn model_ready(inference: &Inference, asked: &ModelRequest) -> ModelReadyResponse {
    ModelReadyResponse {
        ready: inference.check_ready().is_ok() && inference.model(&asked.name, &asked.version).is_ok(),
    }
}

fn model_metadata(inference: &Inference, asked: &ModelRequest) -> Result<ModelMetadataResponse, ApiError> {
    let card = inference.model(&asked.name, &asked.version)?;
    let tensor = |name: &str, datatype: &str, shape: &[i64]| TensorMetadata {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.into(),
    };
    Ok(ModelMetadataResponse {
        name: card.name,
        versions: vec![VERSION.into()],
        platform: SERVER.into(),
        inputs: INPUTS.iter().map(|input| tensor(input.name, input.datatype().name(), input.shape)).collect(),
        outputs: OUTPUTS.iter().map(|given| tensor(given.name, given.datatype, given.shape)).collect(),
    })
}

async fn infer(inference: Inference, client: ClientId, request: Request) -> Response {
    let limit = inference.app.max_body;
    let time =
        request.headers().get("grpc-timeout").map(|time| infer::timeout(time.to_str().unwrap_or_default()));
    match time.transpose() {
        Ok(time) => {
            let (request, turn, _held) = match turn(request).await {
                Ok(turn) => turn,
                Err(error) => return Status::from(&error).into_response(),
            };
            unary(request, limit, |asked| infer::infer(&inference, client, asked, time, turn)).await
        }
        Err(status) => status.into_response(),
    }
}

/// How a request's message is read, and what has the room of a small one until it is. The body of a large one, or of one that
/// may be, has its room until it is a message, which is read at once.
async fn turn(request: Request) -> Result<(Request, Turn, Option<Bytes>), ApiError> {
    let is_plain = request.headers().get("grpc-encoding").is_none_or(|name| name == "identity");
    let turn = match is_plain {
        true => Turn::of(size(request.body())).await?,
        false => Turn::at_place().await?,
    };
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map_err(|_| internal())?.to_bytes();
    let held = (!turn.has_place()).then(|| bytes.clone());
    Ok((Request::from_parts(parts, Body::from(bytes)), turn, held))
}

async fn infer_stream(inference: Inference, client: ClientId, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let messages =
        match Messages::new(&parts.headers, body, inference.app.max_body, Some(inference.app.room.clone())) {
            Ok(messages) => messages,
            Err(status) => return status.into_response(),
        };
    let requests = stream::unfold(Some(messages), async |messages| {
        let mut messages = messages?;
        let next = messages.next::<ModelInferRequest>().await.transpose()?;
        let is_last = next.is_err();
        Some((next, (!is_last).then_some(messages)))
    });
    // Jobs of later messages begin when this function has ended, and are part of its call all the same.
    let span = Span::current();
    let answers = requests.map(move |request| {
        let (inference, client) = (inference.clone(), client.clone());
        async move {
            let (request, room) = request?;
            Ok(infer::answer(&inference, client, request, room).await)
        }
        .instrument(span.clone())
    });
    frame::answer(answers.buffered(AT_ONCE))
}

async fn unary<Q, A, F>(request: Request, limit: usize, answer: impl FnOnce(Q) -> F) -> Response
where
    Q: Message + Default,
    A: Message + 'static,
    F: Future<Output = Result<A, ApiError>>,
{
    let (parts, body) = request.into_parts();
    let message = match Messages::new(&parts.headers, body, limit, None) {
        Ok(messages) => messages.only().await,
        Err(status) => Err(status),
    };
    match message {
        Ok(message) => match answer(message).await {
            Ok(answer) => frame::answer(stream::iter([Ok(answer)])),
            Err(error) => Status::from(&error).into_response(),
        },
        Err(status) => status.into_response(),
    }
}
