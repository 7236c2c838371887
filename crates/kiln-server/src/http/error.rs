//! Errors in the words of the API that was called.

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::openapi::shape::{Shape, object, or_null, text};
use crate::{Fault, FaultKind, Refusal, grpc};

/// Why a request is not answered with what it asks for; [`in_dialect`] puts it into words.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// A name for programs.
    pub(crate) code: &'static str,
    /// One line for people.
    pub(crate) message: String,
    /// The field that is wrong.
    pub(crate) param: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// A wrong field.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        ApiError { param: Some(param.into()), ..error }
    }

    pub(crate) fn not_found(what: &str) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }
}

/// What is none of the client's faults; the log has more.
pub(crate) fn internal() -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal_error",
        "something went wrong; the server's log says what",
    )
}

/// A JSON body.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| {
        let message: String = e.to_string().chars().take(200).collect();
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("body: {message}"))
    })
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::Full(after) => ApiError {
                retry_after: Some(after),
                ..ApiError::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "queue_full",
                    "the queue is full; try again later",
                )
            },
            Refusal::NoModel(name) => {
                let message = format!("model: '{}' is not served here", name.escape_debug());
                let error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message);
                ApiError { param: Some("model".into()), ..error }
            }
            Refusal::Invalid(fault) => fault.into(),
            Refusal::Ending => ApiError {
                retry_after: Some(Duration::from_secs(5)),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "ending", "the server is about to end")
            },
        }
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> ApiError {
        let (status, code) = match fault.kind {
            FaultKind::Request => (StatusCode::BAD_REQUEST, "invalid_request"),
            FaultKind::Model => (StatusCode::INTERNAL_SERVER_ERROR, "model_error"),
            FaultKind::Memory => (StatusCode::INSUFFICIENT_STORAGE, "out_of_memory"),
            FaultKind::Device => (StatusCode::INTERNAL_SERVER_ERROR, "device_error"),
            FaultKind::Interrupted => (StatusCode::CONFLICT, "cancelled"),
            FaultKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        ApiError::new(status, code, fault.message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Marks an answer that has its own body, whatever its status.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AsItIs;

/// Whose words errors take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"error", "detail", "body", "errors"}`
    WebUi,
    /// `{"error": "text"}`
    Inference,
}

impl Dialect {
    pub(crate) fn of(path: &str) -> Dialect {
        let is_below = |prefix: &str| {
            path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        match () {
            () if is_below("/sdapi") || is_below("/controlnet") => Dialect::WebUi,
            () if is_below("/v2") || is_below("/hf") || path == "/v1" => Dialect::Inference,
            () => Dialect::OpenAi,
        }
    }

    /// What the OpenAPI document calls its errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Dialect::OpenAi => "OpenAiError",
            Dialect::WebUi => "WebUiError",
            Dialect::Inference => "InferenceError",
        }
    }

    /// The schema of [`Self::body`].
    pub(crate) fn schema(self) -> Shape {
        match self {
            Dialect::OpenAi => object([(
                "error",
                object([("message", text()), ("type", text()), ("param", or_null(text())), ("code", text())]),
            )]),
            Dialect::WebUi => {
                object([("error", text()), ("detail", text()), ("body", text()), ("errors", text())])
            }
            Dialect::Inference => object([("error", text())]),
        }
    }

    /// The body that tells of an error.
    pub(crate) fn body(self, error: &ApiError) -> Value {
        let ApiError { status, code, message, param, .. } = error;
        match self {
            Dialect::OpenAi => {
                let kind = match status.as_u16() {
                    401 | 403 => "authentication_error",
                    429 => "rate_limit_error",
                    500.. => "server_error",
                    _ => "invalid_request_error",
                };
                json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
            }
            Dialect::WebUi => json!({ "error": code, "detail": message, "body": "", "errors": message }),
            Dialect::Inference => json!({ "error": message }),
        }
    }
}

/// Gives every refusal, the router's own among them, a body in the dialect of the path.
pub(crate) async fn in_dialect(request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.uri().path());
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"));
    let is_head = request.method() == axum::http::Method::HEAD;
    let response = next.run(request).await;
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    if !is_error || response.extensions().get::<AsItIs>().is_some() {
        return response;
    }
    let error = response.extensions().get::<ApiError>().cloned();
    let error = error.unwrap_or_else(|| of_router(response.status()));
    if is_grpc {
        return grpc::Status::from(&error).into_response();
    }
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::CONTENT_TYPE);
    match is_head {
        true => (parts, ()).into_response(),
        false => {
            let (status, headers) = (parts.status, parts.headers);
            (status, headers, Json(dialect.body(&error))).into_response()
        }
    }
}

fn of_router(status: StatusCode) -> ApiError {
    let (code, message) = match status {
        StatusCode::NOT_FOUND => ("not_found", "there is nothing at this path"),
        StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "this path does not take the method"),
        StatusCode::PAYLOAD_TOO_LARGE => ("too_large", "the body is too large"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ("unsupported_media_type", "the body is of another type"),
        StatusCode::REQUEST_TIMEOUT => ("timeout", "the body came too slowly"),
        status if status.is_client_error() => ("bad_request", "the request cannot be read"),
        _ => ("internal_error", "something went wrong; the server's log says what"),
    };
    ApiError::new(status, code, message)
}
