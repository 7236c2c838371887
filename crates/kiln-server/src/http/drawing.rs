//! How to draw, as the image APIs say it beside their own fields.

use kiln_runtime::{Picture, Request, Size};

use super::App;
use super::error::ApiError;
use super::fields::Fields;
use super::schema::{Field, Kind, NUMBER, SEED, SHARE, field};
use super::upload::no_larger;
use crate::{Fault, FaultKind, LoraChoice, ModelCard, Spec};

/// The fields that say how to draw, without the number of steps, which each API calls as it likes.
pub(crate) const DRAWING: &[Field] = &[
    field("guidance_scale", NUMBER, "weight of the prompt; the model's own by default"),
    field("guidance_rescale", SHARE, "0 by default"),
    field("guidance_start", SHARE, "share of the evaluations after which guidance starts; 0 by default"),
    field("guidance_end", SHARE, "share of the evaluations after which guidance ends; 1 by default"),
    field(
        "deep_every",
        Kind::Whole(1, 64),
        "evaluations from one that runs the denoiser's deep layers to the next; 1 by default",
    ),
    field("eta", SHARE, "noise of DDIM; 0 by default"),
    field("clip_skip", Kind::Whole(0, 64), "layers of the text encoder to skip; 0 by default"),
    field("scheduler", Kind::Text, "one of /v1/options; the model's own by default"),
    field("negative_prompt", Kind::Text, "what not to draw"),
    field("seed", SEED, "of the first picture, whose successors follow; a new one by default"),
    field("loras", Kind::Factors, "LoRAs of the model, and their factors"),
];

/// Takes the fields that say how to draw; `steps` is the name of the one for the number of steps.
pub(crate) fn settings(fields: &mut Fields, steps: &str) -> (Request, Vec<LoraChoice>) {
    let count = |value: Option<u64>| value.map(|value| usize::try_from(value).unwrap_or(usize::MAX));
    let narrow = |value: Option<f64>| value.map(|value| value as f32);
    let mut request = Request::new("")
        .steps(count(fields.whole(steps)))
        .guidance_scale(narrow(fields.number("guidance_scale")))
        .guidance_rescale(narrow(fields.number("guidance_rescale")).unwrap_or_default())
        .guidance_interval(
            fields.number("guidance_start").unwrap_or(0.0),
            fields.number("guidance_end").unwrap_or(1.0),
        )
        .deep_every(count(fields.whole("deep_every")).unwrap_or(1))
        .eta(narrow(fields.number("eta")).unwrap_or_default())
        .clip_skip(count(fields.whole("clip_skip")).unwrap_or_default());
    request.scheduler = fields.text("scheduler");
    request.negative_prompts.extend(fields.text("negative_prompt").filter(|text| !text.is_empty()));
    request.seeds = vec![fields.whole("seed").unwrap_or_else(new_seed)];
    let loras = fields.factors("loras").into_iter().map(|(name, weight)| LoraChoice { name, weight });
    (request, loras.collect())
}

/// The request for `n` pictures of a prompt, whose seeds follow the first one's.
pub(crate) fn pictures(request: Request, prompt: String, n: usize) -> Request {
    let first = request.seeds[0];
    let seeds: Vec<u64> = (0..n as u64).map(|i| first.wrapping_add(i)).collect();
    request.prompts(vec![prompt; n]).seeds(seeds)
}

/// The job's description, for the first model where the client names none.
pub(crate) fn spec(
    app: &App,
    model: Option<String>,
    loras: Vec<LoraChoice>,
    mut request: Request,
) -> Result<Spec, ApiError> {
    let model = model.filter(|name| !name.is_empty()).map_or_else(|| app.first_model(), Ok)?;
    match app.service.models().card(&model) {
        Some(card) => bound(&mut request, &card)?,
        // Is refused when it is sent.
        None => request.init = None,
    }
    Ok(Spec { model, loras, request })
}

/// Shrinks what a request starts from to the size that it is drawn in, to which it is resized anyway; what would be drawn
/// beyond the model's limits is refused before it waits.
pub(crate) fn bound(request: &mut Request, card: &ModelCard) -> Result<(), Fault> {
    let Some(init) = &mut request.init else { return Ok(()) };
    let own = if init.mask.is_some() { card.size } else { init.image.size() };
    let size = Size::new(request.width.unwrap_or(own.width), request.height.unwrap_or(own.height));
    card.limits.check(size).map_err(|reason| Fault::new(FaultKind::Request, reason))?;
    for picture in [Some(&mut init.image), init.mask.as_mut()].into_iter().flatten() {
        if let Picture::Rgb(image) = picture {
            no_larger(image, size);
        }
    }
    Ok(())
}

/// A seed that nobody has chosen.
pub(crate) fn new_seed() -> u64 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the operating system has random numbers");
    u32::from_le_bytes(bytes).into()
}
