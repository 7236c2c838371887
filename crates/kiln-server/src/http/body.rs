//! Bodies: read as a whole, within bounds of size and time, before a handler sees them.
//!
//! A client that is refused while it still sends sees no answer but a broken connection, and sends everything again. So what
//! is refused is read and dropped first, as far as that is reasonable.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::App;
use super::error::ApiError;
use super::intake::{Intake, TIME, Unread};
use super::listen::MAX_HEADERS;
use super::page;
use crate::{ClientId, grpc};

/// Most bytes that are read of a body whose request is refused.
const MAX_DRAINED: usize = 64 << 20;

/// Lets in whom the keys know, and reads the body.
pub(crate) async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    if head_bytes(&request) > MAX_HEADERS {
        return StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response();
    }
    let path = request.uri().path().to_owned();
    if let Err(error) = app.hosts.check(&request) {
        drain(request.into_body()).await;
        return error.into_response();
    }
    let is_open = is_open(&app, request.method(), &path);
    let Some(client) = app.keys().client(request.headers()).or_else(|| is_open.then(Default::default)) else {
        drain(request.into_body()).await;
        return stranger(&path);
    };
    let changes = !is_open && matches!(*request.method(), Method::POST | Method::DELETE | Method::PUT);
    if changes && is_foreign(&app.origins, &request) {
        drain(request.into_body()).await;
        let message = "pages of other origins may change nothing here, unless --allow-origin names theirs";
        return ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message).into_response();
    }
    if grpc::is_stream(&path) {
        let mut request = request;
        request.extensions_mut().insert(client);
        return next.run(request).await;
    }
    if changes && let Err(error) = check_rate(&app, &client) {
        drain(request.into_body()).await;
        return error.into_response();
    }
    let (parts, body) = request.into_parts();
    match read(&app, body).await {
        Ok(bytes) => {
            let mut request = Request::from_parts(parts, Body::from(bytes));
            request.extensions_mut().insert(client);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// Bytes of a request's head. The connection itself bounds them to about twice as many.
fn head_bytes(request: &Request) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    fields.sum::<usize>() + request.uri().path_and_query().map_or(0, |path| path.as_str().len())
}

/// Counts a request of a client, and refuses one more than its key may send.
pub(crate) fn check_rate(app: &App, client: &ClientId) -> Result<(), ApiError> {
    let keys = app.keys();
    if !keys.knows(client) {
        // Of a stream that began before the key was revoked.
        return Err(no_key());
    }
    let Err(wait) = app.rates.take(&keys, client) else { return Ok(()) };
    let message = "this key has sent all the requests that a minute allows";
    let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
    let wait = wait.as_secs_f64().ceil().clamp(1.0, 59.0);
    Err(ApiError { retry_after: Some(Duration::from_secs_f64(wait)), ..error })
}

/// Whether a page of another origin sends this. Browsers let such requests through, with the key that they remember, and
/// keep nothing but the answer from the page.
fn is_foreign(allowed: &[HeaderValue], request: &Request) -> bool {
    let headers = request.headers();
    let Some(origin) = headers.get(header::ORIGIN).filter(|origin| !allowed.contains(origin)) else {
        return false;
    };
    if let Some(site) = headers.get("sec-fetch-site") {
        return !(site == "same-origin" || site == "none");
    }
    // Browsers say no more than the origin to addresses without TLS.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or(request.uri().authority().map(|authority| authority.as_str()));
    let of_origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    of_origin.map(|(_, host)| host) != host
}

fn no_key() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "an API key is needed")
}

/// Asks for a key. For the page a browser does so by itself, where the answer says how.
fn stranger(path: &str) -> Response {
    let mut response = no_key().into_response();
    if page::is_at(path) {
        let basic = HeaderValue::from_static("Basic realm=\"kiln\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    }
    response
}

/// Paths that need no key: the state of the server, what a browser asks for on its own before it sends one, and pictures
/// whose names are secret.
fn is_open(app: &App, method: &Method, path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/v2/health/live" | "/v2/health/ready")
        || path.starts_with("/readyz/")
        || grpc::is_health(path)
        || method == Method::OPTIONS
        || app.files.holds(path)
}

/// A whole body, whose room is free when nobody holds it any more.
async fn read(app: &App, mut body: Body) -> Result<Bytes, ApiError> {
    let (mut intake, mut read) = (Intake::new(&app.room), Vec::new());
    loop {
        match intake.next(&mut body).await {
            Ok(None) => return Ok(Bytes::from_owner(Held { bytes: read, _room: intake.held() })),
            Ok(Some(data)) if read.len() + data.len() > app.max_body => {
                drop((intake, read));
                drain(body).await;
                let message = "the body is too large";
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
            }
            Ok(Some(data)) => read.extend_from_slice(&data),
            Err(unread) => {
                drop((intake, read));
                if unread == Unread::Full {
                    drain(body).await;
                }
                return Err(unread.into());
            }
        }
    }
}

/// Bytes of a body, and their room.
struct Held {
    bytes: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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
