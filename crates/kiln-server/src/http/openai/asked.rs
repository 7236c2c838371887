//! What clients ask for.

use axum::body::Bytes;
use kiln_runtime::image::RgbImage;
use kiln_runtime::{Init, Size};

use super::answer::Answer;
use crate::Spec;
use crate::http::App;
use crate::http::drawing::{DRAWING, pictures, settings, spec};
use crate::http::encode::Format;
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::form::Form;
use crate::http::schema::{COUNT, Field, Kind as Of, SHARE, Table, field, missing, needed, sides};
use crate::http::upload::{alpha, decode};

/// Most pictures of a request.
const MAX_PICTURES: i128 = 10;

/// Most previews of a picture.
const MAX_PARTIALS: i128 = 3;

const ANSWER: &[Field] = &[
    field("response_format", Of::Word(&["url", "b64_json"]), "a link, or base64; both by default"),
    field("output_format", Of::Word(&["png", "jpeg", "webp"]), "png by default"),
    field("output_compression", Of::Whole(0, 100), "quality of JPEG files; 100 by default, and for PNG"),
    field("stream", Of::Flag, "whether to answer with server-sent events"),
    field("partial_images", Of::Whole(0, MAX_PARTIALS), "previews of a stream"),
];

/// What OpenAI's models know and diffusion does not: it changes nothing, and what would is refused.
const WITHOUT_EFFECT: &[Field] = &[
    field("user", Of::Any, "has no effect"),
    field("safety_identifier", Of::Any, "has no effect"),
    field("metadata", Of::Any, "has no effect"),
    field("quality", Of::Word(QUALITIES), "has no effect"),
    field("style", Of::Word(&["vivid", "natural"]), "has no effect"),
    field("moderation", Of::Word(&["auto", "low"]), "has no effect"),
    field("background", Of::Word(&["auto", "opaque"]), "has no effect"),
];

const QUALITIES: &[&str] = &["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"];

const PICTURES: &[Field] = &[
    field("model", Of::Text, "one of /v1/models; the first by default"),
    field("n", Of::Whole(1, MAX_PICTURES), "number of pictures; 1 by default"),
    field("size", Of::Size, "the model's own, or the given picture's, by default"),
    field("steps", COUNT, "denoising steps; the model's own by default"),
];

const PROMPT: &[Field] = &[needed("prompt", Of::Text, "what to draw")];

const IMAGE: &[Field] = &[
    needed("image", Of::OnePicture, "the picture to start from"),
    field("strength", SHARE, "how much is changed"),
];

const MASK: &[Field] =
    &[field("mask", Of::OnePicture, "where to paint: transparent, or white where the file is opaque")];

const FIDELITY: &[Field] = &[field("input_fidelity", Of::Word(&["low"]), "has no effect")];

static GENERATION: Table = Table::strict(&[PROMPT, PICTURES, DRAWING, ANSWER, WITHOUT_EFFECT]);
static EDIT: Table = Table::strict(&[PROMPT, IMAGE, MASK, PICTURES, DRAWING, ANSWER, FIDELITY, WITHOUT_EFFECT]);
static VARIATION: Table = Table::strict(&[IMAGE, PICTURES, DRAWING, ANSWER, WITHOUT_EFFECT]);

impl Kind {
    /// The fields of a request.
    pub(super) fn table(self) -> &'static Table {
        match self {
            Kind::Generation => &GENERATION,
            Kind::Edit => &EDIT,
            Kind::Variation => &VARIATION,
        }
    }
}

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
    WITHOUT_EFFECT.iter().chain(FIDELITY).for_each(|field| drop(fields.value(field.name)));
    let model = fields.text("model");
    let prompt = match kind {
        Kind::Variation => String::new(),
        _ => fields.text("prompt").unwrap_or_default(),
    };
    let n = fields.whole("n").unwrap_or(1) as usize;
    let size =
        fields.text("size").and_then(|text| sides(&text)).map(|(width, height)| Size::new(width, height));
    let (mut request, loras) = settings(fields, "steps");
    (request.width, request.height) = size.map(|size| (size.width, size.height)).unzip();
    request.init = init(kind, &mut form)?;
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
    let form = fields.text("response_format");
    let form = form.as_deref();
    let format = fields.text("output_format").and_then(|name| Format::named(&name)).unwrap_or_default();
    let compression = fields.whole("output_compression").unwrap_or(100) as u8;
    if format == Format::Png && compression < 100 {
        return Err(ApiError::invalid("output_compression", "output_compression: PNG files are without loss"));
    }
    let is_stream = fields.flag("stream").unwrap_or_default();
    let n_partials = fields.whole("partial_images").unwrap_or_default() as usize;
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

/// The picture to start from.
fn init(kind: Kind, form: &mut Form) -> Result<Option<Init>, ApiError> {
    if kind == Kind::Generation {
        return Ok(None);
    }
    let file = one("image", form.files("image")?)?;
    let file = file.ok_or_else(|| missing("image"))?;
    let mut init = Init::new(decode("image", &file)?).strength(form.fields.number("strength"));
    if kind == Kind::Edit {
        init.mask = mask(form, &file)?.map(Into::into);
    }
    Ok(Some(init))
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

fn inverted(image: &RgbImage) -> RgbImage {
    let data = image.data().iter().map(|value| 255 - value).collect();
    RgbImage::from_raw(image.width(), image.height(), data).expect("as many bytes as before")
}
