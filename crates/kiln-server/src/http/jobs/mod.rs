//! kiln's own API: jobs that outlive connections and the process.

mod asked;
mod digest;
mod events;
mod page;
mod routes;
mod view;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::http::App;
use crate::http::error::{ApiError, internal};
use crate::http::upload::Turn;
use crate::keeper::{KeeperError, SenderKey};
use crate::store::{Record, StoreError};
use crate::{ClientId, JobId};
use digest::digest;
use page::Page;
use view::View;

/// Longest idempotency key, in bytes.
const MAX_KEY: usize = 256;

pub(super) use routes::routes;

/// The text of a key.
fn plain(key: &[u8]) -> Option<String> {
    let is_plain = (1..=MAX_KEY).contains(&key.len()) && key.iter().all(|byte| matches!(byte, b' '..=b'~'));
    is_plain.then(|| String::from_utf8_lossy(key).into_owned())
}

fn no_key() -> ApiError {
    let message = format!("Idempotency-Key: is not 1 to {MAX_KEY} plain characters");
    ApiError::invalid("Idempotency-Key", message)
}

/// `POST /v1/jobs`
pub(crate) async fn create(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let key = headers.get("idempotency-key").map(|key| plain(key.as_bytes()).ok_or_else(no_key)).transpose()?;
    let turn = Turn::of(body.len()).await?;
    let read = turn.read((app.clone(), body, key), |(app, body, key)| {
        let spec = asked::read(&body, &app)?;
        Ok((spec, key.map(|key| SenderKey { key, digest: digest(&body) })))
    });
    let (spec, key) = read.await?;
    let id = app.keeper.take(spec, client, key).await?;
    let view = view(&app, &id).await?.ok_or_else(internal)?;
    let location = [(header::LOCATION, format!("/v1/jobs/{id}"))];
    Ok((StatusCode::ACCEPTED, location, Json(view)).into_response())
}

impl From<KeeperError> for ApiError {
    fn from(error: KeeperError) -> ApiError {
        match error {
            KeeperError::Refused(refusal) => refusal.into(),
            KeeperError::Reused => {
                let message = "Idempotency-Key: came with another body before";
                let code = StatusCode::UNPROCESSABLE_ENTITY;
                ApiError { status: code, ..ApiError::invalid("Idempotency-Key", message) }
            }
            KeeperError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        tracing::error!("{error}");
        ApiError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "storage",
            "jobs cannot be written down or read at the moment",
        )
    }
}

pub(crate) async fn record(app: &App, id: &JobId) -> Result<Option<Record>, ApiError> {
    Ok(app.keeper.get(id).await?)
}

async fn view(app: &App, id: &JobId) -> Result<Option<View>, ApiError> {
    // The job first: where it is gone, its end is on disk.
    let job = app.service.job(id);
    Ok(record(app, id).await?.map(|record| View::of(app, record, job.as_deref())))
}

/// The name of a job of this client.
pub(crate) async fn owned(app: &App, client: &ClientId, id: &str) -> Result<JobId, ApiError> {
    let id = JobId::parse(id).ok_or_else(|| ApiError::not_found("job"))?;
    match record(app, &id).await? {
        Some(record) if record.client == *client => Ok(id),
        _ => Err(ApiError::not_found("job")),
    }
}

/// `GET /v1/jobs`
pub(crate) async fn list(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let page = Page::read(query.as_deref().unwrap_or_default())?;
    let before = match &page.before {
        Some(id) => {
            let record = record(&app, id).await?.filter(|record| record.client == client);
            record.ok_or_else(|| ApiError::invalid("before", format!("before: '{id}' is no job")))?.sequence
        }
        None => u64::MAX,
    };
    let records = app.keeper.newest(&client, before, page.limit).await?;
    let views = records.into_iter().map(|record| {
        let job = app.service.job(&record.id);
        View::of(&app, record, job.as_deref())
    });
    Ok(Json(json!({ "jobs": views.collect::<Vec<_>>() })))
}

/// `GET /v1/jobs/{id}`
pub(crate) async fn show(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = owned(&app, &client, &id).await?;
    let view = view(&app, &id).await?.ok_or_else(|| ApiError::not_found("job"))?;
    Ok(Json(json!(view)))
}

/// `POST /v1/jobs/{id}/cancel`
pub(crate) async fn cancel(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = owned(&app, &client, &id).await?;
    let job = app.service.job(&id).filter(|job| !job.status().phase.is_final());
    let too_late = || ApiError::new(StatusCode::CONFLICT, "too_late", "the job has ended already");
    app.keeper.cancel(&*job.ok_or_else(too_late)?).await;
    let view = view(&app, &id).await?.ok_or_else(|| ApiError::not_found("job"))?;
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}

/// `DELETE /v1/jobs/{id}`
pub(crate) async fn delete(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id = owned(&app, &client, &id).await?;
    app.keeper.delete(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/jobs/{id}/pictures/{index}`
pub(crate) async fn show_picture(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path((id, index)): Path<(String, usize)>,
) -> Result<Response, ApiError> {
    let id = owned(&app, &client, &id).await?;
    let file = app.keeper.picture(&id, index).await?.ok_or_else(|| ApiError::not_found("picture"))?;
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=3600")], file)
        .into_response())
}
