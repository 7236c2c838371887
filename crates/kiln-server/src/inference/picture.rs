//! Pictures as inputs: pixels, or a file.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::image::RgbImage;

use crate::http::check_place;

use super::tensor::{Tensor, Values};

/// The picture of a tensor: `UINT8 [h, w, 3]`, also with a one before it, or one element of BYTES with a file of any
/// format, or its base64. `allows_grey` takes `[h, w]` and `[h, w, 1]`, too.
pub(crate) fn read(tensor: &Tensor, allows_grey: bool) -> Result<RgbImage, String> {
    match &tensor.values {
        Values::Octets(octets) => pixels(&tensor.shape, octets, allows_grey),
        Values::Texts(texts) => file(texts.first().map_or(&[], |file| file)),
        Values::Integers(_) | Values::Floats(_) => Err("is no picture".into()),
    }
}

fn pixels(shape: &[u64], octets: &[u8], allows_grey: bool) -> Result<RgbImage, String> {
    let (height, width, channels) = match *shape {
        [height, width] => (height, width, 1),
        [1, height, width, channels] | [height, width, channels] => (height, width, channels),
        _ => (0, 0, 0),
    };
    let data = match channels {
        3 => octets.to_vec(),
        1 if allows_grey => octets.iter().flat_map(|grey| [*grey; 3]).collect(),
        _ => return Err(format!("shape {shape:?} is not [height, width, 3]")),
    };
    let side = |side: u64| u32::try_from(side).map_err(|_| format!("shape {shape:?} is too large"));
    RgbImage::from_raw(side(width)?, side(height)?, data).map_err(|e| e.to_string())
}

/// No picture's file is plain text; what is, is base64.
fn file(bytes: &[u8]) -> Result<RgbImage, String> {
    check_place().map_err(|error| error.message)?;
    let decoded = std::str::from_utf8(bytes).ok().map(|text| {
        let text = text
            .strip_prefix("data:")
            .and_then(|rest| rest.split_once(";base64,"))
            .map_or(text, |(_, rest)| rest);
        BASE64_STANDARD.decode(text.trim()).map_err(|_| "is neither a picture's file nor base64".to_owned())
    });
    match decoded {
        Some(decoded) => RgbImage::from_bytes(&decoded?).map_err(|e| e.to_string()),
        None => RgbImage::from_bytes(bytes).map_err(|e| e.to_string()),
    }
}
