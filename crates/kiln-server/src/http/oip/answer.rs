//! Answers to inference requests: JSON, and behind it the tensors that are binary.
//!
//! Drawing may take longer than clients wait for a byte, a minute. An answer that is late begins with spaces before its
//! JSON; where tensors follow, the JSON is filled up to a length that is told beforehand.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::HEADER_LENGTH;
use crate::ClientId;
use crate::http::error::ApiError;
use crate::http::error::internal;
use crate::http::wait::patiently_as;
use crate::inference::{Asked, Elements, Inference, Output, OutputKind, Results, VERSION};

/// Bytes of a late answer's JSON beside what its tensors hold.
const LATE_JSON: usize = 64 << 10;

/// Most bytes of a picture's description beside its prompts.
const MAX_INFO: usize = 4096;

/// Draws and answers.
pub(super) async fn answer(
    inference: Inference,
    client: ClientId,
    id: Option<String>,
    asked: Asked,
) -> Response {
    let late_length = late_length(&asked);
    let all_json = asked.outputs.iter().all(|output| !output.is_binary);
    let answer = written(inference, client, id, asked);
    match (all_json, late_length) {
        (true, _) => {
            patiently_as(answer, Written::into_response, headers(None), |written, _| {
                Some(vec![written.json.into()])
            })
            .await
        }
        (false, Some(length)) => {
            let late = move |written: Written, spaces| written.late(length, spaces);
            patiently_as(answer, Written::into_response, headers(Some(length)), late).await
        }
        // Pixels as JSON beside binary tensors have no length that could be told beforehand.
        (false, None) => answer.await.map_or_else(ApiError::into_response, Written::into_response),
    }
}

async fn written(
    inference: Inference,
    client: ClientId,
    id: Option<String>,
    asked: Asked,
) -> Result<Written, ApiError> {
    let Asked { spec, outputs, time } = asked;
    let model = spec.model.clone();
    let mut results = inference.draw(spec, client, time).await?;
    let write = move || {
        results.encode(&outputs).map_err(|_| internal())?;
        Written::new(id.as_deref(), &model, &results, &outputs).map_err(|_| internal())
    };
    spawn_blocking(write).await.map_err(|_| internal())?
}

/// Most bytes of the JSON of an answer with binary tensors; none where it holds pixels.
fn late_length(asked: &Asked) -> Option<usize> {
    let in_json = |kind| asked.outputs.iter().any(|output| output.kind == kind && !output.is_binary);
    if in_json(OutputKind::Images) || in_json(OutputKind::Encoded) {
        return None;
    }
    let request = &asked.spec.request;
    let texts = request.prompts.iter().chain(&request.negative_prompts).map(String::len).max().unwrap_or(0);
    // An escaped character has up to six bytes; a description holds both prompts.
    let info = if in_json(OutputKind::Info) { 6 * (2 * texts + MAX_INFO) } else { 0 };
    Some(LATE_JSON + request.prompts.len() * info)
}

fn headers(length: Option<usize>) -> HeaderMap {
    let kind = if length.is_some() { "application/octet-stream" } else { "application/json" };
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
    if let Some(length) = length {
        headers.insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    headers
}

/// An answer's JSON, and the tensors behind it.
struct Written {
    json: Vec<u8>,
    tensors: Vec<Bytes>,
}

#[derive(Serialize)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model_name: &'a str,
    model_version: &'a str,
    outputs: Vec<Tensor<'a>>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: Vec<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Elements<'a>>,
}

#[derive(Serialize)]
struct Parameters {
    binary_data_size: usize,
}

impl Written {
    fn new(
        id: Option<&str>,
        model: &str,
        results: &Results,
        outputs: &[Output],
    ) -> serde_json::Result<Written> {
        let mut tensors = Vec::new();
        let mut tensor = |output: &Output| {
            let raw = output.is_binary.then(|| results.raw(output.kind));
            tensors.extend(raw.clone());
            Tensor {
                name: output.name,
                datatype: output.kind.datatype(),
                shape: results.shape(output.kind),
                data: raw.is_none().then(|| results.json(output.kind)),
                parameters: raw.map(|raw| Parameters { binary_data_size: raw.len() }),
            }
        };
        let outputs = outputs.iter().map(&mut tensor).collect();
        let json = serde_json::to_vec(&Message { id, model_name: model, model_version: VERSION, outputs })?;
        Ok(Written { json, tensors })
    }

    fn into_response(self) -> Response {
        let length = (!self.tensors.is_empty()).then_some(self.json.len());
        let parts = std::iter::once(Bytes::from(self.json)).chain(self.tensors);
        let body: Vec<Bytes> = parts.collect();
        (headers(length), Body::from(body.concat())).into_response()
    }

    /// The body behind so many spaces, where `length` bytes are told to be JSON.
    fn late(mut self, length: usize, spaces: usize) -> Option<Vec<Bytes>> {
        let left = length.checked_sub(spaces)?.checked_sub(self.json.len())?;
        self.json.resize(self.json.len() + left, b' ');
        self.tensors.insert(0, self.json.into());
        Some(self.tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_json_is_as_long_as_was_told() {
        let written = || Written { json: b"{}".into(), tensors: vec![Bytes::from_static(b"tensor")] };
        assert_eq!(
            written().late(8, 3),
            Some(vec![Bytes::from_static(b"{}   "), Bytes::from_static(b"tensor")])
        );
        assert_eq!(written().late(8, 6).map(|parts| parts.concat()), Some(b"{}tensor".to_vec()));
        assert_eq!(written().late(8, 7), None);
        assert_eq!(written().late(8, 9), None);
    }
}
