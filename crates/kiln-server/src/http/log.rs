//! A line per request in the log, and a name that finds it there. Bodies are never logged: some hold passwords.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, Span, debug_span, field};

use super::{App, files};
use crate::JobId;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest name that a client may give its request.
const MAX_ID: usize = 64;

/// Tells of a request when its answer begins.
pub(crate) async fn tell(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = id(&request);
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let path: String = files::without_name(&path).chars().take(200).flat_map(char::escape_debug).collect();
    let span = span(&id, &method, &path);
    #[cfg(feature = "otel")]
    crate::otel::adopt(&span, request.headers());
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("http.response.status_code", status);
    app.service.metrics().answered(known(&method), &route, status, begun.elapsed());
    let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
    tracing::info!(id, method, path, status, milliseconds, "request");
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The method as metrics count it: a client's own words would be a series each.
fn known(method: &str) -> &str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    if KNOWN.contains(&method) { method } else { "other" }
}

/// The span of a request, with OpenTelemetry's names of its attributes.
fn span(id: &str, method: &str, path: &str) -> Span {
    debug_span!(
        "request",
        otel.kind = "server",
        http.request.method = method,
        url.path = path,
        http.response.status_code = field::Empty,
        request_id = id,
    )
}

/// The client's own name for the request where it is a plain one, or a new one.
fn id(request: &Request) -> String {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_plain = |id: &&str| {
        !id.is_empty()
            && id.len() <= MAX_ID
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    given.filter(is_plain).map_or_else(|| JobId::random().to_string(), str::to_owned)
}
