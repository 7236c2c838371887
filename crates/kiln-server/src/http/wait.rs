//! Answers that take long: the connection is kept alive by spaces before the JSON.
//!
//! Clients give up after 300 s without a response's headers, and then ask again. After [`PATIENCE`] the answer begins with
//! 200 and spaces, which JSON allows; what fails after that can only cut the connection.

use std::future::Future;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument;

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
    let mut answer = Box::pin(answer.in_current_span());
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use serde_json::json;
    use tokio::time::sleep;

    use super::*;

    async fn after(seconds: u64, answer: Result<Value, ApiError>) -> Result<Value, ApiError> {
        sleep(Duration::from_secs(seconds)).await;
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answers_begin_with_spaces() {
        let response = patiently(after(65, Ok(json!({ "a": 1 })))).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body, "     {\"a\":1}");
    }

    #[tokio::test(start_paused = true)]
    async fn quick_errors_have_a_status_and_late_ones_cut_the_connection() {
        let error = || Err(ApiError::invalid("n", "n: is wrong"));
        assert_eq!(patiently(after(19, error())).await.status(), 400);
        let late = patiently(after(21, error())).await;
        assert_eq!(late.status(), 200);
        assert!(late.into_body().collect().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reads_is_dropped() {
        let guard = Arc::new(());
        let held = guard.clone();
        let response = patiently(async move {
            let _held = held;
            after(1_000_000, Ok(Value::Null)).await
        });
        drop(response.await);
        sleep(BEAT).await;
        assert_eq!(Arc::strong_count(&guard), 1);
    }
}
