//! What to draw, as clients of kiln's own API say it. What is left open is the model's default.

use kiln_runtime::{Hires, Init, Upscaler};

use crate::Spec;
use crate::http::App;
use crate::http::drawing::{DRAWING, pictures, settings, spec};
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::schema::{COUNT, Field, Kind, SHARE, Table, field, needed};
use crate::http::upload::picture;

/// The body of `POST /v1/jobs`.
pub(super) static BODY: Table = Table::strict(&[JOB, DRAWING]);

const JOB: &[Field] = &[
    needed("prompt", Kind::Text, "what to draw"),
    field("model", Kind::Text, "one of /v1/options; the first by default"),
    field("n", COUNT, "number of pictures; 1 by default"),
    field("width", COUNT, "in pixels; the model's own by default"),
    field("height", COUNT, "in pixels; the model's own by default"),
    field("steps", COUNT, "denoising steps; the model's own by default"),
    field("init_image", Kind::Picture, "a picture to start from"),
    field("mask", Kind::Picture, "where to paint: light; needs init_image"),
    field("strength", SHARE, "how much of the picture is changed; needs init_image"),
    field("hires", Kind::Object(&HIRES), "a second pass over larger pictures"),
];

static HIRES: Table = Table::strict(&[&[
    needed("scale", Kind::Number(1.0, 8.0), "factor on height and width"),
    field("strength", SHARE, "how much of the way is gone again"),
    field("steps", COUNT, "denoising steps of the second pass, before strength; the first one's by default"),
    field("upscaler", Kind::Word(&["latents", "pixels"]), "what is enlarged; latents by default"),
]]);

/// Reads a body. Decodes pictures: off the threads that answer.
pub(super) fn read(body: &[u8], app: &App) -> Result<Spec, ApiError> {
    let mut fields = Fields::of_json(body, &BODY)?;
    let (mut request, loras) = settings(&mut fields, "steps");
    let model = fields.text("model");
    let prompt = fields.text("prompt").unwrap_or_default();
    // What is more than any limit is refused by the model's own.
    let most = kiln_runtime::limits::MAX_BATCH as u64 + 1;
    let n = fields.whole("n").unwrap_or(1).min(most) as usize;
    let mut side = |key| fields.whole(key).map(|side| side as u32);
    (request.width, request.height) = (side("width"), side("height"));
    request.init = init(&mut fields)?;
    request.hires = fields.object("hires").map(hires);
    fields.finish()?;
    spec(app, model, loras, pictures(request, prompt, n))
}

fn init(fields: &mut Fields) -> Result<Option<Init>, ApiError> {
    let (image, mask, strength) = (fields.text("init_image"), fields.text("mask"), fields.number("strength"));
    let Some(image) = image else {
        let alone = mask.map(|_| "mask").or(strength.map(|_| "strength"));
        let refuse = |name| Err(ApiError::invalid(name, format!("{name}: has no init_image")));
        return alone.map_or(Ok(None), refuse);
    };
    let mut init = Init::new(picture("init_image", &image)?).strength(strength);
    init.mask = mask.map(|mask| picture("mask", &mask)).transpose()?.map(Into::into);
    Ok(Some(init))
}

fn hires(mut fields: Fields) -> Hires {
    let hires = Hires::new(fields.number("scale").unwrap_or_default() as f32);
    let strength = fields.number("strength").unwrap_or(hires.strength);
    let upscaler = match fields.text("upscaler").as_deref() {
        Some("pixels") => Upscaler::Pixels,
        _ => Upscaler::Latents,
    };
    let steps = fields.whole("steps").and_then(|steps| usize::try_from(steps).ok());
    hires.strength(strength).steps(steps).upscaler(upscaler)
}
