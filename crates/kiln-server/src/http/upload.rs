//! Pictures that clients send.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::image::RgbImage;

use super::error::ApiError;

/// A picture in base64, with or without `data:` before it.
pub(crate) fn picture(param: &str, text: &str) -> Result<RgbImage, ApiError> {
    decode(param, &bytes(param, text)?)
}

/// The bytes of a file in base64, with or without `data:` before it.
pub(crate) fn bytes(param: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    let text =
        text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")).map_or(text, |(_, rest)| rest);
    let bytes = BASE64_STANDARD.decode(text.trim());
    bytes.map_err(|_| ApiError::invalid(param, format!("{param}: is not base64")))
}

/// A picture of any of the formats that are read, told by its bytes.
pub(crate) fn decode(param: &str, bytes: &[u8]) -> Result<RgbImage, ApiError> {
    RgbImage::from_bytes(bytes).map_err(|e| ApiError::invalid(param, format!("{param}: {e}")))
}
