//! What clients ask for.

use axum::body::Bytes;
use kiln_runtime::image::RgbImage;
use kiln_runtime::{Init, Size};

use super::answer::Answer;
use crate::Spec;
use crate::http::App;
use crate::http::drawing::{no_larger, pictures, settings, spec};
use crate::http::encode::Format;
use crate::http::error::ApiError;
use crate::http::fields::{Fields, shown};
use crate::http::form::Form;
use crate::http::upload::decode;

/// Most pictures of a request.
const MAX_PICTURES: u64 = 10;

/// Most previews of a picture.
const MAX_PARTIALS: u64 = 3;

/// Which path was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Generation,
    Edit,
    Variation,
}

/// Reads a request, whose server the client knows as `origin`.
pub(super) fn ask(
    kind: Kind,
    mut form: Form,
    origin: Option<String>,
    app: &App,
) -> Result<(Spec, Answer), ApiError> {
    let fields = &mut form.fields;
    let mut answer = answer(kind, origin, fields)?;
    without_effect(kind, fields)?;
    let model = fields.text("model")?;
    let prompt = match kind {
        Kind::Variation => String::new(),
        _ => fields.needed_text("prompt")?,
    };
    let n = fields.whole("n", 1..=MAX_PICTURES)?.unwrap_or(1) as usize;
    let size = size(fields)?;
    let (mut request, loras) = settings(fields, "steps")?;
    (request.width, request.height) = size.map(|size| (size.width, size.height)).unzip();
    request.init = init(kind, &mut form, size)?;
    form.finish()?;
    let spec = spec(app, model, loras, pictures(request, prompt, n))?;
    answer.preview_size = preview_size(&spec, app);
    Ok((spec, answer))
}

/// The size that previews have: about that of the picture.
fn preview_size(spec: &Spec, app: &App) -> Size {
    let request = &spec.request;
    let own = request.init.as_ref().map(|init| init.image.size());
    let size = request.width.zip(request.height).map(|(width, height)| Size::new(width, height));
    let of_model = || app.service.models().card(&spec.model).map_or(Size::new(1, 1), |card| card.size);
    size.or(own).unwrap_or_else(of_model)
}

fn answer(kind: Kind, origin: Option<String>, fields: &mut Fields) -> Result<Answer, ApiError> {
    let form = fields.word("response_format", &["url", "b64_json"])?;
    let format = fields.word("output_format", &["png", "jpeg", "webp"])?.and_then(Format::named);
    let format = format.unwrap_or_default();
    let compression = fields.whole("output_compression", 0..=100)?.unwrap_or(100) as u8;
    if format == Format::Png && compression < 100 {
        return Err(ApiError::invalid("output_compression", "output_compression: PNG files are without loss"));
    }
    let is_stream = fields.flag("stream")?.unwrap_or_default();
    let n_partials = fields.whole("partial_images", 0..=MAX_PARTIALS)?.unwrap_or_default() as usize;
    if n_partials > 0 && !is_stream {
        return Err(ApiError::invalid("partial_images", "partial_images: needs stream"));
    }
    if form == Some("url") && origin.is_none() {
        return Err(ApiError::invalid("response_format", "response_format: a url needs the header Host"));
    }
    Ok(Answer {
        kind,
        format,
        quality: compression,
        origin: origin.filter(|_| form != Some("b64_json")),
        holds_base64: form != Some("url"),
        is_stream,
        n_partials,
        preview_size: Size::new(1, 1),
    })
}

/// Takes what OpenAI's models know and diffusion does not: it changes nothing, and what would is refused.
fn without_effect(kind: Kind, fields: &mut Fields) -> Result<(), ApiError> {
    ["user", "safety_identifier", "metadata"].into_iter().for_each(|key| drop(fields.value(key)));
    fields.word("quality", &["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"])?;
    fields.word("style", &["vivid", "natural"])?;
    fields.word("moderation", &["auto", "low"])?;
    fields.word("background", &["auto", "opaque"])?;
    if kind == Kind::Edit {
        fields.word("input_fidelity", &["low"])?;
    }
    Ok(())
}

/// `WIDTHxHEIGHT`; none for `auto`.
fn size(fields: &mut Fields) -> Result<Option<Size>, ApiError> {
    let Some(text) = fields.text("size")?.filter(|text| text != "auto") else { return Ok(None) };
    let side = |text: &str| {
        let is_plain = text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|side: &u32| is_plain && *side > 0)
    };
    let sides = text.split_once('x').and_then(|(width, height)| side(width).zip(side(height)));
    let refuse = || ApiError::invalid("size", format!("size: '{}' is not auto or WIDTHxHEIGHT", shown(&text)));
    sides.map(|(width, height)| Some(Size::new(width, height))).ok_or_else(refuse)
}

/// The picture to start from.
fn init(kind: Kind, form: &mut Form, size: Option<Size>) -> Result<Option<Init>, ApiError> {
    if kind == Kind::Generation {
        return Ok(None);
    }
    let file = one("image", form.files("image")?)?;
    let file = file.ok_or_else(|| ApiError {
        code: "missing_required_parameter",
        ..ApiError::invalid("image", "image: is missing")
    })?;
    let mut init = Init::new(decode("image", &file)?).strength(form.fields.number("strength")?);
    if kind == Kind::Edit {
        init.mask = mask(form, &file)?.map(Into::into);
    }
    let size = size.unwrap_or(init.image.size());
    Ok(Some(no_larger(init, size)))
}

fn one(name: &str, mut files: Vec<Bytes>) -> Result<Option<Bytes>, ApiError> {
    match files.len() {
        0 | 1 => Ok(files.pop()),
        n => Err(ApiError::invalid(name, format!("{name}: {n} pictures; one is read"))),
    }
}

/// Where to paint: where the mask's file is transparent, or white where it is opaque; without a mask, where the picture's own
/// file is transparent.
fn mask(form: &mut Form, image: &[u8]) -> Result<Option<RgbImage>, ApiError> {
    let Some(file) = one("mask", form.files("mask")?)? else {
        let alpha = alpha("image", image)?.filter(|alpha| !alpha.is_flat(0));
        return Ok(alpha.map(|alpha| inverted(&alpha)));
    };
    let transparent = alpha("mask", &file)?.filter(|alpha| alpha.data().iter().any(|value| *value < 255));
    match transparent {
        Some(alpha) => Ok(Some(inverted(&alpha))),
        None => decode("mask", &file).map(Some),
    }
}

fn alpha(param: &str, file: &[u8]) -> Result<Option<RgbImage>, ApiError> {
    RgbImage::alpha_from_bytes(file).map_err(|e| ApiError::invalid(param, format!("{param}: {e}")))
}

fn inverted(image: &RgbImage) -> RgbImage {
    let data = image.data().iter().map(|value| 255 - value).collect();
    RgbImage::from_raw(image.width(), image.height(), data).expect("as many bytes as before")
}
