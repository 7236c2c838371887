//! Answers that take long: the connection is kept alive by spaces before the JSON.
//!
//! Clients give up after 300 s without a response's headers, and then ask again. After [`PATIENCE`] the answer begins with
//! 200 and spaces, which JSON allows; what fails after that can only cut the connection.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
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
    let mut answer = Box::pin(answer);
    if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut answer).await {
        return match answer {
            Ok(value) => axum::Json(value).into_response(),
            Err(error) => error.into_response(),
        };
    }
    let (sender, receiver) = mpsc::channel::<Result<Bytes, &'static str>>(1);
    tokio::spawn(async move {
        let mut beats = interval_at(Instant::now(), BEAT);
        loop {
            tokio::select! {
                made = &mut answer => {
                    let last = match made {
                        Ok(value) => Ok(Bytes::from(value.to_string())),
                        Err(_) => Err("the answer failed after it had begun"),
                    };
                    let _ = sender.send(last).await;
                    return;
                }
                _ = beats.tick() => {
                    // Nobody reads any more: what is waited for is dropped.
                    if sender.send(Ok(Bytes::from_static(b" "))).await.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
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
