//! Bodies: read as a whole, within bounds of size and time, before a handler sees them.
//!
//! A client that is refused while it still sends sees no answer but a broken connection, and sends everything again. So what
//! is refused is read and dropped first, as far as that is reasonable.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::App;
use super::error::ApiError;

/// Most bytes that are read of a body whose request is refused.
const MAX_DRAINED: usize = 64 << 20;

/// How long a body may take.
const TIME: Duration = Duration::from_secs(120);

/// Lets in whom the keys know, and reads the body.
pub(crate) async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_open = is_open(request.method(), request.uri().path());
    let Some(client) = app.keys.client(request.headers()).or_else(|| is_open.then(Default::default)) else {
        drain(request.into_body()).await;
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "an API key is needed");
        return error.into_response();
    };
    let changes = matches!(*request.method(), Method::POST | Method::DELETE | Method::PUT);
    if changes && let Err(wait) = app.rates.take(&app.keys, &client) {
        drain(request.into_body()).await;
        let message = "this key has sent all the requests that a minute allows";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        let wait = wait.as_secs_f64().ceil().clamp(1.0, 59.0);
        return ApiError { retry_after: Some(Duration::from_secs_f64(wait)), ..error }.into_response();
    }
    let (parts, body) = request.into_parts();
    match read(body, app.max_body).await {
        Ok(bytes) => {
            let mut request = Request::from_parts(parts, Body::from(bytes));
            request.extensions_mut().insert(client);
            next.run(request).await
        }
        Err(status) => status.into_response(),
    }
}

/// Paths that need no key: the state of the server, and what a browser asks for on its own before it sends one.
fn is_open(method: &Method, path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/v2/health/live" | "/v2/health/ready") || method == Method::OPTIONS
}

async fn read(body: Body, limit: usize) -> Result<Bytes, StatusCode> {
    let end = Instant::now() + TIME;
    let (mut body, mut read) = (body, Vec::new());
    loop {
        match timeout_at(end, body.frame()).await {
            Err(_) => return Err(StatusCode::REQUEST_TIMEOUT),
            Ok(None) => return Ok(read.into()),
            Ok(Some(Err(_))) => return Err(StatusCode::BAD_REQUEST),
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                if read.len() + data.len() > limit {
                    drain(body).await;
                    return Err(StatusCode::PAYLOAD_TOO_LARGE);
                }
                read.extend_from_slice(&data);
            }
        }
    }
}

/// Reads and drops what is left of a body.
async fn drain(mut body: Body) {
    let (end, mut left) = (Instant::now() + TIME, MAX_DRAINED);
    while let Ok(Some(Ok(frame))) = timeout_at(end, body.frame()).await {
        let n = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(n) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
