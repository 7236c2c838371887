//! Hugging Face's Inference API for text to image: clients post to the very URL that they are given, and want the bytes of a
//! picture.

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, routing};
use kiln_runtime::Init;
use tokio::task::spawn_blocking;

use super::App;
use super::drawing::{pictures, settings, spec};
use super::encode::{Format, encode_elsewhere};
use super::error::ApiError;
use super::error::internal;
use super::fields::Fields;
use super::form::Form;
use super::upload::picture;
use crate::service::Ticket;
use crate::{ClientId, Spec};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/hf", routing::post(draw_with_first))
        .route("/hf/{model}", routing::post(draw_with))
        // Where a client was given the address of OpenAI's API.
        .route("/v1", routing::post(draw_with_first))
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
    let form = Form::read(request, &[]).await?;
    let taken = spawn_blocking(move || {
        let spec = ask(form.fields, model, &app)?;
        let job = app.service.submit(spec, client)?;
        Ok::<_, ApiError>(Ticket::new(&app.service, job))
    });
    let ticket = taken.await.map_err(|_| internal())??;
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
    let inputs = fields.needed_text("inputs")?;
    let mut parameters = fields.object("parameters")?;
    // How the hub's own servers wait and cache.
    drop(fields.value("options"));
    fields.finish()?;
    let (mut request, loras) = settings(&mut parameters, "num_inference_steps")?;
    let mut size = parameters.object("target_size")?;
    for sides in [&mut size, &mut parameters] {
        let mut side = |key| sides.whole(key, 1..=u64::from(u32::MAX)).map(|side| side.map(|side| side as u32));
        request.width = side("width")?.or(request.width);
        request.height = side("height")?.or(request.height);
    }
    size.finish()?;
    let prompt = match parameters.text("prompt")? {
        None => inputs,
        Some(prompt) => {
            let init = Init::new(picture("inputs", &inputs)?);
            request.init = Some(init.strength(parameters.number("strength")?));
            prompt
        }
    };
    parameters.finish()?;
    spec(app, model, loras, pictures(request, prompt, 1))
}
