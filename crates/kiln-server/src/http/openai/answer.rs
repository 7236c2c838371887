//! Answers as a whole.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use serde_json::{Value, json};

use super::asked::Kind;
use crate::http::App;
use crate::http::encode::{Format, encode_elsewhere};
use crate::http::error::ApiError;
use crate::http::error::internal;
use crate::http::openapi::shape::{self, Shape, object, partly};
use crate::service::Ticket;

/// How to answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) kind: Kind,
    pub(super) format: Format,
    /// Of JPEG files, from 0 to 100.
    pub(super) quality: u8,
    /// Where links begin; none where there are none.
    pub(super) origin: Option<String>,
    /// Whether pictures are part of the answer.
    pub(super) holds_base64: bool,
    pub(super) is_stream: bool,
    /// Previews of a stream.
    pub(super) n_partials: usize,
    pub(super) preview_size: Size,
}

impl Answer {
    /// Waits for the pictures and tells of all of them.
    pub(super) async fn whole(&self, app: &App, ticket: &Ticket) -> Result<Value, ApiError> {
        let finished = ticket.pictures().await?;
        let mut data = Vec::with_capacity(finished.images.len());
        for (i, image) in finished.images.iter().enumerate() {
            let infotext = finished.infotexts.get(i).cloned().unwrap_or_default();
            let file = self.file(image, infotext).await?;
            data.push(self.entry(app, file, ticket.job().spec.request.seeds.get(i)));
        }
        let size = finished.images.first().map_or(Size::new(0, 0), RgbImage::size);
        let mut answer = self.settings(size);
        answer["created"] = now().into();
        answer["data"] = data.into();
        answer["usage"] = usage();
        Ok(answer)
    }

    fn entry(&self, app: &App, file: Vec<u8>, seed: Option<&u64>) -> Value {
        let mut entry = json!({ "seed": seed });
        if self.holds_base64 {
            entry["b64_json"] = BASE64_STANDARD.encode(&file).into();
        }
        if let Some(origin) = &self.origin {
            let path = app.files.keep(Bytes::from(file), self.format);
            entry["url"] = format!("{origin}{path}").into();
        }
        entry
    }

    /// The file of a picture.
    pub(super) async fn file(&self, image: &RgbImage, infotext: String) -> Result<Vec<u8>, ApiError> {
        let encoded = encode_elsewhere(image.clone(), self.format, self.quality, infotext).await;
        encoded.map_err(|_| internal())
    }

    /// How pictures are made, in words that the strictest client knows.
    pub(super) fn settings(&self, size: Size) -> Value {
        json!({
            "background": "opaque",
            "output_format": self.format.name(),
            "quality": "auto",
            "size": size.to_string(),
        })
    }
}

/// What clients get.
pub(super) fn shape() -> Shape {
    let picture = partly([("seed", shape::whole())], [("b64_json", shape::base64()), ("url", shape::text())]);
    let details = || object([("image_tokens", shape::whole()), ("text_tokens", shape::whole())]);
    let usage = object([
        ("input_tokens", shape::whole()),
        ("input_tokens_details", details()),
        ("output_tokens", shape::whole()),
        ("output_tokens_details", details()),
        ("total_tokens", shape::whole()),
    ]);
    object([
        ("created", shape::whole()),
        ("data", shape::list(picture)),
        ("usage", usage),
        ("background", shape::one_of(&["opaque"])),
        ("output_format", shape::one_of(&["png", "jpeg", "webp"])),
        ("quality", shape::one_of(&["auto"])),
        ("size", shape::text()),
    ])
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Tokens, which nobody pays for here; clients want to know their numbers.
pub(super) fn usage() -> Value {
    json!({
        "input_tokens": 0,
        "input_tokens_details": { "image_tokens": 0, "text_tokens": 0 },
        "output_tokens": 0,
        "output_tokens_details": { "image_tokens": 0, "text_tokens": 0 },
        "total_tokens": 0,
    })
}
