//! `POST txt2img` and `POST img2img`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;

use super::panel::Panel;
use super::plan::Plan;
use super::{Caller, Shared};
use crate::ClientId;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::upload::Turn;
use crate::http::wait::patiently;

pub(super) async fn txt2img(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
    body: Bytes,
) -> Result<Response, ApiError> {
    draw("txt2img", app, panel, client, body).await
}

pub(super) async fn img2img(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
    body: Bytes,
) -> Result<Response, ApiError> {
    draw("img2img", app, panel, client, body).await
}

/// A client that leaves takes its jobs along: they live as long as their tickets.
async fn draw(
    task: &'static str,
    app: App,
    panel: Arc<Panel>,
    client: ClientId,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (models, settings) = (app.service.models().cards(), panel.settings(&client));
    let turn = Turn::of(body.len()).await?;
    let plan = turn.read((task, body, models, settings), |(task, body, models, settings)| {
        Plan::read(task, &body, &models, settings)
    });
    let Plan { specs, answer, settings } = plan.await?;
    let mut tickets = Vec::new();
    for spec in specs {
        tickets.push(app.keeper.draw(spec, client.clone()).await?);
    }
    settings.into_iter().for_each(|settings| panel.choose(&client, settings));
    let jobs = tickets.iter().map(|ticket| ticket.job().clone()).collect();
    let entered = panel.enter(client, task, jobs);
    Ok(patiently(async move {
        let answer = answer.of(tickets).await;
        drop(entered);
        answer
    })
    .await)
}
