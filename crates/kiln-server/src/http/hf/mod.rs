//! Hugging Face's Inference API for text to image: clients post to the very URL that they are given, and want the bytes of a
//! picture.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use kiln_runtime::Init;

use super::App;
use super::drawing::{DRAWING, pictures, settings, spec};
use super::encode::{Format, encode_elsewhere};
use super::error::ApiError;
use super::error::internal;
use super::fields::Fields;
use super::form::{Form, size};
use super::openapi::{Routes, binary, op};
use super::schema::{COUNT, Field, Kind, SHARE, Table, field, needed};
use super::upload::{Turn, picture};
use crate::{ClientId, Spec};

static BODY: Table = Table::strict(&[&[
    needed("inputs", Kind::Text, "the prompt; a picture in base64 where the prompt is a parameter"),
    field("parameters", Kind::Object(&PARAMETERS), "how to draw"),
    field("options", Kind::Any, "has no effect"),
]]);

static PARAMETERS: Table = Table::strict(&[DRAWING, SIZE, STEPS]);

const STEPS: &[Field] = &[
    field("num_inference_steps", COUNT, "denoising steps; the model's own by default"),
    field("target_size", Kind::Object(&TARGET), "the picture's size"),
    field("prompt", Kind::Text, "what to make of the picture in inputs"),
    field("strength", SHARE, "how much of the picture is changed"),
];

static TARGET: Table = Table::strict(&[SIZE]);

const SIZE: &[Field] = &[
    field("width", COUNT, "in pixels; the model's own by default"),
    field("height", COUNT, "in pixels; the model's own by default"),
];

pub(super) fn routes() -> Routes<App> {
    let draws = |summary| {
        let formats = [Format::Png, Format::Jpeg, Format::Webp].into_iter();
        let about =
            formats.fold(op(summary), |about, format| about.answers(200, format.media_type(), binary()));
        about.form(&BODY).draws()
    };
    Routes::new("Hugging Face")
        .post("/hf", draw_with_first, draws("Draws with the first model"))
        .post("/hf/{model}", draw_with, draws("Draws with a model"))
        // Where a client was given the address of OpenAI's API.
        .post("/v1", draw_with_first, draws("Draws with the first model, as /hf does"))
}

async fn draw_with_first(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    request: Request,
) -> Result<Response, ApiError> {
    draw(app, client, None, request).await
}

async fn draw_with(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path(model): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    draw(app, client, Some(model), request).await
}

async fn draw(
    app: App,
    client: ClientId,
    model: Option<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let format = accepted(request.headers());
    let turn = Turn::of(size(request.body())).await?;
    let form = Form::read(request, &BODY).await?;
    let read = turn.read((form, model, app.clone()), |(form, model, app)| ask(form.fields, model, &app));
    let ticket = app.keeper.draw(read.await?, client).await?;
    let finished = ticket.pictures().await?;
    let image = finished.images.first().ok_or_else(internal)?.clone();
    let infotext = finished.infotexts.first().cloned().unwrap_or_default();
    let file = encode_elsewhere(image, format, 95, infotext).await.map_err(|_| internal())?;
    Ok(([(header::CONTENT_TYPE, format.media_type())], file).into_response())
}

/// The first format that the client accepts.
fn accepted(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let kinds = accept.split(',').filter_map(|kind| kind.split(';').next()?.trim().strip_prefix("image/"));
    kinds.filter_map(Format::named).next().unwrap_or_default()
}

/// Text to image, or image to image where the prompt is a parameter and the input is a picture.
fn ask(mut fields: Fields, model: Option<String>, app: &App) -> Result<Spec, ApiError> {
    let inputs = fields.text("inputs").unwrap_or_default();
    let mut parameters = fields.object("parameters").unwrap_or_default();
    // How the hub's own servers wait and cache.
    drop(fields.value("options"));
    fields.finish()?;
    let (mut request, loras) = settings(&mut parameters, "num_inference_steps");
    let mut size = parameters.object("target_size").unwrap_or_default();
    for sides in [&mut size, &mut parameters] {
        let mut side = |key| sides.whole(key).map(|side| side as u32);
        request.width = side("width").or(request.width);
        request.height = side("height").or(request.height);
    }
    size.finish()?;
    let strength = parameters.number("strength");
    let prompt = match parameters.text("prompt") {
        None if strength.is_some() => {
            return Err(ApiError::invalid(
                "strength",
                "strength: needs the parameter prompt and a picture as inputs",
            ));
        }
        None => inputs,
        Some(prompt) => {
            let init = Init::new(picture("inputs", &inputs)?);
            request.init = Some(init.strength(strength));
            prompt
        }
    };
    parameters.finish()?;
    spec(app, model, loras, pictures(request, prompt, 1))
}
