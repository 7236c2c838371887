//! Answers that take long: the connection is kept alive by spaces before the JSON.
//!
//! Clients give up after 300 s without a response's headers, and then ask again. After [`PATIENCE`] the answer begins with
//! 200 and spaces, which JSON allows; what fails after that can only cut the connection.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at};
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;

/// How long an answer may take before its headers are sent without it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a space follows.
const BEAT: Duration = Duration::from_secs(10);

/// Answers with JSON that takes long to make.
pub(crate) async fn patiently(
    answer: impl Future<Output = Result<Value, ApiError>> + Send + 'static,
) -> Response {
    let json = HeaderValue::from_static("application/json");
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, json)]);
    let late = |value: Value, _| Some(vec![Bytes::from(value.to_string())]);
    patiently_as(answer, |value| axum::Json(value).into_response(), headers, late).await
}

/// Answers with what takes long to make: `at_once` writes it where it is soon there; else `headers` go out without it, spaces
/// follow, and `late` writes the rest of the body behind so many of them, if it can.
pub(crate) async fn patiently_as<T: Send + 'static>(
    answer: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    at_once: impl FnOnce(T) -> Response,
    headers: HeaderMap,
    late: impl FnOnce(T, usize) -> Option<Vec<Bytes>> + Send + 'static,
) -> Response {
    let mut answer = Box::pin(answer);
    if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut answer).await {
        return answer.map_or_else(ApiError::into_response, at_once);
    }
    let (sender, receiver) = mpsc::channel::<Result<Bytes, &'static str>>(1);
    tokio::spawn(async move {
        let (mut beats, mut spaces) = (interval_at(Instant::now(), BEAT), 0);
        loop {
            tokio::select! {
                made = &mut answer => {
                    let rest = made.ok().and_then(|made| late(made, spaces)).map(|rest| rest.into_iter().map(Ok).collect());
                    let rest = rest.unwrap_or_else(|| vec![Err("the answer failed after it had begun")]);
                    for part in rest {
                        let _ = sender.send(part).await;
                    }
                    return;
                }
                _ = beats.tick() => {
                    // Nobody reads any more: what is waited for is dropped.
                    if sender.send(Ok(Bytes::from_static(b" "))).await.is_err() {
                        return;
                    }
                    spaces += 1;
                }
                () = sender.closed() => return,
            }
        }
    });
    (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

/// One server-sent event.
pub(crate) fn event(name: Option<&str>, data: &Value) -> String {
    match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}

/// Server-sent events from a stream of `data` texts.
pub(crate) fn events(stream: impl futures_util::Stream<Item = String> + Send + 'static) -> Response {
    let lines = stream.map(|data| Ok::<_, Infallible>(Bytes::from(format!("data: {data}\n\n"))));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(lines)).into_response()
}
