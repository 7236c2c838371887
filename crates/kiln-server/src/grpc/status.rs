//! How a call ends, in the words of gRPC.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::http::error::ApiError;

/// The content type of all answers.
pub(super) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static(super::MEDIA_TYPE);

const CODE: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// After how many milliseconds a client may try again.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// A code, with the number that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unauthenticated = 16,
}

/// How a call ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Code,
    /// One line for people.
    pub(crate) message: String,
    /// Milliseconds.
    retry_after: Option<u128>,
}

impl Status {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Status {
        Status { code, message: message.into(), retry_after: None }
    }

    pub(super) fn ok() -> Status {
        Status::new(Code::Ok, "")
    }

    /// The trailers that say it.
    pub(super) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert(CODE, HeaderValue::from(self.code as u16));
        if !self.message.is_empty()
            && let Ok(message) = HeaderValue::try_from(escaped(&self.message))
        {
            trailers.insert(MESSAGE, message);
        }
        if let Some(Ok(after)) = self.retry_after.map(u64::try_from) {
            trailers.insert(PUSHBACK, HeaderValue::from(after));
        }
        trailers
    }
}

impl From<&ApiError> for Status {
    fn from(error: &ApiError) -> Status {
        let code = match error.status.as_u16() {
            _ if error.code == "model_not_found" => Code::NotFound,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 | 405 | 501 => Code::Unimplemented,
            408 | 504 => Code::DeadlineExceeded,
            409 => Code::Cancelled,
            413 | 429 | 507 => Code::ResourceExhausted,
            500.. => Code::Internal,
            _ => Code::InvalidArgument,
        };
        let retry_after = error.retry_after.map(|after| after.as_millis());
        Status { retry_after, ..Status::new(code, error.message.clone()) }
    }
}

/// An answer without messages.
impl IntoResponse for Status {
    fn into_response(self) -> Response {
        let mut headers = self.trailers();
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        (headers, Body::empty()).into_response()
    }
}

/// A message as a header holds it: what is not plain as `%` and two hexadecimal digits.
fn escaped(message: &str) -> String {
    let escape = |byte: u8| match byte {
        b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    message.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_escaped() {
        assert_eq!(escaped("100% 'é'\n"), "100%25 '%C3%A9'%0A");
    }
}
