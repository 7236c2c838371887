//! OpenAI's images API and its list of models, as their clients speak it.

mod answer;
mod asked;
mod models;
mod stream;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;

use super::App;
use super::error::ApiError;
use super::files::origin;
use super::form::{Form, size};
use super::openapi::shape::{event, list, object, one_of};
use super::openapi::{Routes, op};
use super::upload::Turn;
use super::wait::patiently;
use crate::ClientId;
use asked::{Kind, ask};

pub(super) fn routes() -> Routes<App> {
    let draws = |summary, kind: Kind| {
        let answers = op(summary).ok(answer::shape()).answers(200, "text/event-stream", event());
        answers.form(kind.table()).draws()
    };
    let listed = object([("object", one_of(&["list"])), ("data", list(models::shape()))]);
    Routes::new("OpenAI")
        .get("/v1/models", models::list, op("The models").ok(listed))
        .get("/v1/models/{id}", models::show, op("A model").ok(models::shape()))
        .post("/v1/images/generations", generate, draws("Draws a prompt", Kind::Generation))
        .post("/v1/images/edits", edit, draws("Changes a picture", Kind::Edit))
        .post("/v1/images/variations", vary, draws("Draws a picture anew", Kind::Variation))
}

type Answered = Result<Response, ApiError>;

async fn generate(app: State<App>, client: Extension<ClientId>, request: Request) -> Answered {
    serve(Kind::Generation, app, client, request).await
}

async fn edit(app: State<App>, client: Extension<ClientId>, request: Request) -> Answered {
    serve(Kind::Edit, app, client, request).await
}

async fn vary(app: State<App>, client: Extension<ClientId>, request: Request) -> Answered {
    serve(Kind::Variation, app, client, request).await
}

async fn serve(
    kind: Kind,
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    request: Request,
) -> Answered {
    let origin = origin(&app, request.headers(), request.uri());
    let (spec, answer) = {
        let turn = Turn::of(size(request.body())).await?;
        let form = Form::read(request, kind.table()).await?;
        let input = (kind, form, origin, app.clone());
        turn.read(input, |(kind, form, origin, app)| ask(kind, form, origin, &app)).await.map_err(named)?
    };
    let ticket = app.keeper.draw(spec, client).await.map_err(|error| named(error.into()))?;
    match answer.is_stream {
        true => Ok(stream::follow(ticket, answer)),
        false => Ok(patiently(async move { answer.whole(&app, &ticket).await }).await),
    }
}

/// Words that begin messages about a request, and the parameters that they are about.
const PARAMETERS: [(&str, &str); 18] = [
    ("batch size", "n"),
    ("clip skip", "clip_skip"),
    ("eta", "eta"),
    ("guidance rescale", "guidance_rescale"),
    ("guidance start", "guidance_start"),
    ("guidance end", "guidance_end"),
    ("deep every", "deep_every"),
    ("guidance scale", "guidance_scale"),
    ("height", "size"),
    ("lora", "loras"),
    ("mask", "mask"),
    ("negative prompt", "negative_prompt"),
    ("prompt", "prompt"),
    ("scheduler", "scheduler"),
    ("size", "size"),
    ("steps", "steps"),
    ("strength", "strength"),
    ("width", "size"),
];

/// The error with the parameter that it is about.
fn named(error: ApiError) -> ApiError {
    let begin = error.message.split(':').next().unwrap_or_default();
    let found = PARAMETERS.iter().find(|(words, _)| *words == begin);
    let param = error.param.clone().or_else(|| found.map(|(_, param)| (*param).to_owned()));
    ApiError { param, ..error }
}
