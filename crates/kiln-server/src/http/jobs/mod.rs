//! kiln's own API: jobs that outlive connections and the process.

mod asked;
mod routes;

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::Stream;
use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::http::App;
use crate::http::encode::png;
use crate::http::error::{ApiError, internal};
use crate::http::settings::Settings;
use crate::http::upload::place;
use crate::http::wait::event;
use crate::keeper::KeeperError;
use crate::store::{Ending, Record, StoreError};
use crate::{ClientId, Job, JobId, Phase};

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
    let spec = {
        let app = app.clone();
        place().await?.read(move || asked::read(&body, &app)).await?
    };
    let id = app.keeper.take(spec, client, key).await?;
    let view = view(&app, &id).await?.ok_or_else(internal)?;
    let location = [(header::LOCATION, format!("/v1/jobs/{id}"))];
    Ok((StatusCode::ACCEPTED, location, Json(view)).into_response())
}

impl From<KeeperError> for ApiError {
    fn from(error: KeeperError) -> ApiError {
        match error {
            KeeperError::Refused(refusal) => refusal.into(),
            KeeperError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        tracing::error!("{error}");
        ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "storage", "the job cannot be written down")
    }
}

/// What clients see of a job.
#[derive(Serialize)]
struct View {
    id: JobId,
    status: &'static str,
    model: String,
    created: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<u64>,
    /// Jobs that are drawn before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    seeds: Vec<u64>,
    /// Not in events, which repeat the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
    pictures: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    infotexts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

impl View {
    fn of(app: &App, record: Record, job: Option<&Job>) -> View {
        let settings = Settings::of(&record.id, &record.spec);
        let mut view = View {
            id: record.id,
            status: "queued",
            model: record.spec.model,
            created: record.created,
            ended: record.ended,
            position: None,
            remaining_seconds: None,
            step: None,
            steps: None,
            seeds: record.spec.request.seeds,
            settings: Some(settings),
            pictures: Vec::new(),
            infotexts: Vec::new(),
            error: None,
        };
        match record.ending {
            Ending::Done { pictures, infotexts } => {
                view.status = "done";
                view.pictures = (0..pictures).map(|i| format!("/v1/jobs/{}/pictures/{i}", view.id)).collect();
                view.infotexts = infotexts;
            }
            Ending::Failed { fault } => {
                view.status = "failed";
                view.error = Some(json!({ "code": fault.kind, "message": fault.message }));
            }
            Ending::Cancelled => view.status = "cancelled",
            Ending::Open => view.live(app, job),
        }
        view
    }

    /// How far a job is that has not ended on disk yet.
    fn live(&mut self, app: &App, job: Option<&Job>) {
        let Some(job) = job else { return };
        let status = job.status();
        self.status = match &status.phase {
            phase if phase.is_final() => "saving",
            phase => phase.name(),
        };
        self.position = app.service.position(&job.id);
        self.remaining_seconds = app.service.remaining(job).map(|time| time.as_secs_f64());
        if let Phase::Drawing { step, steps } = status.phase {
            (self.step, self.steps) = (Some(step), Some(steps));
        }
    }
}

pub(crate) async fn record(app: &App, id: &JobId) -> Result<Option<Record>, ApiError> {
    let (store, id) = (app.keeper.store().clone(), id.clone());
    Ok(spawn_blocking(move || store.get(&id)).await.map_err(|_| internal())??)
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
) -> Result<Json<Value>, ApiError> {
    let store = app.keeper.store().clone();
    let records = spawn_blocking(move || store.all()).await.map_err(|_| internal())??;
    let own = records.into_iter().rev().filter(|record| record.client == client).take(200);
    let views = own.map(|record| {
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
    match app.service.job(&id).filter(|job| !job.status().phase.is_final()) {
        Some(job) => {
            app.service.cancel(&job);
            job.ended().await;
            Ok((StatusCode::ACCEPTED, Json(json!({ "id": id, "status": "cancelled" }))).into_response())
        }
        None => Err(ApiError::new(StatusCode::CONFLICT, "too_late", "the job has ended already")),
    }
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
    let store = app.keeper.store().clone();
    let file = spawn_blocking(move || store.picture(&id, index)).await.map_err(|_| internal())?;
    let file = file.ok_or_else(|| ApiError::not_found("picture"))?;
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=3600")], file)
        .into_response())
}

/// `GET /v1/jobs/{id}/events`: `queued`, `loading`, `drawing`, `preview`, `decoding`, then one of `done`, `failed` and
/// `cancelled`, each with the job as data.
pub(crate) async fn events(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = owned(&app, &client, &id).await?;
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(follow(app, id))).into_response())
}

fn follow(app: App, id: JobId) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut last = None;
        let mut watcher = app.service.job(&id).map(|job| job.watch());
        // Nothing changes on disk before the job is gone.
        let mut known = None;
        loop {
            let status = watcher.as_mut().map(|watcher| watcher.borrow_and_update().clone());
            let job = app.service.job(&id);
            if known.is_none() || job.is_none() {
                known = record(&app, &id).await.ok().flatten();
            }
            let Some(record) = known.clone() else { return };
            let mut view = View::of(&app, record, job.as_deref());
            drop(job);
            view.settings = None;
            let is_last = view.ended.is_some();
            let mut texts = Vec::new();
            if let Some((step, preview)) = status.and_then(|status| status.preview)
                && last != Some(step)
                && !is_last
            {
                last = Some(step);
                texts.extend(preview_event(&preview, step).await);
            }
            texts.push(event(Some(view.status), &json!(view)));
            for text in texts {
                if sender.send(Ok(Bytes::from(text))).await.is_err() {
                    return;
                }
            }
            if is_last {
                return;
            }
            let changed = async {
                match &mut watcher {
                    Some(watcher) => watcher.changed().await.is_ok(),
                    None => false,
                }
            };
            let waited = tokio::time::timeout(std::time::Duration::from_secs(2), changed).await;
            if waited == Ok(false) {
                // The job is gone: its end is on disk, or will be at once.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                watcher = app.service.job(&id).map(|job| job.watch());
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

async fn preview_event(preview: &RgbImage, step: usize) -> Option<String> {
    let preview = preview.clone();
    let file = spawn_blocking(move || {
        let size = preview.size();
        png(&preview.resized(Size::new(size.width * 4, size.height * 4)), "")
    });
    let file = file.await.ok()?.ok()?;
    Some(event(Some("preview"), &json!({ "step": step, "png": BASE64_STANDARD.encode(file) })))
}
