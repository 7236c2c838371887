//! Pictures without a model: resizing, and reading how they were made.

use axum::Json;
use axum::body::Bytes;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::Size;
use kiln_runtime::image::{RgbImage, png_texts};
use kiln_runtime::infotext;
use kiln_runtime::limits::{MAX_INPUT_PIXELS, MAX_SIDE};
use serde_json::{Map, Value, json};

use super::fields::{Fields, invalid};
use super::paint::{Fit, fitted};
use super::tables::{EXTRA_BATCH, EXTRA_SINGLE, PNG_INFO};
use crate::http::encode::png;
use crate::http::error::ApiError;
use crate::http::error::internal;
use crate::http::upload::{Turn, bytes, picture};

/// Most pictures of `extra-batch-images`.
const MAX_PICTURES: usize = 64;

/// Most bytes of their answer's pictures.
const MAX_BYTES: usize = 256 << 20;

/// `POST extra-single-image`
pub(super) async fn resize(body: Bytes) -> Result<Json<Value>, ApiError> {
    let resized = Turn::of(body.len()).await?.read(body, |body| {
        let fields = Fields::of(&body, &EXTRA_SINGLE)?;
        let text = fields.text("image").unwrap_or_default();
        Ok(json!({ "image": enlarged(&fields, "image", text)?, "html_info": "" }))
    });
    resized.await.map(Json)
}

/// `POST extra-batch-images`
pub(super) async fn resize_all(body: Bytes) -> Result<Json<Value>, ApiError> {
    let resized = Turn::of(body.len()).await?.read(body, |body| {
        let fields = Fields::of(&body, &EXTRA_BATCH)?;
        let list = fields.list("imageList");
        if list.len() > MAX_PICTURES {
            return Err(invalid("imageList", format!("{} pictures, the limit is {MAX_PICTURES}", list.len())));
        }
        // Files are small whose pixels are alike; the answer holds all of them.
        let mut left = MAX_BYTES;
        let mut one = |image: &Value| {
            let text = image.get("data").and_then(Value::as_str);
            let text = text.ok_or_else(|| invalid("imageList", "an entry has no data"))?;
            let file = enlarged(&fields, "imageList", text)?;
            left =
                left.checked_sub(file.len()).ok_or_else(|| invalid("imageList", "the answer is too large"))?;
            Ok::<_, ApiError>(file)
        };
        let images: Vec<String> = list.iter().map(&mut one).collect::<Result<_, _>>()?;
        Ok(json!({ "images": images, "html_info": "" }))
    });
    resized.await.map(Json)
}

fn enlarged(fields: &Fields, param: &str, text: &str) -> Result<String, ApiError> {
    let image = picture(param, text)?;
    let image = match fields.choice("upscaler_1") {
        None => image,
        Some(_) => resized(fields, &image)?,
    };
    png(&image, "").map(|file| BASE64_STANDARD.encode(file)).map_err(|_| internal())
}

fn resized(fields: &Fields, image: &RgbImage) -> Result<RgbImage, ApiError> {
    let Size { width, height } = image.size();
    let times = |factor: f64| [width, height].map(|side| (f64::from(side) * factor).round().max(1.0));
    let most = f64::from(MAX_SIDE);
    let (sides, fit) = match fields.whole("resize_mode").unwrap_or(0) {
        0 => (times(fields.number("upscaling_resize").unwrap_or(2.0)), Fit::Stretch),
        _ => {
            let side = |key| fields.number(key).unwrap_or(512.0).round();
            let to = [side("upscaling_resize_w"), side("upscaling_resize_h")];
            match fields.flag("upscaling_crop") != Some(false) {
                true => (to, Fit::Crop),
                false => (times((to[0] / f64::from(width)).max(to[1] / f64::from(height))), Fit::Stretch),
            }
        }
    };
    let [width, height] = sides;
    match width.max(height) <= most && width * height <= MAX_INPUT_PIXELS as f64 {
        true => Ok(fitted(image, Size::new(width as u32, height as u32), fit)),
        false => Err(invalid("upscaling_resize", format!("{width}x{height} pixels are too many"))),
    }
}

/// `POST png-info`
pub(super) async fn read(body: Bytes) -> Result<Json<Value>, ApiError> {
    let read = Turn::of(body.len()).await?.read(body, |body| {
        let fields = Fields::of(&body, &PNG_INFO)?;
        let text = fields.text("image").unwrap_or_default();
        let texts = png_texts(&bytes("image", text)?).map_err(|e| invalid("image", e.to_string()))?;
        let items: Map<String, Value> = texts.into_iter().map(|(key, text)| (key, text.into())).collect();
        let info = items.get("parameters").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(json!({ "info": info, "items": items, "parameters": parameters(&info) }))
    });
    read.await.map(Json)
}

/// What a text says, with the keys of the web UIs' `parse_generation_parameters`.
fn parameters(text: &str) -> Map<String, Value> {
    let said = infotext::parse(text);
    let mut found = Map::new();
    if text.is_empty() {
        return found;
    }
    found.insert("Prompt".into(), said.prompt.into());
    found.insert("Negative prompt".into(), said.negative_prompt.into());
    for (key, value) in said.settings {
        let sides =
            value.split_once('x').filter(|(w, h)| [w, h].iter().all(|side| side.parse::<u32>().is_ok()));
        match sides {
            Some((width, height)) => {
                found.insert(format!("{key}-1"), width.into());
                found.insert(format!("{key}-2"), height.into());
            }
            None => drop(found.insert(key, value.into())),
        }
    }
    found
}

/// `POST interrogate`
pub(super) async fn interrogate() -> ApiError {
    ApiError::invalid("model", "interrogate: kiln has no model that describes pictures")
}
